"""The ServerApp: it reads the plan from the run's config and carries it out."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import RunConfig
from server.centre.folder import CENTRE, CentreFolder
from server.plan import run_plan

app = ServerApp()

RUN_FOLDER = "FEDCXR_RUN"
"""Environment variable: the folder a run is written to; default ``runs/RUN-ID``."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan in the context's run_config: at a centre in the run's folder there, else in one given."""
    config = RunConfig.from_flat(context.run_config)
    folder = os.environ.get(RUN_FOLDER)
    if folder is None and CENTRE in os.environ:
        from server.centre.session import carry_out

        carry_out(grid, context.run_id, config, CentreFolder.find(None))
    else:
        run_plan(grid, config, Path(folder or f"runs/{context.run_id}"))
