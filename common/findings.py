"""The vocabulary of findings: names, synonyms, label masks and the uncertainty policy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import LabelError, closest

Uncertainty = Literal["ignore", "ones", "zeros"]

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "air_trapping": (),
    "aortic_atheromatosis": ("aortic atheroma",),
    "aortic_elongation": ("tortuous aorta",),
    "aortic_enlargement": (),
    "atelectasis": ("collapse",),
    "bronchiectasis": (),
    "calcification": (),
    "calcified_granuloma": (),
    "cardiomegaly": ("enlarged heart", "heart enlargement"),
    "chronic_obstructive_disease": ("copd", "copd signs", "chronic obstructive pulmonary disease"),
    "clavicle_fracture": (),
    "consolidation": ("airspace consolidation",),
    "costophrenic_angle_blunting": ("blunted costophrenic angle",),
    "edema": ("oedema", "pulmonary edema", "pulmonary oedema"),
    "effusion": ("pleural effusion", "pleural fluid"),
    "emphysema": (),
    "enlarged_cardiomediastinum": ("widened mediastinum",),
    "enlarged_pulmonary_artery": ("enlarged pa", "pulmonary artery enlargement"),
    "fibrosis": ("pulmonary fibrosis",),
    "flattened_diaphragm": (),
    "fracture": ("rib fracture",),
    "granuloma": (),
    "hemidiaphragm_elevation": ("elevated hemidiaphragm",),
    "hernia": ("hiatal hernia",),
    "hilar_enlargement": (),
    "infiltration": ("infiltrate",),
    "interstitial_lung_disease": ("ild",),
    "lung_cavity": (),
    "lung_cyst": (),
    "lung_lesion": (),
    "lung_opacity": ("opacity", "airspace opacity"),
    "lung_tumor": ("lung tumour",),
    "mass": ("lung mass",),
    "mediastinal_shift": (),
    "nodule": ("pulmonary nodule", "lung nodule"),
    "nodule_or_mass": ("nodule/mass",),
    "pleural_other": (),
    "pleural_thickening": (),
    "pneumonia": (),
    "bacterial_pneumonia": ("bacterial",),
    "viral_pneumonia": ("viral",),
    "covid": ("covid-19", "sars-cov-2"),
    "tuberculosis": ("tb",),
    "pneumothorax": ("ptx",),
    "scoliosis": (),
    "support_device": ("support devices", "device", "medical device", "tubes and lines"),
    "severe": ("severe course",),
    "icu": ("icu admission",),
    "intubated": ("intubation",),
    "mortality": ("death", "died"),
}
"""Finding -> other names the same thing is exported under.

Effusion is Pleural Effusion. Nodule and Mass lie *within* Lung Lesion and are not the same;
``nodule_or_mass`` is for annotators who did not tell them apart.
``no_finding`` is absent on purpose: it depends on which findings were looked for.
"""

FINDINGS: tuple[str, ...] = tuple(SYNONYMS)

CHEXPERT_5: Mapping[str, Uncertainty] = {
    "atelectasis": "ones",
    "edema": "ones",
    "effusion": "ones",
    "cardiomegaly": "zeros",
    "consolidation": "zeros",
}
"""What -1 means for CheXpert's five competition findings.

Irvin et al. 2019, table 3, compare the policies finding by finding: ones does better than zeros for
atelectasis and edema, zeros for consolidation, and cardiomegaly and effusion hardly differ. The
combination is the one of Lian et al. 2024 (MED-PEFT, the CheXpert setting of their code).
"""


def _key(text: str) -> str:
    return re.sub(r"[\s_\-]+", " ", text.strip().lower())


_LOOKUP = {_key(name): name for name in FINDINGS} | {
    _key(other): name for name, others in SYNONYMS.items() for other in others
}
_NO_FINDING = {"no finding", "normal", "no findings"}


def canonical(name: str) -> str:
    """Return the vocabulary's name for a finding written any usual way.

    >>> canonical("Pleural_Effusion")
    'effusion'

    Raises:
        LabelError: if the name is not in the vocabulary, or is "No Finding", which is a
            statement about a label set and is never federated as a pathology.
    """
    key = _key(name)
    if key in _NO_FINDING:
        raise LabelError(
            f"{name!r} is not a finding: it means different things at different sites",
            fix="leave it out; the absence of findings is read from the findings themselves",
        )
    if key not in _LOOKUP:
        raise LabelError(
            f"finding {name!r} is not in the vocabulary",
            found=name,
            fix=closest(name, FINDINGS) or "see common/findings.py for the vocabulary",
        )
    return _LOOKUP[key]


def suggest(columns: Iterable[str]) -> dict[str, str]:
    """Map findings to the columns of a table that carry one of their names.

    >>> suggest(["patient", "Pleural_Effusion", "Edema"])
    {'effusion': 'Pleural_Effusion', 'edema': 'Edema'}
    """
    found: dict[str, str] = {}
    for column in columns:
        for candidate in (column, re.sub(r"^(lab|label|out|finding)_", "", column)):
            name = _LOOKUP.get(_key(candidate))
            if name and name not in found:
                found[name] = column
                break
    return found


def label_matrix(
    columns: Mapping[str, NDArray[np.float64]],
    findings: Sequence[str],
    uncertainty: Mapping[str, Uncertainty],
    rows: int,
) -> NDArray[np.float32]:
    """Lay label columns out as ``[studies, findings]``: 1 present, 0 absent, NaN not annotated.

    A finding without a column is NaN throughout, never 0: absent annotation is not absence
    of disease. -1 (uncertain) follows the finding's policy.

    Raises:
        LabelError: for a value other than 1, 0, -1 and empty, or for an uncertain label whose
            finding has no policy; there is no silent default.
    """
    labels = np.full((rows, len(findings)), np.nan, dtype=np.float32)
    for j, finding in enumerate(findings):
        if finding not in columns:
            continue
        values = np.asarray(columns[finding], dtype=np.float64)
        known = ~np.isnan(values)
        odd = known & ~np.isin(values, (0.0, 1.0, -1.0))
        if odd.any():
            raise LabelError(
                f"label {finding!r} has a value that is not 1, 0, -1 or empty",
                found=f"{values[odd][0]:g} in row {int(np.flatnonzero(odd)[0]) + 1}",
                fix="recode the column",
            )
        uncertain = known & (values == -1.0)
        if uncertain.any():
            policy = uncertainty.get(finding)
            if policy is None:
                raise LabelError(
                    f"label {finding!r} has {int(uncertain.sum())} uncertain values (-1) and no policy",
                    fix=f'set uncertainty.{finding} = "ignore", "ones" or "zeros" in site.toml',
                )
            values = values.copy()
            values[uncertain] = {"ignore": np.nan, "ones": 1.0, "zeros": 0.0}[policy]
        labels[:, j] = values
    return labels
