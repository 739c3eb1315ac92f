"""docs/site.md names every key that site.toml takes, with its default, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from client.site import SiteConfig
from common.config import known_keys


@pytest.fixture(scope="module")
def rows(repository: Path) -> list[list[str]]:
    page = (repository / "docs" / "site.md").read_text(encoding="utf-8")
    table = page.partition("| key | default | meaning |")[2].partition("\n\n")[0]
    return [line.strip("|").split(" | ") for line in table.splitlines()[2:]]


def test_every_key_is_explained_and_no_other(rows: list[list[str]]) -> None:
    told = {re.sub(r"\.[A-Z]+$", "", key) for row in rows for key in re.findall(r"`([^`]+)`", row[0])}
    assert told == set(known_keys(SiteConfig))


def test_defaults_are_as_told(rows: list[list[str]]) -> None:
    for row in rows:
        quoted = [re.findall(r"`([^`]+)`", cell) for cell in row[:2]]
        for key, told in zip(*quoted, strict=False):
            section, _, name = key.rpartition(".")
            model = SiteConfig.model_fields[section].annotation if section else SiteConfig
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                continue
            default = model.model_fields[name].default
            spelled = [str(part) for part in default] if isinstance(default, tuple) else [str(default)]
            shown = quoted[1] if isinstance(default, tuple) else [told]
            assert ", ".join(shown) == ", ".join(spelled), key
