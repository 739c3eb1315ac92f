"""The probabilities behind a cell's figures, kept so that its test patients can be drawn again.

A hospital's scores stay there; in a simulation all sites are this machine's own. Patients are numbered,
never named.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.files import write_atomic
from common.metrics.bootstrap import patient_codes
from common.protocol import OWN_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.data.dataset import SiteData
    from common.protocol import Instruction

FILE = "scores.safetensors"
_LABELS, _PATIENTS = "labels", "patients"


@dataclass(frozen=True)
class Scores:
    """One model on one site's test studies."""

    probabilities: NDArray[np.float32]
    """``[n, F]``"""
    labels: NDArray[np.float32]
    """``[n, F]``: 1, 0, NaN not annotated."""
    patients: NDArray[np.int64]
    """``[n]``: numbers, by first appearance."""


class Listener:
    """Hears what the sites of this process measure while a run goes on."""

    def __init__(self) -> None:
        self._heard: dict[str, dict[str, NDArray[Any]]] = {}

    @contextmanager
    def at(self, sites: Mapping[str, Path]) -> Iterator[None]:
        """Listen at the workers of these sites until the block ends."""
        from client.app import worker_for

        workers = [worker_for(file) for file in sites.values()]
        for worker in workers:
            worker.measured = lambda *told, site=worker.site.name: self._hear(site, *told)
        try:
            yield
        finally:
            for worker in workers:
                worker.measured = None

    def _hear(
        self,
        site: str,
        asked: Instruction,
        probabilities: NDArray[Any],
        data: SiteData,
        rows: NDArray[np.int64],
    ) -> None:
        if asked.split != "test" or asked.arm.startswith(OWN_MODEL):
            return
        # Runs within a run, such as the pooled reference, have plans of their own.
        of_plan = self._heard.setdefault(asked.plan_digest, {})
        of_plan[f"{asked.arm}/{site}"] = np.asarray(probabilities, dtype=np.float32)
        of_plan[f"{_LABELS}/{site}"] = data.labels[rows]
        of_plan[f"{_PATIENTS}/{site}"] = patient_codes(data.patients[rows].tolist()).astype(np.int64)

    def write(self, plan_digest: str, folder: Path) -> None:
        """Write what was measured under a plan to ``folder``."""
        arrays = {name: np.ascontiguousarray(a) for name, a in self._heard.get(plan_digest, {}).items()}
        write_atomic(folder / FILE, save(arrays))


def read_scores(folder: Path) -> dict[tuple[str, str], Scores]:
    """Return (arm, site) -> scores of a cell; nothing where they cannot be read."""
    try:
        arrays = load_file(folder / FILE)
    except (OSError, SafetensorError):
        return {}
    found = {}
    for name, probabilities in arrays.items():
        arm, _, site = name.rpartition("/")
        if arm not in (_LABELS, _PATIENTS):
            labels, patients = arrays[f"{_LABELS}/{site}"], arrays[f"{_PATIENTS}/{site}"]
            found[arm, site] = Scores(probabilities, labels, patients)
    return found
