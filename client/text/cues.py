"""Words that deny or doubt a finding, and statements that do so without its name.

In the notation of `client.text.phrases`. An arrow tells on which side of a cue its finding stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from client.text.terms import ANGLE, HEART, MEDIASTINUM

_BE = "(is|are|was|were|be|been|has been|have been)"
_MAY = "(may|might|could|can)"
_CANNOT = "(cannot|can not|can't|could not)"
_SEEN = (
    "(seen|identified|evident|visuali[sz]ed|visible|present|demonstrated|appreciated|noted|apparent"
    "|detected|observed|found|shown|recogni[sz]ed|confirmed)"
)

CUES: Mapping[str, tuple[str, ...]] = {
    "deny>": (
        "no", "not", "without", "w(iht|tih)out", "w/o", "never", "neither", "nor", "none", "rather than",
        "negative for", "no longer( (any|an?|visible|evident))?", "absen(ce|t)( of)?", "lack(s|ing)?( of)?",
        "free (of|from)", "clear of", "resol(ution of|ved)", "removal of", "clearing of", "den(y|ies)",
        "exclud(es|ing)",
    ),
    "<deny": (
        f"{_BE} (no longer|not)( \\w+)? {_SEEN}", f"not( \\w+)? {_SEEN}", f"no longer( {_SEEN})?", "none",
        "(has|have|had)( \\w+)? (resolved|cleared|disappeared)", f"{_BE}( \\w+)? resolved", "resolved",
        f"{_BE}( now)? (absent|excluded|ruled out|removed)",
    ),
    "doubt>": (
        "possib(le|ly|ility)( of)?", "probab(le|ly|ility)( of)?", "likely", "perhaps", "maybe",
        "suspect(ed)?", "suspicious for", "suspicion (of|for)", "questionabl[ey]", "question(ed)?( of)?",
        "query", "equivocal", "indeterminate", "presumed", "doubtful", "conceivabl[ey]", "potential(ly)?",
        f"{_MAY}( \\w+)? (be|represent|reflect|indicate|include|suggest)", f"{_CANNOT}( \\w+)? exclude",
        f"{_CANNOT} rule out", "difficult to exclude", "(not|without) (exclude|ruling out)", "rule out",
        "r/o", "concern(ing)? for", "worrisome for", "worry for", "suggest(s|ive|ing|ion)?( of)?",
        "differential( \\w+)?", "evaluat(e|ion) for", "either", "versus", "vs", "borderline",
        "apparent(ly)?", "favou?r(s|ed)?",
    ),
    "<doubt": (
        f"{_BE}( \\w+)? (possible|probable|likely|suspected|question*|considered|equivocal|unlikely)",
        f"{_BE}( \\w+)? (favou?red|suggested|not excluded|conceivable)", "not( \\w+)? (excluded|ruled out)",
        f"{_CANNOT}( \\w+)? be( \\w+)? (excluded|ruled out)", "difficult to exclude", "unlikely",
        "less likely", "versus", "vs",
    ),
    "ignore>": (
        "(history|hx|risk) of", "h/o", "status post( \\w+)? (treatment|resection) (of|for)",
    ),
    "": (
        "(no|not|without)( \\w+){0,3} (chang*|increase*|decrease*|worsening|improvement|progression)"
        "( (in|of|to|from|since|the|for))?",
        "not (only|necessarily)", "no (question|doubt)( of| that)?", "no other",
    ),
}  # fmt: skip
"""Action and side -> cues. The unnamed list looks like denial and is none."""

_FINE = "(normal|unremarkable|wnl|within normal( limits)?)"
_FILL = (
    "( (is|are|was|were|appears?|remains?|and|the|of|in|size|shape|contours?|configuration|caliber|both"
    "|silhouette|shadow|structures|pulmonary|hil*|mediastin*|cardiomediastin*|vasc*|grossly|again|also"
    "|stable|overall|well|essentially)){0,8}"
)

_CLEAR_LUNGS = (f"lungs?( fields?| bases?)?{_FILL} clear", "clear( \\w+)? lungs?")

NORMAL: Mapping[str, tuple[str, ...]] = {
    "cardiomegaly": (
        f"{HEART}{_FILL} {_FINE}", f"(normal|unremarkable)( sized?)?( of)?( the)? {HEART}",
        f"{MEDIASTINUM}{_FILL} {_FINE}",
    ),
    "enlarged_cardiomediastinum": (
        f"{MEDIASTINUM}{_FILL} {_FINE}", f"(normal|unremarkable) {MEDIASTINUM}",
    ),
    "effusion": (
        f"{ANGLE}{_FILL} (clear|sharp|normal|preserved|free)", "sharp costophrenic",
        f"pleural (spaces?|surfaces?){_FILL} (clear|normal|unremarkable)",
    ),
    "edema": (f"(pulmonary )?vascul*{_FILL} {_FINE}", "normal (pulmonary )?vascul*"),
    "consolidation": _CLEAR_LUNGS, "infiltration": _CLEAR_LUNGS, "lung_opacity": _CLEAR_LUNGS,
    "fracture": (f"(bon(y|es)|osseous|ribs|skelet*){_FILL} (intact|unremarkable|normal)",),
}  # fmt: skip
"""Finding -> statements that deny it without its name."""

BORDERLINE: Mapping[str, tuple[str, ...]] = {
    "cardiomegaly": (
        f"{HEART}{_FILL}( at)?( the)? (upper limits? of normal|top normal|high normal|borderline)",
        f"borderline( \\w+)? {HEART}", "(top|high) normal( \\w+)? (heart|cardiac)",
    ),
}  # fmt: skip
"""Finding -> statements that leave it open without its name."""
