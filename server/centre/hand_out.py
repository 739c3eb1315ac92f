"""Hand out what a run released, once it is shown to be what the run wrote."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, RunError
from common.files import READABLE, write_atomic
from common.model.build import build_model
from common.overrides import read_toml
from server.centre.run_folder import RunFolder
from server.checkpoint import read
from server.ledger import Ledger
from server.merge import MERGED, MERGED_TEXT, write_merged
from server.release import is_release, write_release


@dataclass(frozen=True)
class Released:
    """An adapter that was handed out."""

    folder: Path
    round: int
    sha256: str
    plan_digest: str
    merged: Path | None


def hand_out(run: RunFolder, out: Path | None, merged: bool) -> Released:
    """Verify a run's release and put it into ``out``, or leave it where it is.

    The round it comes from is read and checked too; a release that is no longer what the run wrote
    is written again from there.

    Raises:
        RunError: if the run has released nothing yet.
        CheckpointError: if neither the release nor its round is what the run wrote.
    """
    told = _released(run)
    digests = read_toml(run.path / "plan.toml")["digests"]
    config, plan = run.config(), str(digests["plan"])
    number, expected = int(told["round"]), str(told["sha256"])
    checkpoint = read(run.path / "checkpoints", number, plan)
    place = run.path / "release"
    if not is_release(place, expected):
        shutil.rmtree(place, ignore_errors=True)
        if write_release(build_model(config), checkpoint.state, place, plan) != expected:
            raise CheckpointError(
                f"round {number} of the run {run.name} no longer gives the adapter that was released",
                found=f"expected {expected[:12]}",
                fix="restore runs/ from a backup",
            )
    folder = place if out is None else out
    if out is not None:
        for file in sorted(place.rglob("*")):
            if file.is_file() and file.name not in (MERGED, MERGED_TEXT):
                target = out / file.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, file.read_bytes(), READABLE)
        if not is_release(out, expected):
            raise CheckpointError(f"{out} does not hold what was copied there", fix="see to that disk")
    whole = write_merged(config, str(digests["base"]), plan, folder, folder) if merged else None
    return Released(folder, number, expected, plan, whole)


def _released(run: RunFolder) -> dict[str, Any]:
    if run.ledger.is_file():
        ledger = Ledger(run.ledger)
        try:
            told: dict[str, Any] | None = ledger.get("released")
        finally:
            ledger.close()
        if told:
            return told
    raise RunError(f"the run {run.name} has released nothing yet", fix=f"fedcxr-server resume {run.name}")
