"""What findings are called in reports, in the notation of `client.text.phrases`.

Written for this project from how radiologists write; no list was copied. ``TERMS`` name a finding,
present or denied, and are what the labeller reads. Redaction takes out the other lists as well.
"""

from __future__ import annotations

from collections.abc import Mapping

HEART = "(heart|cardiac|cardiopericardial)( size| silhouettes?| shadow| contours?)?"
MEDIASTINUM = "(mediastin*|cardiomediastin*|cardio mediastin*)( silhouettes?| contours?| shadow)?"
ANGLE = "(costophrenic|costo phrenic|cp|costodiaphragmatic)( angles?| sulc*| recess*)?"

_BIG = "(enlarged|large|increased|prominent|dilated|big|widened)"
_WIDE = "(widen*|enlarge*|broaden*|prominen*)"
_LONG = "(tortuo*|elongat*|ectasia|ectatic|uncoil*|unfold*)"
_SCLEROTIC = "(atheroma*|atherosclero*|arteriosclero*|calcifi*)"
_BLUNT = "(blunt*|oblitera*|effac*)"
_AORTA = "(aort*|arch)"
_PART = "( ascending| descending| thoracic| tortuous| ectatic| calcifi*| atherosclero*)"
_DIAPHRAGM = "( hemi)?( )?*diaphragm*"
_NODULE = ("*nodul*",)
_MASS = ("mass", "masses", "mass ?like")

