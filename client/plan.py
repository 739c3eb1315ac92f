"""A plan as a site reads it: settings of a run, before any run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.overrides import parse_assignment, read_toml, set_key


def read_plan(file: Path | None, assignments: Sequence[str] = ()) -> RunConfig:
    """Read a plan: a TOML file of settings, then ``key=value`` from the command line.

    The ``plan.toml`` of a run, which also tells digests and versions, is read as the same plan.

    Raises:
        ConfigError: if the file cannot be read or a key or value is wrong.
    """
    tree: dict[str, Any] = {} if file is None else read_toml(file)
    if "config" in tree and "digests" in tree:
        tree = {}
        for key, value in RunConfig.from_flat(read_toml(file)["config"]).to_flat().items():  # type: ignore[arg-type]
            set_key(tree, key, value)
    for assignment in assignments:
        set_key(tree, *parse_assignment(assignment))
    return RunConfig.build(tree)
