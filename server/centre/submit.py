"""Submit a run to Flower, and again after it was broken off; what is asked is checked before."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from common.bundle import bundle_code_digest
from common.codec import most_bytes
from common.config import RunConfig
from common.errors import ConfigError, RunError
from common.files import write_atomic
from common.model.build import CxrModel
from common.phase import first_of_each_phase, trained_count, trained_names
from server.centre.bundle import build_bundle, bundle_digest
from server.centre.control import Control
from server.centre.folder import RUN_NAME, CentreFolder
from server.centre.registry import RegisteredSite, Registry
from server.centre.run_folder import RunFolder, run_folders
from server.plan import write_plan
from server.plan_model import model_of

_BUNDLE = "app.fab"
HEARD_LATELY = 120.0
"""Seconds since a site's node last called, below which it counts as connected."""


@dataclass(frozen=True)
class Proposal:
    """A plan that has been checked as far as this centre can, and what it would ask of sites."""

    config: RunConfig
    fab: bytes
    bundle_sha256: str
    base_digest: str
    code_digest: str
    plan_digest: str
    trained_parameters: int
    down: int
    """Bytes of the adapter that each site gets in a round, without Flower's wrapping."""
    up: int
    """Bytes of the update that each site sends in a round, at most."""
    admitted: tuple[RegisteredSite, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """What sites are asked, in order."""
        optional = {
            "local": self.config.evaluate.local,
            "pretrain": self.config.pretrain.rounds > 0,
            "calibrate": self.config.evaluate.calibrate != "none",
            "personalise": self.config.personalise.method != "none",
        }
        stages = ("enrol", "local", "pretrain", "train", "calibrate", "personalise", "evaluate")
        return tuple(stage for stage in stages if optional.get(stage, True))

    def absent(self, now: float | None = None) -> list[str]:
        """Return the admitted sites that have not been heard lately."""
        now = time.time() if now is None else now
        return [s.name for s in self.admitted if s.heard_at is None or now - s.heard_at > HEARD_LATELY]


def propose(centre: CentreFolder, config: RunConfig, bundle: Path | None = None) -> Proposal:
    """Check a plan completely; where it does not say how many sites it waits for, all admitted ones.

    Raises:
        ConfigError: if settings do not go together, or no site is admitted.
        ModelError: if the model cannot be built here.
    """
    with Registry(centre.registry) as registry:
        admitted = tuple(site for site in registry.sites() if site.state == "admitted")
    if not admitted:
        raise ConfigError("no site is admitted at this centre", fix="fedcxr-server invite SITE")
    if not config.rounds.sites:
        rounds = config.rounds.model_copy(update={"sites": len(admitted)})
        config = config.model_copy(update={"rounds": rounds})
    if max(config.rounds.quorum, config.rounds.sites) > len(admitted):
        raise ConfigError(
            "the plan asks for more sites than are admitted",
            found=f"rounds.sites {config.rounds.sites}, rounds.quorum {config.rounds.quorum}, "
            f"{len(admitted)} admitted",
            fix="lower both, or admit more sites",
        )
    model = model_of(config)
    fab = build_bundle() if bundle is None else _read(bundle)
    code = bundle_code_digest(fab)
    return Proposal(
        config=config,
        fab=fab,
        bundle_sha256=bundle_digest(fab),
        base_digest=model.base_digest,
        code_digest=code,
        plan_digest=config.plan_digest(model.base_digest, code),
        trained_parameters=trained_count(model.schema, config),
        down=4 * model.schema.numel,
        up=max(_update_bytes(model, config, number) for number in first_of_each_phase(config)),
        admitted=admitted,
    )


def free_name(centre: CentreFolder, plan: Path) -> str:
    """Return a name for a run of a plan file that no run has yet.

    Raises:
        ConfigError: if the file's name is no name for a run.
    """
    stem = plan.stem.lower().replace(" ", "-").replace(".", "-")
    taken = {folder.name for folder in run_folders(centre)}
    for name in (stem, *(f"{stem}-{count}" for count in range(2, 10_000))):
        if name not in taken:
            centre.run(name)
            return name
    raise ConfigError("there are too many runs of that name", fix="--name another")


def check_name(centre: CentreFolder, name: str) -> None:
    """Refuse a name that is no name, or that a run has.

    Raises:
        ConfigError: if it is either.
    """
    if not RUN_NAME.match(name) or centre.run(name).exists():
        raise ConfigError(
            f"there is a run {name!r} already" if RUN_NAME.match(name) else "that is no name for a run",
            found=repr(name)[:60],
            fix=f"--name another, or: fedcxr-server resume {name}",
        )


def submit(centre: CentreFolder, control: Control, proposal: Proposal, name: str) -> RunFolder:
    """Make a run's folder and hand it to Flower.

    Raises:
        DeploymentError: if the centre does not take it; the folder stays and can be resumed.
    """
    run = RunFolder(centre.run(name))
    write_plan(proposal.config, proposal.base_digest, run.path, proposal.code_digest)
    write_atomic(run.path / _BUNDLE, proposal.fab)
    run.add_flower_run(control.start_run(proposal.fab, proposal.config))
    return run


def resume(control: Control, run: RunFolder) -> None:
    """Hand a broken-off run to Flower again, to go on from its last committed round.

    Raises:
        RunError: if it is finished, or still runs.
        DeploymentError: if the centre does not take it.
        CheckpointError: if the code, the base or the settings are no longer the run's.
    """
    if run.outcome() == "finished":
        raise RunError(
            f"the run {run.name} is finished",
            fix=f"fedcxr-server release {run.name}, or go back in it first: fedcxr-server rollback ROUND",
        )
    end_the_dead(control, run)
    config = run.config()
    fab = _bundle_of(run)
    write_plan(config, model_of(config).base_digest, run.path, bundle_code_digest(fab))
    if run.ledger.is_file():
        run.tell("submitted", "handed to Flower again")
    run.add_flower_run(control.start_run(fab, config))


def stop(control: Control, run: RunFolder) -> bool:
    """End a run that goes on; False: it was over already.

    Raises:
        DeploymentError: if the centre cannot be reached.
    """
    live = [number for number in run.flower_runs() if not control.run(number).over]
    for number in live:
        control.stop_run(number)
    if not live or run.outcome() == "finished":
        return False
    run.tell("stopped", "stopped from the centre; committed rounds are kept")
    return True


def end_the_dead(control: Control, run: RunFolder) -> None:
    """Make sure that nobody works on a run: what is dead is ended, what lives is an error.

    Flower notices a dead ServerApp only after a minute; that nobody holds the folder shows it at once.

    Raises:
        RunError: if the run still goes on.
    """
    if run.at_work:
        raise _still_runs(run)
    served = run.served_by()
    for number in run.flower_runs():
        if not control.run(number).over:
            if number != served:
                raise _still_runs(run)
            control.stop_run(number)


def _still_runs(run: RunFolder) -> RunError:
    return RunError(f"the run {run.name} still goes on", fix=f"fedcxr-server status {run.name}, or stop it")


def _bundle_of(run: RunFolder) -> bytes:
    """Return the run's own bundle while it is the installed code, so that all of a run is one code."""
    kept = run.path / _BUNDLE
    return kept.read_bytes() if kept.is_file() else build_bundle()


def _update_bytes(model: CxrModel, config: RunConfig, number: int) -> int:
    names = trained_names(model.schema, config, number)
    return most_bytes(model.schema.select(names).numel, config.wire)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", found=error.strerror or "") from None