TERMS: Mapping[str, tuple[str, ...]] = {
    "air_trapping": ("(air|gas) trapping",),
    "aortic_atheromatosis": (
        f"{_AORTA} ~( \\w+ and| vascular)? {_SCLEROTIC}",
        f"{_SCLEROTIC}( changes?| disease| plaques?| calcifi*)?( (is|are)? (present|seen|noted))?"
        f"( of| in| within| involving| along)?( the)?{_PART}{{0,2}} {_AORTA}",
    ),
    "aortic_elongation": (
        f"{_AORTA} ~( \\w+ and| calcifi*)? {_LONG}",
        f"{_LONG}( (and|or)+ \\w+)?( of)?( the)?{_PART}{{0,3}} {_AORTA}",
    ),
    "aortic_enlargement": (
        f"{_AORTA} ~ (enlarge*|dilat*|aneurysm*|widen*)",
        f"(enlarge*|dilat*|aneurysm*|widen*)( of)?( the)?{_PART}? {_AORTA}",
    ),
    "atelectasis": (
        "atele*ta*", "atele*tic",
        "(lung|lobar|lobe|segmental|subsegmental|lingular|partial) collapse",
        "collapsed?( of)?( the)?( right| left)?( upper| middle| lower)? (lungs?|lobes?|lingula)",
    ),
    "bronchiectasis": ("bronchiecta*",),
    "calcification": ("calcifi*", "calcinosis"),
    "calcified_granuloma": ("calcifi*( \\w+){0,3} granuloma*", "granuloma*( \\w+){0,2} calcifi*"),
    "cardiomegaly": (
        "cardiomegal*", "megalocardia",
        f"enlarge*( of)?( the)? {HEART}", f"(large|big|prominent|dilated) {HEART}",
        f"{HEART}( and( the)? \\w+)? ~ {_BIG}", f"{HEART} enlarge*",
    ),
    "chronic_obstructive_disease": (
        "copd", "coad", "chronic obstructive( pulmonary| lung| airways?)? dis*",
        "obstructive lung disease", "chronic airways? (disease|obstruction)",
    ),
    "clavicle_fracture": ("clav*( \\w+){0,2} fractur*", "fractur*( \\w+){0,5} clav*"),
    "consolidation": ("consolidat*", "air bronchogram*"),
    "costophrenic_angle_blunting": (
        f"{_BLUNT}( of)?( the)?( left| right| bilateral| both| lateral| posterior){{0,2}} {ANGLE}",
        f"{ANGLE} ~ {_BLUNT}",
    ),
    "edema": ("o?edema*", "kerley( b)? lines?", "(fluid|volume) overload"),
    "effusion": (
        "*effusions?", "(pleural|fissural|subpulmonic|intrapleural) (fluid|collections?)",
        "fluid (is )?(in|within|along|tracking)( into)?( the)?( \\w+)? (fissures?|pleural spaces?)",
        "*hydrothora*", "hydropneumothora*", "*hemothora*", "*haemothora*", "empyema*",
    ),
    "emphysema": ("*emphysem*", "bulla*", "bullous", "blebs?"),
    "enlarged_cardiomediastinum": (
        f"{_WIDE}( of)?( the)?( superior| upper)? {MEDIASTINUM}", f"{MEDIASTINUM} ~ {_WIDE}",
    ),
    "enlarged_pulmonary_artery": (
        "(enlarge*|dilat*|prominen*)( of)?( the)?( central| main| left| right)? pulmonary (arter*|trunk)",
        "pulmonary (arter*|trunk) ~ (enlarge*|dilat*|prominen*)",
        "pulmonary( arterial| artery)? hypertension",
    ),
    "fibrosis": ("*fibrosis", "fibroses", "fibrotic", "honeycomb*"),
    "flattened_diaphragm": (
        f"(flatten*|flat)( of)?( the)?( both| bilateral)?{_DIAPHRAGM}", "*diaphragm* ~ (flatten*|flat)",
    ),
    "fracture": ("fractur*", "fx", "broken ribs?"),
    "granuloma": ("granuloma*",),
    "hemidiaphragm_elevation": (
        f"(elevat*|raised|eventrat*)( of)?( the)?( left| right)?{_DIAPHRAGM}",
        "*diaphragm* ~ (elevat*|raised|eventrat*)", "eventration",
    ),
    "hernia": ("herniat*", "hernias?"),
    "hilar_enlargement": (
        "(enlarge*|prominen*|full*|bulky)( of)?( the)?( left| right| bilateral)? hil*",
        "hil*( contours?| structures?)? ~ (enlarge*|prominen*|full*|bulky)",
        "hilar( and mediastinal| \\w+)? (lymph)?( )?*adenopathy",
    ),
    "infiltration": ("infiltrat*",),
    "interstitial_lung_disease": (
        "interstitial( lung| pulmonary| \\w+)? (disease|pneumonitis|pneumonia|fibrosis)",
        "ild", "uip", "nsip",
    ),
    "lung_cavity": ("cavit*",),
    "lung_cyst": ("(lung|pulmonary|parenchymal|air|thin walled) cysts?", "cystic (changes?|lung disease)"),
    "lung_lesion": ("lesions?",),
    "lung_opacity": (
        "opaci*", "*opacification*", "air ?space (disease|process)", "ground glass", "haz(y|iness)",
        "(air ?space|parenchymal|interstitial|patchy|reticular|reticulonodular) densit*",
        "(streak*|hazy|ill defined|focal) densit*",
    ),
    "lung_tumor": (
        "neoplas*", "malignan*", "tumou?rs?", "cancer*", "*carcinoma*", "metasta*", "lymphoma*",
    ),
    "mass": _MASS,
    "mediastinal_shift": (
        "(mediastin*|tracheal?|cardiomediastin*|midline) ~ (shift*|deviat*|displac*)",
        "(shift*|deviat*|displac*)( of)?( the)? (mediastin*|trachea*|cardiomediastin*|midline|heart)",
    ),
    "nodule": _NODULE,
    "nodule_or_mass": _NODULE + _MASS,
    "pleural_other": (
        "pleural( \\w+)? (plaques?|calcifi*|scar*|disease|mass*|lesions?|adhesions?|nodul*|abnormalit*)",
        "fibrothora*", "mesothelioma*",
    ),
    "pleural_thickening": (
        "pleural( \\w+){0,3} thicken*", "thicken*( of)?( the)?( \\w+)? pleura*",
        "(apical|pleural|biapical) cap*",
    ),
    "pneumonia": ("*pneumonias?", "*pneumonic"),
    "bacterial_pneumonia": (
        "bacterial( \\w+)? (pneumonias?|infection|process)", "(pneumo|staphylo|strepto)cocc*",
    ),
    "viral_pneumonia": (
        "viral( \\w+)? (*pneumonias?|pneumonitis|infection|process|illness)", "influenza",
    ),
    "covid": ("covid*( 19)?", "sars cov( 2)?", "*coronavirus*", "ncov"),
    "tuberculosis": ("tubercul*", "tb", "mycobacteri*", "ghon"),
    "pneumothorax": ("*pneumothora*", "ptx", "pleural (air|gas)( collections?)?"),
    "scoliosis": (
        "*scolio*", "(curvature|curved)( of)?( the)?( thoracic| thoracolumbar)? spine", "spin* curvature",
    ),
    "support_device": (
        "catheters?", "piccs?", "lines? (and|or) tubes?", "tubes? (and|or) lines?", "ett", "ngt",
        "(central|venous|picc|subclavian|jugular|ij|dialysis|arterial|midline)( \\w+)? lines?",
        "(endotracheal|et|enteric|ng|og|nasogastric|orogastric|feeding|tracheostomy|chest)( \\w+)? tubes?",
        "(thoracostomy|gastric|nasoenteric|dobb?hoff|gastrostomy|pleural)( \\w+)? tubes?", "tracheostom*",
        "pacemakers?", "pacers?", "pacing (leads?|wires?|device)", "a?icd", "defibrillat*", "generators?",
        "(monitoring|ecg|ekg|pacer|pacemaker|cardiac|icd) (leads?|wires?)", "swan ganz", "balloon pump",
        "port a cath*", "portacath*", "mediport*", "(chest|infusion|venous|subcutaneous) ports?",
        "(chest|pleural|pigtail|intercostal|thoracic) drains?", "iabp", "lvad", "stimulator*",
        "support(ing|ive)? (devices?|apparatus|lines?|tubes?)", "occlu(der|sion device)s?",
        "(medical|implanted|assist|cardiac|monitoring) devices?",
    ),
    "severe": (
        "severe (course|disease|illness)", "critical(ly)? (ill*|condition)", "respiratory failure", "ards",
    ),
    "icu": ("icu", "itu", "intensive care( unit)?", "critical care( unit)?"),
    "intubated": ("intubat*", "mechanical(ly)? ventilat*", "ventilator*"),
    "mortality": ("died", "deceased", "deaths?", "dead", "demise", "mortality"),
}  # fmt: skip
"""Finding -> what it is called."""

