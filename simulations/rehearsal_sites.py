"""A throwaway centre and phantom sites that joined it, as real ones do, on this machine's disk alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomli_w

from client.data.source import read_source
from client.gate.approval import approve
from client.gate.policy import Policy, load_policy
from client.join.joining import Welcome, accept_welcome, prepare_site
from client.place import SiteFolder
from client.site import SiteConfig, load_site
from common.config import RunConfig
from common.errors import FedcxrError
from common.files import write_atomic
from common.overrides import read_toml
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site
from server.centre.registry import Registry
from simulations.make_site import make_site
from simulations.phantom.cases import FINDINGS

STUDIES = (150, 50)
"""Of the site in the foreground, whose test studies shall be enough to tell of, and of the others."""
SIDE = 96
_DICOM = (".dcm", ".dicom", "")
_DICOM_LAYOUTS = ("folder", "vindr", "rsna", "siim")
_SCANNERS = ("reference", "portable")


@dataclass(frozen=True)
class PhantomSite:
    """A site of the rehearsal."""

    folder: SiteFolder
    site: SiteConfig
    welcome: Welcome
    node: int


@dataclass(frozen=True)
class Stage:
    """Everybody who takes part."""

    centre: CentreFolder
    sites: tuple[PhantomSite, ...]
    """The one that stands for the real site first."""
    fab_sha256: str
    format: str
    findings: tuple[str, ...]
    unlike: tuple[str, ...]
    """Findings of the real site that no phantom shows."""


def set_the_stage(real: SiteFolder, place: Path) -> Stage:
    """Make a centre and sites in ``place``: one like the real site, the others for company.

    All of them have the real site's policy.toml. Nothing of the real site is changed, and of its
    studies nothing is read but how the images are stored.

    Raises:
        FedcxrError: if the site's settings or policy cannot be read.
    """
    site, policy = load_site(real.settings), load_policy(real.policy)
    own = [*site.labels, *site.text.label]
    allowed = policy.asked.findings or tuple(own) or FINDINGS
    findings = tuple(f for f in FINDINGS if f in (own or FINDINGS) and f in allowed) or FINDINGS[:3]
    kind = _format(site)
    centre = init_centre(place / "centre", "rehearsal", "127.0.0.1:9443")
    others = [n for n in ("east", "west", "south", "north") if n != site.name]
    count = min(max(3, policy.federation.min_sites), 1 + len(others))
    names = [site.name, *others[: count - 1]]
    registry = Registry(centre.registry)
    sites = []
    try:
        for node, name in enumerate(names, 1):
            folder = place / "sites" / name
            studies = min(max(STUDIES[node > 1], 2 * policy.training.min_studies), 300)
            make_site(
                folder,
                name,
                studies,
                node,
                SIDE,
                _SCANNERS[node > 1],
                findings,
                kind,
                prevalence=0.5,
                workers=_cores(),
            )
            _settle(folder / "site.toml", site)
            write_atomic(folder / "policy.toml", real.policy.read_bytes())
            welcome = _join(centre, folder, place / "post")
            registry.set_node_id(name, node)
            at = SiteFolder.of(folder)
            sites.append(PhantomSite(at, load_site(at.settings), welcome, node))
    finally:
        registry.close()
    fab = hashlib.sha256(sites[0].folder.bundle.read_bytes()).hexdigest()
    unlike = tuple(f for f in own if f not in FINDINGS)
    return Stage(centre, tuple(sites), fab, kind, findings, unlike)


def small_plan(policy: Policy, findings: Sequence[str], sites: int) -> RunConfig:
    """Return the smallest plan of two rounds that asks for what a usual one asks for, within a policy.

    Where a policy forbids what every plan needs, the plan asks for it all the same: the rehearsal
    shall show that.
    """
    asked, training = policy.asked, policy.training
    method = "lora" if "lora" in training.methods else training.methods[0]
    return RunConfig.build(
        {
            "data": {"findings": tuple(findings), "image_size": min(SIDE, asked.max_image_size)},
            "pet": {
                "method": method,
                "scope": "last-2",
                "rank": min(4, training.max_rank),
                "bottleneck": min(8, training.max_rank),
            },
            "train": {"batch_size": min(16, training.max_batch_size), "lr": 0.003},
            "strategy": {"max_update_norm": min(100.0, policy.answers.max_update_norm)},
            "rounds": {
                "count": min(2, policy.federation.max_rounds),
                "sites": sites,
                "quorum": max(2, min(sites, policy.federation.min_sites)),
                "deadline": 120.0,
            },
            "wire": {"codec": policy.answers.codecs[0]},
            "evaluate": {
                "local": "local" in asked.stages,
                "matrix": "local" in asked.stages and policy.answers.local_adapter,
                "calibrate": "platt" if "calibrate" in asked.stages else "none",
                "replicates": min(50, asked.max_replicates),
            },
        }
    )


def approve_everywhere(stage: Stage, base_digest: str) -> None:
    """Approve the bundle at every phantom site, as a person would."""
    for site in stage.sites:
        approve(site.folder, site.folder.bundle.read_bytes(), [base_digest], "rehearsal")


def _join(centre: CentreFolder, folder: Path, post: Path) -> Welcome:
    """Go through invitation, request and welcome, as both sides do by hand."""
    name = folder.name
    post.mkdir(exist_ok=True)
    invited = invite_site(centre, name, post / f"{name}.invitation")
    prepared = prepare_site(invited.path, folder)
    admitted = admit_site(centre, prepared.request, post / f"{name}.welcome")
    return accept_welcome(admitted.path, prepared.folder)


def _settle(file: Path, like: SiteConfig) -> None:
    """Give a phantom site what of the real one's settings has to do with the gate and the machine."""
    body = read_toml(file)
    body["evaluate"] = {"min_cell": like.evaluate.min_cell}
    body["device"] = {"name": like.device.name, "threads": like.device.threads}
    write_atomic(file, tomli_w.dumps(body).encode())


def _format(site: SiteConfig) -> Literal["png", "dicom"]:
    """Return how the real site stores its images, by its layout or its table's first path."""
    if site.data.layout != "table":
        return "dicom" if site.data.layout in _DICOM_LAYOUTS else "png"
    try:
        paths = read_source(site).get(site.columns.path)
    except FedcxrError:
        return "png"
    first = "" if paths is None or not len(paths) else str(paths[0])
    return "dicom" if first and Path(first).suffix.lower() in _DICOM else "png"


def _cores() -> int:
    return len(os.sched_getaffinity(0))
