"""What every command shares: documented exit codes, and errors without tracebacks."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import (
    ConfigError,
    DataError,
    DeploymentError,
    FedcxrError,
    ModelError,
    RefusedError,
    RunError,
    UpdateError,
)

EXIT_CODES = {
    0: "done",
    FedcxrError.exit_code: "a fault of ours, please report it",
    ConfigError.exit_code: "a setting or a command line is wrong",
    DataError.exit_code: "a site's table, labels or images cannot be used",
    ModelError.exit_code: "model, weights or PET targets do not fit",
    UpdateError.exit_code: "an update was not admissible",
    RunError.exit_code: "the federation could not go on, committed rounds are kept",
    RefusedError.exit_code: "a site's own gate refused it",
    DeploymentError.exit_code: "a process, key, certificate or address is not as it should be",
    130: "interrupted, what was done is kept",
}


def exit_codes() -> str:
    """Return the exit codes as one paragraph for ``--help``."""
    return "Exit codes: " + "; ".join(f"{code} {what}" for code, what in EXIT_CODES.items()) + "."


@contextmanager
def fail_clearly(as_json: bool = False) -> Iterator[None]:
    """Turn every failure into one clear message and its exit code; no traceback reaches a user."""
    try:
        yield
    except FedcxrError as error:
        if as_json:
            facts = {"kind": "error", "code": error.code, "text": error.problem}
            sys.stdout.write(json.dumps({**facts, "found": error.found, "fix": error.fix}) + "\n")
        else:
            sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was done is kept: run it again to go on (a run with --resume)\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read the output, such as head, has seen enough; Python must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:  # noqa: BLE001  (no traceback reaches a user)
        descriptor, file = tempfile.mkstemp(prefix="fedcxr-fault-", suffix=".log")
        with os.fdopen(descriptor, "w") as stream:
            stream.write(traceback.format_exc())
        fault = FedcxrError(
            f"a fault of ours: {type(error).__name__}",
            found=f"details in {file} on this machine",
            fix="report it with the command; what is committed is kept",
        )
        sys.stderr.write(f"{fault}\n")
        raise SystemExit(fault.exit_code) from None
