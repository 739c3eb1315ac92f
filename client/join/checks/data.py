"""The site's studies and the folders that caches and state go to. Counts and codes, nothing of a patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from client.data.columns import column, read_columns
from client.data.decoder_process import Limits
from client.data.folder import walk
from client.data.labels import annotated_findings, read_labels
from client.data.reasons import CAUSES
from client.data.root import Root
from client.data.source import read_source
from client.data.workers import Workers
from client.join.checks.case import Case, Outcome, broken, failure, ok, size, skipped, warning
from client.join.checks.places import free_bytes, is_remote, why_not_writable
from client.site import SiteConfig
from common.errors import FedcxrError

SAMPLE = 12
"""Images decoded."""
_LOOKED_AT = 5_000
"""Files of a folder that the sample is drawn from."""
_SIDE = 64
_ROOM = 500_000_000
"""Bytes that models, logs and updates take over a long run."""
_LEAST = 200_000_000
"""Bytes under which a node takes no instruction (`client.node.seam.MIN_FREE`)."""
_PER_IMAGE = 3 * 224 * 224
"""Bytes of an image in the caches: pixels of a large plan, activations of a small one."""


def check_studies(case: Case) -> Iterator[Outcome]:
    """The table or folder of studies, its labels, room for their caches, and a few of the images."""
    site = case.site
    if not isinstance(site, SiteConfig):
        yield skipped("studies", "site.toml cannot be read.")
        return
    try:
        paths, told = _paths(site)
    except FedcxrError as error:
        yield broken("studies", error, "correct site.toml, or run: fedcxr-site index")
        return
    yield ok("studies", told)
    room, needed = free_bytes(site.data.cache), len(paths) * _PER_IMAGE
    if room < needed:
        yield warning(
            "cache folder",
            f"{size(room)} free, and decoded images and activations of {len(paths)} may take {size(needed)}.",
            "make room, or set data.cache to a larger disk",
        )
    yield from _images(site, paths)


def check_folders(case: Case) -> Iterator[Outcome]:
    """Cache, state and the node's own folder: writable, local, and with room."""
    site = case.site
    if isinstance(site, SiteConfig):
        yield _folder("cache folder", site.data.cache, "data.cache")
        yield _folder("state folder", site.data.state, "data.state")
    yield _folder("node folder", case.folder.outbox, "the site's folder")


def _paths(site: SiteConfig) -> tuple[Sequence[str], str]:
    """Return the images' paths and one sentence; labels are read too, where there are any.

    Raises:
        DataError: if the table or the folder cannot be used.
    """
    from common.errors import TableError

    data, names = site.data, site.columns
    if data.layout == "folder":
        if not data.root.is_dir():
            raise TableError("site.toml: data.root is not a folder", fix="mount it, or set data.root")
        paths = list(islice(walk(data.root, (data.cache, data.state)), _LOOKED_AT))
        if not paths:
            raise TableError("site.toml: data.root holds no image file", fix="mount it, or set data.root")
        more = " or more" if len(paths) == _LOOKED_AT else ""
        told = f"{len(paths)}{more} files that may be images"
        if data.table is not None:
            columns = read_columns(data.table)
            keys = column(columns, getattr(names, data.join), f"columns.{data.join}", data.source)
            for source in site.labels.values():
                column(columns, source.column, "labels", data.source)
            told += f", {len(keys)} rows of labels"
        return paths, f"{told}."
    columns = read_source(site)
    if names.path not in columns and names.patient not in columns:
        raise TableError(
            f"{data.source} has neither a column {names.path!r} nor {names.patient!r}",
            fix="see that its first line names the columns, and set columns.path and columns.patient",
        )
    found = column(columns, names.path, "columns.path", data.source)
    column(columns, names.patient, "columns.patient", data.source)
    findings = annotated_findings(site, columns)
    read_labels(columns, np.arange(len(found)), site, [f for f in findings if f not in site.text.label])
    return found.tolist(), f"{len(found)} rows, {len(findings)} findings annotated."


def _images(site: SiteConfig, paths: Sequence[str]) -> Iterator[Outcome]:
    """Decode a few images, in a process that a hostile one may bring down."""
    root = Root(site.data.root)
    drawn = np.random.default_rng(0).choice(len(paths), min(SAMPLE, len(paths)), replace=False).tolist()
    inside = [paths[i] for i in drawn if root.holds(paths[i])]
    codes = Counter(["path"] * (len(drawn) - len(inside)))
    files = [site.data.root / path for path in inside]
    with Workers(1, Limits(seconds=3)) as workers:
        for facts, _ in workers.read(files, _SIDE, "crop", site.data.burned_in):
            codes[facts.reason] += 1
    read = codes.pop("", 0)
    if not codes:
        yield ok("images", f"{read} of {len(drawn)} drawn images can be read.")
        return
    listed = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    worst = codes.most_common(1)[0][0]
    told = f"{len(drawn) - read} of {len(drawn)} drawn images cannot be read ({listed})."
    level = failure if len(drawn) - read > site.data.max_quarantined * len(drawn) else warning
    yield level("images", told, f"{worst}: {CAUSES[worst].remedy}; fedcxr-site index lists them all")


def _folder(check: str, folder: Path, key: str) -> Outcome:
    if why := why_not_writable(folder):
        return failure(
            check, f"{folder} cannot be written: {why}.", f"give this account the right to, or set {key}"
        )
    free = free_bytes(folder)
    if free < _LEAST:
        told = f"the disk of {folder} is full: {size(free)} free."
        return failure(check, told, f"make room, or move {key}")
    if free < _ROOM:
        return warning(check, f"{size(free)} free in {folder}, {size(_ROOM)} are used in time.", "make room")
    if is_remote(folder):
        return warning(
            check,
            f"{folder} lies on a network share: slow, and a lock or a flush may mean little there.",
            f"move {key} to a local disk",
        )
    return ok(check, f"writable, {size(free)} free.")
