"""The ServerApp: it reads the plan from the run's config and carries it out."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import RunConfig
from server.plan import run_plan

app = ServerApp()

RUN_FOLDER = "FEDCXR_RUN"
"""Environment variable: the folder a run is written to; default ``runs/RUN-ID``."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan in the context's run_config."""
    folder = os.environ.get(RUN_FOLDER) or f"runs/{context.run_id}"
    run_plan(grid, RunConfig.from_flat(context.run_config), Path(folder))
