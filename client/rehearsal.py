"""Start a rehearsal: a process of its own, since it gives up the network for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from client.gate.policy import load_policy
from client.place import SiteFolder
from client.site import load_site
from common.code import HOUSE

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",  # threads that wait burn what the others need
    "PYTHONUNBUFFERED": "1",
}


def start_rehearsal(place: Path, keep: Path | None) -> int:
    """Rehearse at a site and return the exit code; what is drawn goes to ``keep``, or is removed.

    Raises:
        ConfigError: if there is no site at ``place``, or its settings or policy cannot be read.
    """
    folder = SiteFolder.of(place)
    load_site(folder.settings), load_policy(folder.policy)  # what is wrong with them is said at once
    # -P, so that no folder of the site's passes for one of our packages.
    command = [sys.executable, "-P", "-m", "simulations.rehearse", str(folder.root)]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        command.append(str(keep.resolve()))
    found = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (str(HOUSE), found)))
    return subprocess.run(command, env={**os.environ, **_QUIET, "PYTHONPATH": path}, check=False).returncode
