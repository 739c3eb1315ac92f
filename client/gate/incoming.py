"""The gate on the way in: is an instruction the centre's, for this site, new, and within what is approved?"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from client.gate.approval import current_approval
from client.gate.audit import Audit
from client.gate.plan_check import check_plan
from client.gate.policy import load_policy
from client.place import SiteFolder
from client.site import SiteConfig
from common.code import code_digest
from common.config import RunConfig, Scalar
from common.errors import (
    ApprovalError,
    AuditError,
    ConfigError,
    DigestError,
    EgressError,
    FedcxrError,
    PolicyError,
    ReplayError,
    SignatureError,
)
from common.files import write_atomic
from common.metrics.platt import MOST_EXCHANGES
from common.overrides import shortened
from common.protocol import ROUND_STAGES, Instruction
from common.signing import verify

REPEATED = 600.0
"""Seconds in which the same refusal is counted, not written again."""
MOST_CALIBRATIONS = 2 * MOST_EXCHANGES
"""An answer may be lost on the way and asked for once more; each tells a little of the studies."""
BURST = 30
"""Refusals of one code written in that time, whatever they are; the rest is counted."""


class Centre(Protocol):
    """What the gate needs of a welcome."""

    @property
    def centre_key(self) -> str:
        """The centre's public key, as ``common.signing.public_text`` writes it."""


@dataclass(frozen=True)
class Seen:
    """What a run has had of this site."""

    sequence: int = 0
    """Newest instruction taken."""
    committed: int = 0
    """Newest round the centre has committed, as an instruction taken says."""
    sent: int = 0
    """Bytes of the answers that left."""
    calibrations: int = 0
    """Times it was asked for sums to calibrate by."""


