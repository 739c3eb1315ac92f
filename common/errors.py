"""The exception tree: every failure a person can act on, each with a stable code.

    FedcxrError                 exit
    ├── ConfigError    E_CONFIG      2   a key, a value or a file of settings
    ├── DataError      E_DATA        3   studies and tables at a site
    │   ├── TableError     E_TABLE       the table itself: missing, unreadable, a column absent
    │   ├── LabelError     E_LABELS      a label column or value
    │   ├── ImageError     E_IMAGE       one image; quarantined, never fatal by itself
    │   └── SplitError     E_SPLIT       patients or images shared between splits
    ├── ModelError     E_MODEL       4   architecture or adapter definition
    │   ├── WeightsError   E_WEIGHTS     a weights file or folder
    │   ├── TargetError    E_TARGET      a PET target pattern that matches nothing
    │   └── DigestError    E_DIGEST      base, plan or code differ from what was agreed
    ├── UpdateError    E_UPDATE      5   an update that may not touch the model
    │   ├── SchemaError    E_SCHEMA      names, shapes or dtypes
    │   ├── NonFiniteError E_NONFINITE   NaN or infinity
    │   ├── NormError      E_NORM        larger than the plan allows
    │   └── WeightError    E_WEIGHT      num-examples absent, not positive, or beyond the cap
    ├── RunError       E_RUN         6   the federation
    │   ├── QuorumError    E_QUORUM      too few sites returned an admissible update
    │   ├── CheckpointError E_CHECKPOINT a checkpoint is missing, damaged or of another plan
    │   └── SiteError      E_SITE        a site answered with an error code
    ├── RefusedError   E_REFUSED     7   a site's own gate said no
    │   ├── PolicyError    E_POLICY      a plan asks for more than policy.toml allows
    │   ├── ApprovalError  E_APPROVAL    code, policy or base that nobody at the site approved
    │   ├── SignatureError E_SIGNATURE   an instruction the centre did not sign
    │   ├── ReplayError    E_REPLAY      an instruction seen before, of a round that is over, or
    │   │                                of another run or site
    │   ├── EgressError    E_EGRESS      an answer that may not leave
    │   └── AuditError     E_AUDIT       the record of what left is damaged or cannot be written
    └── DeploymentError E_DEPLOYMENT 8   processes, keys, certificates and addresses
        ├── CredentialError E_CREDENTIAL a key, certificate, invitation or request does not fit
        ├── UnreachableError E_UNREACHABLE the other end does not answer
        └── WorkerError    E_WORKER      a site's worker process died or did not answer

Codes cross the boundary between site and server; messages stay where they were raised.
"""

from __future__ import annotations


class FedcxrError(Exception):
    """A failure with a stable code and, where known, what was found and how to mend it."""

    code = "E_INTERNAL"
    exit_code = 1

    def __init__(self, problem: str, *, found: str = "", fix: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        """Lay the parts out under the code, one line each.

        >>> print(ConfigError("pet.rank must be at least 1", found="0", fix="set pet.rank = 8"))
        E_CONFIG  pet.rank must be at least 1
                  found: 0
                  fix:   set pet.rank = 8
        """
        indent = " " * (len(self.code) + 2)
        lines = [f"{self.code}  {self.problem}"]
        if self.found:
            lines.append(f"{indent}found: {self.found}")
        if self.fix:
            lines.append(f"{indent}fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the parts when an engine carries the exception between processes."""
        return (_rebuild, (type(self), self.problem, self.found, self.fix))


def _rebuild(kind: type[FedcxrError], problem: str, found: str, fix: str) -> FedcxrError:
    return kind(problem, found=found, fix=fix)


class ConfigError(FedcxrError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "E_CONFIG"
    exit_code = 2


class DataError(FedcxrError):
    """A site's studies cannot be used as they are."""

    code = "E_DATA"
    exit_code = 3


class TableError(DataError):
    """The table of studies is missing, unreadable or lacks a column."""

    code = "E_TABLE"


class LabelError(DataError):
    """A label column or one of its values is not usable."""

    code = "E_LABELS"


class ImageError(DataError):
    """One image cannot be decoded; the study is quarantined with this code."""

    code = "E_IMAGE"


class SplitError(DataError):
    """A patient or an image stands in more than one split."""

    code = "E_SPLIT"


class ModelError(FedcxrError):
    """The model or adapter asked for cannot be built."""

    code = "E_MODEL"
    exit_code = 4


class WeightsError(ModelError):
    """A weights file or folder is missing or does not fit the architecture."""

    code = "E_WEIGHTS"


class TargetError(ModelError):
    """A PET target pattern matches no module of the backbone."""

    code = "E_TARGET"


class DigestError(ModelError):
    """Base, plan or code differ from what the other side uses."""

    code = "E_DIGEST"


class UpdateError(FedcxrError):
    """A site's update may not touch the model."""

    code = "E_UPDATE"
    exit_code = 5


class SchemaError(UpdateError):
    """Tensor names, shapes or dtypes differ from the adapter's schema."""

    code = "E_SCHEMA"


class NonFiniteError(UpdateError):
    """A value is NaN or infinite."""

    code = "E_NONFINITE"


class NormError(UpdateError):
    """The update is larger than the plan allows."""

    code = "E_NORM"


class WeightError(UpdateError):
    """num-examples is absent, not positive, or beyond what the plan allows."""

    code = "E_WEIGHT"


class RunError(FedcxrError):
    """The federation cannot go on."""

    code = "E_RUN"
    exit_code = 6


class QuorumError(RunError):
    """Too few sites returned an admissible update."""

    code = "E_QUORUM"


class CheckpointError(RunError):
    """A checkpoint is missing, damaged or belongs to another plan."""

    code = "E_CHECKPOINT"


class SiteError(RunError):
    """A site answered with an error code instead of a result."""

    code = "E_SITE"


class RefusedError(FedcxrError):
    """A site's own gate said no."""

    code = "E_REFUSED"
    exit_code = 7


class PolicyError(RefusedError):
    """A plan asks for more than this site's policy allows."""

    code = "E_POLICY"


class ApprovalError(RefusedError):
    """Code, policy or base differ from what somebody at this site approved."""

    code = "E_APPROVAL"


class SignatureError(RefusedError):
    """The centre did not sign this, or not as it stands."""

    code = "E_SIGNATURE"


class ReplayError(RefusedError):
    """An instruction was seen before, or is of a round, run or site that it is not for."""

    code = "E_REPLAY"


class EgressError(RefusedError):
    """An answer holds what may not leave this site."""

    code = "E_EGRESS"


class AuditError(RefusedError):
    """The record of what left is damaged, or cannot be written; nothing leaves without it."""

    code = "E_AUDIT"


class DeploymentError(FedcxrError):
    """A process, key, certificate or address is not as a deployment needs it."""

    code = "E_DEPLOYMENT"
    exit_code = 8


class CredentialError(DeploymentError):
    """A key, certificate, invitation, request or welcome is missing, damaged or not the right one."""

    code = "E_CREDENTIAL"


class UnreachableError(DeploymentError):
    """The other end does not answer."""

    code = "E_UNREACHABLE"


class WorkerError(DeploymentError):
    """A site's worker process died or did not answer."""

    code = "E_WORKER"


def closest(name: str, known: object) -> str:
    """Return ``did you mean 'x'?`` for the nearest of ``known``, or an empty string.

    >>> closest("pet.rnak", ["pet.rank", "pet.scope"])
    "did you mean 'pet.rank'?"
    """
    from difflib import get_close_matches

    matches = get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)  # type: ignore[attr-defined]
    return f"did you mean {matches[0]!r}?" if matches else ""
