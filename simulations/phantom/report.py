"""Radiology reports in plain templates: what is there, what is not, how sure the reader is.

The indication gives symptoms, never a diagnosis, and hints at the findings only weakly: a model
that reads it must not learn the answer from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.phantom.cases import FINDINGS, Cases
from simulations.phantom.placement import BOTH, LEFT, Placement, place


@dataclass(frozen=True)
class Report:
    """One study's text."""

    indication: str
    findings: str
    impression: str


_SYMPTOMS: tuple[str, ...] = (
    "cough", "shortness of breath", "chest pain", "fever", "fatigue", "weight loss", "wheeze",
    "leg swelling", "palpitations", "malaise", "pre-operative assessment", "fall", "follow-up",
)  # fmt: skip
_HINTS = {
    "cardiomegaly": "palpitations",
    "effusion": "shortness of breath",
    "pneumothorax": "chest pain",
    "consolidation": "fever",
    "nodule": "weight loss",
    "edema": "leg swelling",
    "atelectasis": "cough",
    "support_device": "follow-up",
}
_OPENINGS = ("{view} view of the chest.", "{view} chest radiograph.", "Single {view} projection.", "")
_ABSENT = {
    "cardiomegaly": (
        "Heart size is normal.",
        "No cardiomegaly.",
        "The cardiac silhouette is not enlarged.",
    ),
    "effusion": (
        "No pleural effusion.",
        "No effusion is seen.",
        "Costophrenic angles are sharp, without effusion.",
    ),
    "pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    "consolidation": (
        "No focal consolidation.",
        "No consolidation is identified.",
        "No airspace consolidation.",
    ),
    "nodule": ("No pulmonary nodule.", "No suspicious nodule is seen.", ""),
    "edema": (
        "No pulmonary edema.",
        "No evidence of edema.",
        "Pulmonary vascularity is normal, without edema.",
    ),
    "atelectasis": ("No atelectasis.", "No atelectasis or volume loss.", ""),
    "support_device": ("No lines or tubes.", "", ""),
}
_NAMES = {
    "tube": "endotracheal tube",
    "line": "central venous line",
    "pacemaker": "pacemaker with its lead",
    "leads": "monitoring leads",
    "drain": "chest drain",
}
_TYPOS = {
    "without": "wihtout",
    "evidence": "evidnece",
    "There is": "Ther is",
    "is seen": "is sen",
    "normal": "nomral",
    "chest": "chets",
    "projecting": "projcting",
}
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute process in the chest.",
)


def write_reports(cases: Cases) -> list[Report]:
    """Write one report a study. As the picture, it depends on its own case only."""
    return [_write(cases, row) for row in range(len(cases))]


def _write(cases: Cases, row: int) -> Report:
    rng = np.random.default_rng([cases.seed, 29, int(cases.index[row])])
    where = place(cases.seed, int(cases.patient[row]))
    severity = dict(zip(FINDINGS, cases.severity[row].tolist(), strict=True))
    present = [name for name in FINDINGS if severity[name] > 0]

    lines = [_pick(rng, _OPENINGS).format(view=str(cases.view[row]))]
    lines += [_describe(rng, name, severity[name], where) for name in present]
    silent = [_pick(rng, _ABSENT[name]) for name in FINDINGS if name not in present]
    lines += [silent[k] for k in rng.permutation(len(silent))]
    text = " ".join(line for line in lines if line)
    if rng.random() < 0.06:
        right = _pick(rng, tuple(_TYPOS))
        text = text.replace(right, _TYPOS[right], 1)

    ranked = sorted(present, key=lambda name: -severity[name])
    summary = [_conclude(rng, name, severity[name], where) for name in ranked if name != "support_device"]
    if summary:
        impression = (
            " ".join(f"{k}. {line}" for k, line in enumerate(summary, 1)) if summary[1:] else summary[0]
        )
    else:
        impression = _pick(rng, _NORMAL)
    if "support_device" in present:
        impression += f" {_devices(severity['support_device'], where).capitalize()} in place."
    return Report(_indicate(rng, cases, row, present), text, impression)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _indicate(rng: np.random.Generator, cases: Cases, row: int, present: Sequence[str]) -> str:
    first = _pick(rng, _SYMPTOMS)
    if present and rng.random() < 0.3:
        first = _HINTS[_pick(rng, present)]
    second = _pick(rng, _SYMPTOMS)
    complaint = first if second == first or rng.random() < 0.5 else f"{first} and {second}"
    years, woman = int(cases.age[row]), bool(cases.female[row])
    forms = (
        f"{years}-year-old {'woman' if woman else 'man'} with {complaint}.",
        f"{'Female' if woman else 'Male'}, {years} years. {complaint.capitalize()}.",
        f"{years}{'F' if woman else 'M'}, {complaint}. Please assess.",
    )
    return _pick(rng, forms)


def _grade(severity: float) -> str:
    return "mild" if severity < 0.4 else "moderate" if severity < 0.75 else "marked"


def _size(severity: float) -> str:
    return "small" if severity < 0.4 else "moderate" if severity < 0.75 else "large"


def _side(side: int) -> str:
    return "bilateral" if side == BOTH else "left" if side == LEFT else "right"


def _doubt(rng: np.random.Generator, severity: float) -> str:
    """Hedge what is hard to see."""
    if rng.random() > (0.55 if severity < 0.3 else 0.12):
        return ""
    return _pick(rng, ("possible ", "probable ", "questionable ", "suspected "))


def _devices(severity: float, where: Placement) -> str:
    return " and ".join(_NAMES[kind] for kind in where.shown_devices(severity))


def _phrase(name: str, severity: float, where: Placement) -> str:
    side = _side(int(getattr(where, name, BOTH)))
    return {
        "cardiomegaly": f"{_grade(severity)} cardiomegaly",
        "effusion": f"{_size(severity)} {side} pleural effusion" + ("s" if side == "bilateral" else ""),
        "pneumothorax": f"{_size(severity)} {side} pneumothorax",
        "consolidation": f"{side} {where.consolidation_zone} zone consolidation",
        "nodule": f"{side} lung nodule of about {round(16 + 14 * severity)} mm",
        "edema": f"{_grade(severity)} pulmonary edema",
        "atelectasis": f"{side} "
        + ("plate-like" if where.atelectasis_band else "lower lobe")
        + " atelectasis",
    }[name]


def _describe(rng: np.random.Generator, name: str, severity: float, where: Placement) -> str:
    if name == "support_device":
        forms: tuple[str, ...] = ("{} in place.", "{} projecting over the chest.", "Support device: {}.")
        text = _pick(rng, forms).format(_devices(severity, where))
        return text[0].upper() + text[1:]
    what = _doubt(rng, severity) + _phrase(name, severity, where)
    counted = name in ("effusion", "pneumothorax", "nodule")
    article = "a " if counted else ""
    forms = (
        f"There is {article}{what}.",
        f"{what[0].upper()}{what[1:]}.",
        f"{what[0].upper()}{what[1:]} is seen.",
    )
    if name == "effusion" and "bilateral" in what:
        forms = (f"There are {what}.", f"{what[0].upper()}{what[1:]}.")
    return _pick(rng, forms)


def _conclude(rng: np.random.Generator, name: str, severity: float, where: Placement) -> str:
    what = _doubt(rng, severity) + _phrase(name, severity, where)
    return f"{what[0].upper()}{what[1:]}."