class Incoming:
    """The gate on the way in. One per site; threads may share it."""

    def __init__(self, folder: SiteFolder, site: SiteConfig, welcome: Centre, audit: Audit) -> None:
        self._folder, self._site, self._welcome, self._audit = folder, site, welcome, audit
        self._refusals = _Refusals()
        self._lock = threading.Lock()

    def check(
        self,
        instruction: Instruction,
        run_id: int,
        fab_sha256: str,
        run_config: Mapping[str, Scalar],
        *,
        resumed: bool = False,
    ) -> RunConfig:
        """Return the plan of an instruction that may be followed, and take its number.

        Writes the audit's line ``instruction``, or ``refused`` with the code. A flood of refusals is
        counted, not written line by line. ``resumed`` is for an instruction that this site took before
        it was restarted and has not answered: everything is checked but that its number is new.

        Raises:
            ApprovalError: if nothing is approved, or not this bundle.
            SignatureError: if the centre did not sign it as it stands.
            ReplayError: if it is for another site or run, was seen before, or is of a round that is
                over; or if it is not known what was seen.
            ConfigError: if the plan does not parse.
            DigestError: if code, plan or base are not the ones named.
            PolicyError: if the plan asks for more than policy.toml allows, or the site was asked for sums
                to calibrate by too often.
            AuditError: if that cannot be written down.
        """
        with self._lock:
            try:
                config = self._checked(instruction, run_id, fab_sha256, run_config, resumed)
            except FedcxrError as error:
                self._refuse(instruction, run_id, error)
                raise
            self._audit.append("instruction", **_named(instruction), resumed=resumed)
            return config

    def refuse(self, run_id: int, error: FedcxrError) -> None:
        """Write to the audit that something was refused which is no instruction at all.

        Raises:
            AuditError: if it cannot be written.
        """
        with self._lock:
            self._refuse(None, run_id, error)

    def committed(self, run: int | str) -> int:
        """Return the newest round of a run that the centre has told this site is committed.

        Raises:
            ReplayError: if the record of what was seen is damaged.
        """
        return self._seen().get(str(run), Seen()).committed

    def sent(self, run: int | str) -> int:
        """Return how many bytes of answers of a run were counted so far.

        Raises:
            ReplayError: if the record of what was seen is damaged.
        """
        return self._seen().get(str(run), Seen()).sent

    def count_sent(self, run: int | str, size: int) -> None:
        """Count the bytes of an answer, before it leaves.

        Raises:
            EgressError: if the run's answers have more bytes together than policy.toml allows.
            AuditError: if it cannot be written down.
        """
        with self._lock:
            known = self._seen()
            seen = known.get(str(run), Seen())
            most = load_policy(self._folder.policy).answers.max_run_bytes
            if seen.sent + size > most:
                raise EgressError(
                    "the answers of this run have more bytes together than policy.toml allows",
                    found=f"{seen.sent + size}, answers.max_run_bytes = {most}",
                )
            self._keep({**known, str(run): replace(seen, sent=seen.sent + size)})

    def _checked(
        self,
        instruction: Instruction,
        run_id: int,
        fab_sha256: str,
        run_config: Mapping[str, Scalar],
        resumed: bool,
    ) -> RunConfig:
        approval = current_approval(self._folder)
        if fab_sha256 != approval.fab:
            raise ApprovalError(
                "the run's bundle is not the one approved here",
                found=f"{shortened(fab_sha256, 12)}, approved {approval.fab[:12]}",
                fix="look at the centre's bundle and run: fedcxr-site approve --bundle FILE",
            )
        self._check_signed(instruction)
        seen = self._check_new(instruction, run_id, resumed)
        if instruction.code_digest != code_digest():
            raise DigestError(
                "the centre runs other code than this site",
                found=f"{instruction.code_digest[:12]}, here {code_digest()[:12]}",
                fix="install the same version on both sides",
            )
        config = _plan(run_config)
        if instruction.plan_digest != config.plan_digest(instruction.base_digest, code_digest()):
            raise DigestError(
                "the settings that came with the run are not those the centre signed",
                fix="ask the centre who changed them",
            )
        if instruction.base_digest not in approval.bases:
            raise DigestError(
                "the plan's base is not one approved here",
                found=f"{instruction.base_digest[:12]}, approved {', '.join(b[:12] for b in approval.bases)}",
                fix="run: fedcxr-site approve --plan FILE, with the centre's plan",
            )
        check_plan(load_policy(self._folder.policy), config, self._site, instruction.stage)
        asked = seen.calibrations + (instruction.stage == "calibrate" and not resumed)
        if asked > MOST_CALIBRATIONS:
            raise PolicyError(
                "the site was asked for sums to calibrate by more often than any fit needs",
                found=f"{asked} times, at most {MOST_CALIBRATIONS} in a run",
                fix="ask the centre why; a new run begins to count anew",
            )
        newest = replace(
            seen,
            sequence=max(seen.sequence, instruction.sequence),
            committed=max(seen.committed, instruction.committed),
            calibrations=asked,
        )
        self._keep({**self._seen(), str(run_id): newest})
        return config

    def _check_signed(self, instruction: Instruction) -> None:
        try:
            verify(self._welcome.centre_key, instruction.signed_bytes(), instruction.signature)
        except SignatureError:
            raise SignatureError(
                "the centre did not sign this instruction as it stands",
                found="no signature" if not instruction.signature else "a signature that does not fit",
                fix="ask the centre whether it sent it; if its key has changed, join again",
            ) from None

    def _check_new(self, instruction: Instruction, run_id: int, resumed: bool) -> Seen:
        if instruction.site != self._site.name:
            raise ReplayError(
                "the instruction is for another site",
                found=f"{shortened(instruction.site, 40)!r}, this is {self._site.name!r}",
            )
        if instruction.run != str(run_id):
            raise ReplayError(
                "the instruction is of another run", found=f"{instruction.run}, it came in {run_id}"
            )
        seen = self._seen().get(str(run_id), Seen())
        if instruction.sequence <= seen.sequence and not resumed:
            raise ReplayError(
                "the instruction was seen before, or an older one was kept back",
                found=f"number {instruction.sequence}, taken up to {seen.sequence}",
            )
        over = max(seen.committed, instruction.committed)
        if instruction.stage in ROUND_STAGES and instruction.round <= over:
            raise ReplayError(
                "the instruction is of a round that is over",
                found=f"round {instruction.round}, committed up to {over}",
            )
        return seen

    def _refuse(self, instruction: Instruction | None, run_id: int, error: FedcxrError) -> None:
        facts = {"run": str(run_id)} if instruction is None else _named(instruction)
        identity = hashlib.sha256(json.dumps([error.code, facts], sort_keys=True).encode()).hexdigest()
        repeated = self._refusals.tell(error.code, identity)
        if repeated is None:
            return
        words = {"problem": error.problem, "found": error.found}
        counted = {"not-written": repeated} if repeated else {}
        facts |= {"came-in": str(run_id)} if facts["run"] != str(run_id) else {}
        self._audit.append("refused", code=error.code, **words, **facts, **counted)

    def _seen(self) -> dict[str, Seen]:
        file = self._folder.seen
        try:
            runs = json.loads(file.read_bytes())["runs"]
            known = {str(run): Seen(**entry) for run, entry in runs.items()}
            if all(type(v) is int and v >= 0 for seen in known.values() for v in asdict(seen).values()):
                return known
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise ReplayError(
            f"{file.name} is damaged, so nobody knows which instructions were taken already",
            fix=f"stop the node, move {file} away, and ask the centre to start a new run",
        )

    def _keep(self, known: Mapping[str, Seen]) -> None:
        data = json.dumps({"runs": {run: asdict(seen) for run, seen in known.items()}}, indent=1)
        try:
            write_atomic(self._folder.seen, data.encode() + b"\n")
        except OSError as error:
            raise AuditError(
                "it cannot be written down which instruction was taken, so none is",
                found=error.strerror or "",
                fix="make room on the disk",
            ) from None


class _Refusals:
    """Decides which refusals are written; a flood must not fill the disk."""

    def __init__(self) -> None:
        self._written: dict[str, float] = {}
        self._burst: dict[str, list[float]] = {}
        self._counted: dict[str, int] = {}

    def tell(self, code: str, identity: str) -> int | None:
        """Return how many of this code were counted since one was written, or None: count this one too."""
        now = time.monotonic()
        self._written = {k: t for k, t in self._written.items() if now - t < REPEATED}
        burst = [t for t in self._burst.get(code, []) if now - t < REPEATED]
        self._burst[code] = burst
        if identity in self._written or len(burst) >= BURST:
            self._counted[code] = self._counted.get(code, 0) + 1
            return None
        self._written[identity] = now
        burst.append(now)
        return self._counted.pop(code, 0)


def _plan(run_config: Mapping[str, Scalar]) -> RunConfig:
    try:
        return RunConfig.from_flat(run_config)
    except FedcxrError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ConfigError("the run's settings are not those of a plan") from None


def _named(instruction: Instruction) -> dict[str, Any]:
    """Return the facts by which an instruction is known, none of them longer than it should be."""
    return {
        "run": shortened(instruction.run, 40),
        "stage": instruction.stage,
        "round": instruction.round,
        "sequence": instruction.sequence,
        "site": shortened(instruction.site, 40),
        "plan": shortened(instruction.plan_digest, 64),
        "arm": shortened(instruction.arm, 40),
        "sha256": hashlib.sha256(instruction.signed_bytes()).hexdigest(),
    }
