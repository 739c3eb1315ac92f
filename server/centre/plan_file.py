"""A plan as people write it: a TOML of settings, such as an experiment without what is about its sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.errors import ConfigError
from common.overrides import merge, parse_assignment, read_toml, set_key

_NOT_OF_A_PLAN = (
    "title", "description", "sites", "partition", "arms", "thumbnail_baseline", "threads", "gpus", "faults",
    "benchmark",
)  # fmt: skip
"""Keys of an experiment that say how it is simulated and reported."""


@dataclass(frozen=True)
class PlanFile:
    """Settings of a run, and what of the file is no business of a run."""

    config: RunConfig
    left_out: tuple[str, ...]


def read_plan(file: Path, assignments: Sequence[str] = ()) -> PlanFile:
    """Read a plan and lay ``key=value`` assignments on top.

    The file may also be a ``plan.toml`` of an earlier run, or an experiment: the part of it that
    says how sites are simulated is left out. ``model.weights`` is made absolute.

    Raises:
        ConfigError: if the file is missing or not TOML, or a key or value is wrong.
    """
    tree = _tree(file)
    left_out = [key for key in _NOT_OF_A_PLAN if tree.pop(key, None) is not None]
    data = tree.get("data")
    root = data.pop("root", "") if isinstance(data, dict) else ""
    for text in assignments:
        set_key(tree, *parse_assignment(text))
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("weights"), str) and model["weights"]:
        model["weights"] = _weights(model["weights"], file.parent, root)
    return PlanFile(RunConfig.build(tree), (*left_out, *(["data.root"] if root else [])))


def _tree(file: Path, depth: int = 5) -> dict[str, Any]:
    tree = read_toml(file)
    if "digests" in tree and isinstance(tree.get("config"), dict):  # as write_plan wrote it
        nested: dict[str, Any] = {}
        for key, value in tree["config"].items():
            set_key(nested, key, value)
        return nested
    if "series" in tree:
        raise ConfigError(f"{file.name} is a series of experiments", fix="name one of them")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if depth == 0 or not isinstance(base, str):
        raise ConfigError(f"{file.name}: extends is not the name of a plan beside it", found=repr(base)[:60])
    return merge(_tree(file.parent / f"{base}.toml", depth - 1), tree)


def _weights(written: str, folder: Path, root: object) -> str:
    """Return a weights path for a process that stands elsewhere."""
    places = [Path(written).expanduser(), folder / written, Path(str(root)).expanduser() / written]
    return next((str(place.resolve()) for place in places if place.exists()), written)
