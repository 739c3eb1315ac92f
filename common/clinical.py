"""The vocabulary of clinical variables: names, units, plausible ranges and a fixed scale.

Scales are constants, not statistics of the data, so that every site reads a value alike and
none has to tell the others its mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import LabelError, closest


class Variable(NamedTuple):
    """One clinical variable; a value outside [low, high] is a slip of the pen and counts as missing."""

    unit: str
    low: float
    high: float
    centre: float
    """A usual value: what a missing one is replaced by, beside the mark that it is missing."""
    scale: float
    """A usual spread around it."""
    synonyms: tuple[str, ...] = ()


VARIABLES: Mapping[str, Variable] = {
    "age": Variable("years", 0, 120, 60, 20, ("patient age", "age years")),
    "male": Variable("1 or 0", 0, 1, 0.5, 0.5, ("sex male",)),
    "offset": Variable("days since symptoms or admission", -365, 3650, 7, 10, ("offset days",)),
    "temperature": Variable("°C", 30, 45, 37.5, 1.2, ("temp", "body temperature")),
    "heart_rate": Variable("1/min", 20, 250, 85, 20, ("pulse", "hr")),
    "respiratory_rate": Variable("1/min", 4, 80, 20, 6, ("rr",)),
    "systolic_pressure": Variable("mmHg", 40, 280, 125, 20, ("sbp", "systolic blood pressure")),
    "oxygen_saturation": Variable("%", 30, 100, 93, 6, ("spo2", "po2 saturation", "sao2", "o2 saturation")),
    "oxygen_pressure": Variable("mmHg", 15, 600, 75, 25, ("po2", "pao2")),
    "carbon_dioxide_pressure": Variable("mmHg", 10, 150, 40, 9, ("pco2", "paco2")),
    "supplemental_oxygen": Variable("1 or 0", 0, 1, 0.5, 0.5, ("needed supplemental o2",)),
    "leukocytes": Variable("10^9/L", 0.1, 200, 8, 4, ("leukocyte count", "wbc", "white blood cells")),
    "neutrophils": Variable("10^9/L", 0, 150, 6, 4, ("neutrophil count",)),
    "lymphocytes": Variable("10^9/L", 0, 100, 1.3, 0.8, ("lymphocyte count",)),
    "crp": Variable("mg/L", 0, 700, 70, 70, ("c reactive protein",)),
    "ldh": Variable("U/L", 50, 6000, 330, 180, ("lactate dehydrogenase",)),
    "d_dimer": Variable("mg/L", 0, 200, 1.5, 2, ("ddimer",)),
    "ferritin": Variable("ug/L", 1, 50_000, 600, 600, ()),
    "creatinine": Variable("mg/dL", 0.1, 25, 1, 0.7, ()),
    "procalcitonin": Variable("ug/L", 0, 500, 0.5, 1.5, ("pct",)),
}
"""Variable -> how it is read. Units are not converted: a table in other units needs recoding."""


def _key(text: str) -> str:
    return re.sub(r"[\s_\-]+", " ", text.strip().lower())


_LOOKUP = {_key(name): name for name in VARIABLES} | {
    _key(other): name for name, variable in VARIABLES.items() for other in variable.synonyms
}


def canonical_variable(name: str) -> str:
    """Return the vocabulary's name for a clinical variable written any usual way.

    >>> canonical_variable("pO2_saturation"), canonical_variable("D-dimer")
    ('oxygen_saturation', 'd_dimer')

    Raises:
        LabelError: if the name is not in the vocabulary.
    """
    if (key := _key(name)) not in _LOOKUP:
        raise LabelError(
            f"clinical variable {name!r} is not in the vocabulary",
            found=name,
            fix=closest(name, VARIABLES) or "see common/clinical.py for the vocabulary",
        )
    return _LOOKUP[key]


def suggest_variables(columns: Iterable[str]) -> dict[str, str]:
    """Map clinical variables to the columns of a table that carry one of their names.

    >>> suggest_variables(["patient", "WBC", "pO2"])
    {'leukocytes': 'WBC', 'oxygen_pressure': 'pO2'}
    """
    found: dict[str, str] = {}
    for column in columns:
        name = _LOOKUP.get(_key(column))
        if name and name not in found:
            found[name] = column
    return found


def plausible(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return the values with those outside the variable's range as NaN.

    >>> plausible(np.array([37.2, 372.0]), "temperature")
    array([37.2,  nan])
    """
    variable = VARIABLES[name]
    return np.where((values >= variable.low) & (values <= variable.high), values, np.nan)


def scaled(values: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
    """Turn ``[n, V]`` with NaN into what a model reads, ``[n, 2 V]``: scaled values, then masks.

    A missing value is 0, the variable's centre, and its mask is 1: a model may learn what it
    means that a value was not taken.

    >>> scaled(np.array([[80.0], [np.nan]], dtype=np.float32), ["age"])
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    centre = np.array([VARIABLES[name].centre for name in names], dtype=np.float32)
    scale = np.array([VARIABLES[name].scale for name in names], dtype=np.float32)
    missing = np.isnan(values)
    z = np.where(missing, np.float32(0), (values - centre) / scale)
    return np.concatenate([z, missing.astype(np.float32)], axis=1).astype(np.float32)
