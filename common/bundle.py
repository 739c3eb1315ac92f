"""A Flower App Bundle (FAB): its manifest, what is in one, and where one differs from this installation."""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import PurePosixPath
from typing import Any

from common.code import PACKAGES, of_a_run, sources
from common.config import RunConfig
from common.errors import ApprovalError
from common.overrides import shortened

MANIFEST = "pyproject.toml"
LICENSE = "LICENSE"
_CONTENT = ".info/CONTENT"
_COMPONENTS = {"serverapp": "server.app:app", "clientapp": "client.app:app"}
_PUBLISHER = "fedcxr"
_MOST_BYTES = 20_000_000
_MOST_FILES = 2_000
_UNREADABLE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, ValueError, OSError, EOFError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
"""What Python's reader lets out on bytes that somebody else wrote."""


def manifest() -> dict[str, Any]:
    """Return the ``pyproject.toml`` of this installation's bundle.

    A wheel does not carry the repository's, and a bundle needs no more than Flower reads: a name,
    the two components and every key of the run with its default.
    """
    config: dict[str, Any] = {}
    for key, value in RunConfig().to_flat().items():
        section, _, leaf = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[leaf] = value
    included = [*(f"{package}/**/*.py" for package in PACKAGES), *([LICENSE] if licence() else [])]
    app = {
        "publisher": _PUBLISHER,
        "fab-include": included,
        "components": _COMPONENTS,
        "config": config,
    }
    project = {"name": "fedcxr", "version": _version(), "license": "Apache-2.0"}
    return {"project": project, "tool": {"flwr": {"app": app}}}


def installed_files() -> dict[str, bytes]:
    """Return the sources of the installed packages, by the name they have in a bundle."""
    return {name: file.read_bytes() for name, file in sources().items()}


def licence() -> bytes:
    """Return the licence's text as the installation carries it; empty where it does not."""
    try:
        text = distribution("fedcxr").read_text(f"licenses/{LICENSE}")
    except PackageNotFoundError:
        return b""
    return (text or "").encode()


def read_bundle(fab: bytes) -> dict[str, bytes]:
    """Return a bundle's files by name.

    Raises:
        ApprovalError: if it is not a bundle, names a file twice or outside itself, or unpacks to
            more than a bundle can hold.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(names) > _MOST_FILES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise ApprovalError("the bundle unpacks to more than code can be")
            strange = [name for name in names if _strange(name)]
            if strange or len(set(names)) != len(names):
                what = shortened(repr(strange[0])) if strange else "a name that stands there twice"
                raise ApprovalError("the bundle's file names are not those of a bundle", found=what)
            files = {name: archive.read(name) for name in names}
    except _UNREADABLE:
        raise ApprovalError(
            "the file is not a Flower App Bundle", fix="ask the centre for its app.fab"
        ) from None
    if MANIFEST not in files:
        raise ApprovalError("the bundle has no pyproject.toml", fix="ask the centre for its app.fab")
    return files


def bundle_code_digest(fab: bytes) -> str:
    """Return the digest that the code in a bundle has of itself when it runs, as ``code_digest`` makes it.

    Raises:
        ApprovalError: if it is not a bundle.
    """
    files = read_bundle(fab)
    code = [name for name in map(PurePosixPath, files) if of_a_run(name)]
    digest = hashlib.sha256()
    for name in sorted(code, key=lambda name: (PACKAGES.index(name.parts[0]), name)):
        digest.update(f"{name}\0".encode())
        digest.update(files[str(name)])
    return digest.hexdigest()


def differences(fab: bytes) -> list[str]:
    """Say in sentences where a bundle differs from the installed packages; empty: the same code.

    Raises:
        ApprovalError: if it is not a bundle.
    """
    found = read_bundle(fab)
    mine = installed_files()
    code = {name: data for name, data in found.items() if name not in (MANIFEST, LICENSE, _CONTENT)}
    told = [
        f"{name} differs from the installed one" for name in code if code[name] != mine.get(name, code[name])
    ]
    told += [f"{name} is not installed here" for name in code if name not in mine]
    told += [f"{name} is installed here and not in the bundle" for name in mine if name not in code]
    return [*_manifest_differences(found[MANIFEST]), *sorted(told)]


def _manifest_differences(text: bytes) -> list[str]:
    try:
        app = tomllib.loads(text.decode())["tool"]["flwr"]["app"]
        components, config = app["components"], app["config"]
        parts = {**_flat("components", components), **_flat("config", config)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{MANIFEST} is not a manifest of fedcxr"]
    mine = manifest()["tool"]["flwr"]["app"]
    wanted = {**_flat("components", mine["components"]), **_flat("config", mine["config"])}
    told = [
        f"{MANIFEST}: {key} is {shortened(repr(parts.get(key)))}, here {wanted.get(key)!r}"
        for key in sorted({*parts, *wanted})
        if (type(parts.get(key)), parts.get(key)) != (type(wanted.get(key)), wanted.get(key))
    ]
    return [*told, *([f"{MANIFEST}: another publisher"] if app.get("publisher") != _PUBLISHER else [])]


def _flat(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            _flat(f"{prefix}.{key}", value) if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
        )
    return flat


def _strange(name: str) -> bool:
    parts = name.split("/")
    return not name.isprintable() or "\\" in name or name.startswith("/") or bool({"", ".", ".."} & {*parts})


def _version() -> str:
    try:
        return distribution("fedcxr").version
    except PackageNotFoundError:
        return "0"
