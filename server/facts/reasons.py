"""Why an update, or a site, was not taken: a sentence for every code.

Where the centre raised the error itself, its own words say more and are used instead; of a site
only the code is known, the rest is in the site's own log.
"""

from __future__ import annotations

from common.errors import FedcxrError

REASONS: dict[str, str] = {
    "E_INTERNAL": "something failed at the site that it did not foresee",
    "E_CONFIG": "the site cannot use one of the plan's settings, or one of its own",
    "E_DATA": "the site's studies cannot be used as they are",
    "E_TABLE": "the site's table of studies is missing, unreadable or lacks a column",
    "E_LABELS": "a label in the site's table cannot be used",
    "E_IMAGE": "the site's images cannot be read",
    "E_SPLIT": "a patient or an image stands in more than one split at the site",
    "E_MODEL": "the site cannot build the model",
    "E_WEIGHTS": "the site lacks the base's weights, or they do not fit",
    "E_TARGET": "the plan adapts layers that the site's model does not have",
    "E_DIGEST": "base, plan or code at the site differ from the centre's",
    "E_UPDATE": "the update may not touch the model",
    "E_SCHEMA": "the answer has not the form that was agreed: names, shapes or number format",
    "E_NONFINITE": "the answer holds NaN or infinity",
    "E_NORM": "the update is larger than the plan allows",
    "E_WEIGHT": "the number of examples is not one the site can have",
    "E_RUN": "the site could not go on with the run",
    "E_QUORUM": "too few sites take part",
    "E_CHECKPOINT": "what the site had kept of the run is missing, damaged or of another plan",
    "E_SITE": "it answered under another name than the one it was asked by",
    "E_REFUSED": "the site's own gate said no",
    "E_POLICY": "the plan asks for more than the site's policy allows",
    "E_APPROVAL": "nobody at the site has approved this code, policy or base",
    "E_SIGNATURE": "the site found that the centre had not signed what it was asked",
    "E_REPLAY": "the site had been asked this before, or it was meant for another run or site",
    "E_EGRESS": "the answer held what may not leave the site",
    "E_AUDIT": "the site's record of what left is damaged or cannot be written",
    "E_DEPLOYMENT": "the site's processes, keys or addresses are not as they must be",
    "E_CREDENTIAL": "a key or certificate of the site does not fit",
    "E_UNREACHABLE": "the site could not reach the other end",
    "E_WORKER": "the site's worker process died or did not answer",
    "E_DEADLINE": "it did not answer before the deadline",
}
"""Code -> what it says of a site, without the site's name."""
_NODE = {
    "0": "Flower could not say what went wrong",
    "1": "the app at the site could not be loaded",
    "2": "the app at the site failed",
    "3": "the question to the site was lost on the way",
    "4": "the site's answer was lost on the way",
    "5": "the site was not connected",
    "6": "the app at the site refused the question",
    "7": "the site has another app than the one submitted",
    "8": "the process at the site that was to answer died",
}
"""Flower's ``ErrorCode`` -> what it says."""
_NODE_ERROR = "E_NODE_"
_LONGEST = 200


def reason_of(code: str) -> str:
    """Return the sentence of a code.

    >>> reason_of("E_NORM"), reason_of("E_NODE_5")
    ('the update is larger than the plan allows', 'the site was not connected')
    >>> reason_of("E_NEW")
    'for a reason that this version does not know'
    """
    if code.startswith(_NODE_ERROR):
        number = code.removeprefix(_NODE_ERROR)
        return _NODE.get(number, "Flower answered in the site's place with an error")
    return REASONS.get(code, "for a reason that this version does not know")


def words_of(error: FedcxrError) -> str:
    """Return the words of an error that the centre raised itself, on one line.

    >>> from common.errors import NormError
    >>> words_of(NormError("the update is too large", found="312, at most 100"))
    'the update is too large (found 312, at most 100)'
    """
    text = f"{error.problem} (found {error.found})" if error.found else error.problem
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