LOOKALIKES: Mapping[str, tuple[str, ...]] = {
    "effusion": ("pericardial effusions?", "joint effusions?"),
    "emphysema": ("(subcutaneous|mediastinal|soft tissue|interstitial) emphysema",),
    "edema": ("(soft tissue|peripheral|leg|pedal|ankle|(lower )?extremity|facial|limb) o?edema",),
    "hernia": ("(inguinal|umbilical|ventral|incisional|abdominal wall|dis[ck]) herni*", "herni* repair"),
    "lung_lesion": (
        "(bon[ey]|osseous|lytic|sclerotic|blastic|skin|skeletal|rib|destructive|vertebral)( \\w+)? lesions?",
    ),
    "mass": ("mass effect", "(muscle|body|bone|breast|abdominal|soft tissue) mass*"),
    "nodule_or_mass": ("mass effect", "(muscle|body|bone|breast|abdominal|soft tissue) mass*"),
    "pneumonia": ("interstitial pneumonias?",),
    "support_device": ("mid ?clavicular lines?", "(pleural|fracture|paratracheal|paraspinal) lines?"),
    "lung_cavity": ("(chest|thoracic|abdominal|pleural|peritoneal) cavit*",),
    "lung_tumor": ("breast (cancer|carcinoma)",),
}
"""Finding -> what contains one of its terms and is not it. Taken out of a text all the same."""

SIGNS: Mapping[str, tuple[str, ...]] = {
    "atelectasis": ("collaps*", "volume loss", "loss of volume"),
    "chronic_obstructive_disease": ("hyperinflat*", "hyperexpan*", "hyperlucen*"),
    "consolidation": ("silhouette sign",),
    "edema": ("congest*", "cephaliz*", "redistribution", "vascular (prominence|engorgement)"),
    "effusion": ("blunt*", "menisc*", "loculat*", "fluid", "fissural thickening"),
    "fracture": ("callus", "deformit*", "displaced"),
    "hernia": ("hiat*",),
    "hilar_enlargement": ("*adenopath*",),
    "lung_opacity": ("shadow*", "densit*", "markings?"),
    "pneumonia": ("infect*", "aspirat*", "pneumonitis", "bronchitis"),
    "severe": ("severe*", "severity"),
    "support_device": (
        "sternotom*", "cabg", "clips?", "staples?", "sutures?", "wires?", "hardware", "stents?", "ports?",
        "prosthe*", "valve*", "lines?", "tubes?", "leads?", "implant*", "tips?", "devices?",
    ),
    "tuberculosis": ("ppd", "quantiferon"),
}  # fmt: skip
"""Finding -> signs and remains that all but name it. No label follows from them."""

GIVE_AWAYS: Mapping[str, tuple[str, ...]] = {
    "normality": (
        "*normal*", "unremarkable", "wnl", "within( \\w+)? limits", "upper limits?", "clear*", "negative",
        "intact", "healthy", "preserved", "sharp*", "no findings?", "satisfactory",
    ),
    "acuity": ("*acute*", "*chronic*", "active"),
}  # fmt: skip
"""Rule -> words that name no finding and tell whether there is one."""
