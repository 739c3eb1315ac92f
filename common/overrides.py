"""Settings as they are written: TOML files, nested overrides, assignments on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b-c`` (kebab or snake) in a nested dict."""
    *parents, leaf = key.strip().replace("-", "_").split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent!r} is a value, not a section")
    tree[leaf] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``key=value`` from the command line; the value is TOML, or else a plain string.

    >>> parse_assignment("pet.rank=4"), parse_assignment("pet.method=lora")
    (('pet.rank', 4), ('pet.method', 'lora'))
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError("--set takes key=value", found=text, fix="for example --set pet.rank=4")
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return key.strip(), raw.strip()
    return key.strip(), parsed["value"] if len(parsed) == 1 else raw.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: if it is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError:
        raise ConfigError(f"{path}: cannot be read", fix="check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text", fix="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        # Beside its own errors tomllib lets out those of numbers too long and of nesting too deep.
        raise ConfigError(f"{path}: not valid TOML", found=shortened(str(error))) from None


def shortened(text: str, most: int = 100) -> str:
    """Cut what is quoted in a message to one line of bearable length.

    >>> shortened("a" * 9, most=5)
    'aaaa…'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, section by section."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
