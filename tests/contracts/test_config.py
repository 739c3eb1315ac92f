"""``[tool.flwr.app.config]`` spells every key of RunConfig: Flower rejects overrides it does not know."""

from __future__ import annotations

from typing import Any

import tomli_w
from flwr.common.config import flatten_dict

from common.config import RunConfig


def config_block() -> str:
    """Write RunConfig's defaults the way pyproject.toml spells them."""
    tree: dict[str, Any] = {}
    for key, value in RunConfig().to_flat().items():
        *sections, leaf = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = value
    return tomli_w.dumps({"tool": {"flwr": {"app": {"config": tree}}}})


def test_pyproject_spells_every_key_type_and_default(project: dict[str, Any]) -> None:
    written = flatten_dict(project["tool"]["flwr"]["app"]["config"])
    spelled = {key: (type(value), value) for key, value in written.items()}
    expected = {key: (type(value), value) for key, value in RunConfig().to_flat().items()}
    assert spelled == expected, f"pyproject.toml's block should be:\n\n{config_block()}"


def test_what_flower_hands_over_is_the_default_config(project: dict[str, Any]) -> None:
    flat = flatten_dict(project["tool"]["flwr"]["app"]["config"])
    assert RunConfig.from_flat(flat) == RunConfig()
