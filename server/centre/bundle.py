"""Build the Flower App Bundle a centre runs, from the packages that are installed."""

from __future__ import annotations

import hashlib

import tomli_w
from flwr.cli.build import build_fab_from_files

from common.bundle import LICENSE, MANIFEST, installed_files, licence, manifest, read_bundle
from common.errors import DeploymentError


def build_bundle() -> bytes:
    """Return a bundle of the installed client, common and server.

    The bytes depend on the code alone, so that a site that approved a bundle has approved every
    later build of the same code. It works from a wheel as from a checkout.

    Raises:
        DeploymentError: if Flower does not take what is installed.
    """
    files: dict[str, bytes] = {MANIFEST: tomli_w.dumps(manifest()).encode(), **installed_files()}
    if text := licence():
        files[LICENSE] = text
    try:
        return build_fab_from_files(files)[0]
    except ValueError as error:
        raise DeploymentError("no bundle can be built of what is installed", found=str(error)[:300]) from None


def bundle_files(fab: bytes) -> dict[str, bytes]:
    """Return a bundle's files by name."""
    return read_bundle(fab)


def bundle_digest(fab: bytes) -> str:
    """Return the SHA-256 that sites approve."""
    return hashlib.sha256(fab).hexdigest()
