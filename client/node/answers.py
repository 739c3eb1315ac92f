"""Updates a site keeps until the centre has committed their round.

The same question asked again, because a process died or a run was resumed, gets the same bytes
without training again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from pathlib import Path

from client.node import frames
from client.node.frames import BrokenFrame
from common.files import write_atomic
from common.protocol import ROUND_STAGES, Answer, Instruction

MAX_FILES = 64
MAX_BYTES = 2_000_000_000
"""Beyond these the oldest go, however old: a site's disk is not the centre's archive."""
_log = logging.getLogger(__name__)


def question_key(instruction: Instruction) -> str:
    """Name what is asked, whoever asks and how often: plan, stage, round, arm, split and adapter.

    >>> first = Instruction("train", "p", "c", "b", 1, run="7", sequence=3)
    >>> again = dataclasses.replace(first, run="8", sequence=9, committed=0, signature="x")
    >>> question_key(first) == question_key(again), len(question_key(first))
    (True, 64)
    """
    asked = dataclasses.replace(instruction, run="", site="", sequence=0, committed=0, signature="")
    return hashlib.sha256(asked.signed_bytes()).hexdigest()


class KeptAnswers:
    """Finished updates in a folder, one file each; a file is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, instruction: Instruction) -> Answer | None:
        """Return the answer this question had, if it is kept."""
        file = self._file(instruction)
        try:
            with io.BytesIO(file.read_bytes()) as stream:
                facts, arrays = frames.read(stream)
                if facts.get("question") != question_key(instruction):
                    raise BrokenFrame("it answers another question")
                return frames.read_answer(facts, arrays)
        except FileNotFoundError:
            return None
        except (OSError, BrokenFrame) as error:
            _log.warning("a kept update of round %d cannot be read (%s)", instruction.round, error)
            file.unlink(missing_ok=True)
            return None

    def keep(self, instruction: Instruction, answer: Answer) -> None:
        """Keep a finished update; where the disk is full, it is only not kept."""
        if instruction.stage not in ROUND_STAGES or answer.code or answer.update is None:
            return
        data = frames.answer(answer, question=question_key(instruction))
        try:
            write_atomic(self._file(instruction), data)
        except OSError as error:
            _log.warning("the update of round %d is not kept: %s", instruction.round, error.strerror)
        self._bound()

    def forget(self, plan_digest: str, committed: int) -> int:
        """Drop the updates of a plan's rounds up to ``committed``; returns how many there were."""
        gone = [f for f in self._files() if f.name.startswith(plan_digest[:16]) and _round(f) <= committed]
        for file in gone:
            file.unlink(missing_ok=True)
        if gone:
            _log.info("round %d is committed: %d kept updates are no longer needed", committed, len(gone))
        return len(gone)

    def waiting(self) -> list[tuple[str, int, int]]:
        """List what is kept: the plan's digest (its first 16 digits), the round, the bytes."""
        return [(f.name[:16], _round(f), f.stat().st_size) for f in self._files()]

    def _bound(self) -> None:
        files = sorted(self._files(), key=lambda f: f.stat().st_mtime)
        while len(files) > 1 and (len(files) > MAX_FILES or sum(f.stat().st_size for f in files) > MAX_BYTES):
            _log.warning("%s is dropped: more is kept than there is room for", files[0].name)
            files.pop(0).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.answer"))

    def _file(self, instruction: Instruction) -> Path:
        key = question_key(instruction)[:32]
        return self.folder / f"{instruction.plan_digest[:16]}-{instruction.round:06d}-{key}.answer"


def _round(file: Path) -> int:
    return int(file.name.split("-")[1])
