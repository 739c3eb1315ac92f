"""``fedcxr-site train-local``: what this site reaches alone, by the code a federation would run here.

Nothing is sent. The baseline stays in the site's state under the digest of its plan, so that a later
run of the same plan compares with it instead of training it again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.data.assess import assess_site
from client.data.pixel_cache import Progress
from client.local import baseline_file, load_local
from client.site import SiteConfig
from client.worker import SiteWorker
from common.code import code_digest
from common.config import RunConfig
from common.errors import DataError, DeploymentError, FedcxrError
from common.metrics.summary import SiteMetrics
from common.protocol import Instruction, metrics_from_wire


@dataclass(frozen=True)
class LocalResult:
    """A site's own baseline and what it scores on the site's test studies."""

    site: str
    plan_digest: str
    studies: dict[str, int]
    """train, validation, test -> studies."""
    metrics: SiteMetrics
    steps: int
    rounds_kept: int
    """Rounds of training in the adapter that was kept."""
    kept_before: bool
    """The baseline of this plan was there already."""
    seconds: float
    file: Path


def train_site(site: SiteConfig, config: RunConfig, progress: Progress | None = None) -> LocalResult:
    """Train the site's own baseline, or take the one of this plan that is there, and measure it.

    Raises:
        DataError: if the site's studies cannot be used, or none of them is for testing.
        ModelError: if the plan's model cannot be built here.
        DeploymentError: if site.toml asks for a GPU that is not there.
        FedcxrError: whatever else stops the worker, in the words it wrote to the site's own log.
    """
    started = time.monotonic()
    check_device(site)
    # The worker says only a code of what fails; what a person can mend is found out here first.
    assess_site(
        site, config.data.findings, config.data.clinical, config.data.image_size, config.data.fit, progress
    )
    worker, flat = SiteWorker(site), config.to_flat()
    base = worker.base_digest(flat)
    plan = config.plan_digest(base, code_digest())
    file = baseline_file(site.data.state, plan)
    kept_before = load_local(file, plan) is not None

    def ask(**what: Any) -> dict[str, Any]:
        return _ask(
            worker, Instruction(plan_digest=plan, code_digest=code_digest(), base_digest=base, **what), flat
        )

    told = ask(stage="enrol")
    studies = {name: int(told[f"{name}-studies"]) for name in ("train", "validation", "test")}
    if not studies["test"]:
        raise DataError(
            "no study is left to test the baseline on",
            found=f"{studies['train']} for training, {studies['validation']} for validation",
            fix="give test a share in data.split of site.toml",
        )
    trained = ask(stage="local")
    measured, _ = metrics_from_wire(ask(stage="evaluate", arm="local"), config.data.findings)
    return LocalResult(
        site=site.name,
        plan_digest=plan,
        studies=studies,
        metrics=measured,
        steps=int(trained["steps"]),
        rounds_kept=int(trained["rounds-kept"]),
        kept_before=kept_before,
        seconds=time.monotonic() - started,
        file=file,
    )


def check_device(site: SiteConfig) -> None:
    """Say before anything is read that a GPU is asked for and not there.

    Raises:
        DeploymentError: if so.
    """
    import torch

    name = site.device.name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= count:
        raise DeploymentError(
            f'site.toml: device.name = "{name}" and PyTorch sees no such GPU',
            found=f"{count} GPUs",
            fix='set device.name = "auto" or "cpu", or install a driver that fits this PyTorch',
        )


def _ask(worker: SiteWorker, instruction: Instruction, flat: dict[str, Any]) -> dict[str, Any]:
    log = worker.site.data.state / "site.log"
    before = log.stat().st_size if log.is_file() else 0
    answer = worker.handle(instruction, flat)
    if answer.code:
        raise _as_told(answer.code, log, before)
    return dict(answer.metrics)


def _as_told(code: str, log: Path, start: int) -> FedcxrError:
    """Turn a worker's code back into the error, with the words it left in the site's own log."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(start)
        lines = stream.read().splitlines()[1:]
    if code == "E_INTERNAL":
        error = FedcxrError("a fault of ours while training", found=lines[-1] if lines else "")
        error.fix = f"report it with the end of {log}"
        return error
    words = [line.removeprefix(code).strip() for line in lines] or [code]
    parts = {"found": "", "fix": ""}
    for line in words[1:]:
        name, _, text = line.partition(":")
        if name in parts:
            parts[name] = text.strip()
    kind = next((kind for kind in _kinds(FedcxrError) if kind.code == code), FedcxrError)
    return kind(words[0], **parts)


def _kinds(root: type[FedcxrError]) -> list[type[FedcxrError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]
