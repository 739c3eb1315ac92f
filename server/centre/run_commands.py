"""``fedcxr-server start``, ``run``, ``status``, ``resume``, ``rollback``, ``release`` and ``stop``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from server.centre.control import Control
    from server.centre.folder import CentreFolder
    from server.centre.run_folder import RunFolder
    from server.centre.submit import Proposal

Centre = Annotated[
    Path | None,
    typer.Option("--centre", help="The centre's folder; else FEDCXR_CENTRE, or the working folder."),
]
Run = Annotated[str | None, typer.Argument(help="The run's name; else the one submitted last.")]
_COMMON_LEAST = 2
"""Least number of sites in an average that a site's policy.toml asks for as it is first written."""
Detach = Annotated[bool, typer.Option("--detach", help="Return once it is submitted; status tells the rest.")]


def start(
    centre: Centre = None,
    no_monitor: Annotated[
        bool, typer.Option("--no-monitor", help="Leave the page away that shows the runs.")
    ] = False,
) -> None:
    """Run the centre: the SuperLink behind its gateway, whatever carries out the runs, the monitor.

    Stays in the foreground, starts again what dies, and stops cleanly on Ctrl-C or SIGTERM. Sites
    then connect by themselves. The monitor's page is for this machine alone, unless centre.toml
    says otherwise.
    """
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.start import start_centre

        raise SystemExit(start_centre(CentreFolder.find(centre), _say, monitor=not no_monitor))


def run(
    plan: Annotated[Path, typer.Argument(help="TOML of settings; keys that are absent keep their defaults.")],
    name: Annotated[str, typer.Option("--name", help="The run's name; else made of the plan's.")] = "",
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the plan, such as pet.rank=4; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before submitting.")] = False,
    detach: Detach = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Run this bundle instead of the installed code.")
    ] = None,
    centre: Centre = None,
) -> None:
    """Check a plan, show who will be asked what, submit it, and follow it to the end.

    Ctrl-C stops the following and leaves the run to go on. Sites decide by their own policy and
    approvals whether they take part.
    """
    with fail_clearly():
        from server.centre.control import reach_control
        from server.centre.folder import CentreFolder
        from server.centre.plan_file import read_plan
        from server.centre.submit import check_name, free_name, propose, submit

        folder = CentreFolder.find(centre)
        read = read_plan(plan, assign or ())
        if name:
            check_name(folder, name)
        named = name or free_name(folder, plan)
        with reach_control(folder) as control:
            control.check()  # before the model is built, which takes a while
            proposal = propose(folder, read.config, bundle)
            _show(named, proposal, read.left_out)
            _ask_whether(yes)
            submitted = submit(folder, control, proposal, named)
            typer.echo(f"Run {named} is submitted (Flower's run {submitted.flower_runs()[-1]}).")
            _follow_or_leave(submitted, control, 0, detach)


def resume(name: Run = None, detach: Detach = False, centre: Centre = None) -> None:
    """Go on with a run that was broken off, from its last committed round.

    With the same sites it ends in the same adapter, bit by bit. A run that still goes on, or is
    finished, is left alone.
    """
    with fail_clearly():
        from server.centre.control import reach_control
        from server.centre.folder import CentreFolder
        from server.centre.run_folder import find_run
        from server.centre.submit import resume as submit_again

        folder = CentreFolder.find(centre)
        found = find_run(folder, name)
        with reach_control(folder) as control:
            after = max((event.id for event in found.events()), default=0)
            submit_again(control, found)
            typer.echo(f"Run {found.name} is resumed (Flower's run {found.flower_runs()[-1]}).")
            _follow_or_leave(found, control, after, detach)


def rollback(
    to: Annotated[int, typer.Argument(metavar="ROUND", min=0, help="The round to go back to; 0: the start.")],
    name: Annotated[
        str | None, typer.Option("--run", help="The run's name; else the one submitted last.")
    ] = None,
    centre: Centre = None,
) -> None:
    """Set the rounds after one aside, and what was released; the next resume goes on from there."""
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.rollback import roll_back
        from server.centre.run_folder import find_run

        found = find_run(CentreFolder.find(centre), name)
        later = roll_back(found, to)
        typer.echo(f"Run {found.name} is back at round {to}; {len(later)} later rounds are set aside in it.")
        typer.echo(f"Go on from there: fedcxr-server resume {found.name}")


def release(
    name: Run = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to copy the adapter to; else only tell where it is.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also write the base with the adapter folded in.")
    ] = False,
    centre: Centre = None,
) -> None:
    """Verify and hand out the adapter a run released: a folder that peft opens."""
    with fail_clearly():
        from server.centre.folder import CentreFolder
        from server.centre.hand_out import hand_out
        from server.centre.run_folder import find_run

        found = find_run(CentreFolder.find(centre), name)
        released = hand_out(found, out, merged)
        typer.echo(f"Adapter of the run {found.name}, round {released.round}: {released.folder.resolve()}")
        typer.echo(f"  SHA-256 {released.sha256}")
        typer.echo(f"  plan    {released.plan_digest}")
        if released.merged is not None:
            typer.echo(f"  merged  {released.merged.resolve()}")


def stop(name: Run = None, centre: Centre = None) -> None:
    """End a run that goes on; its committed rounds are kept, and it can be resumed."""
    with fail_clearly():
        from server.centre.control import reach_control
        from server.centre.folder import CentreFolder
        from server.centre.run_folder import find_run
        from server.centre.submit import stop as stop_run

        folder = CentreFolder.find(centre)
        found = find_run(folder, name)
        with reach_control(folder) as control:
            stopped = stop_run(control, found)
        if stopped:
            typer.echo(f"Run {found.name} is stopped. To go on with it: fedcxr-server resume {found.name}")
        else:
            typer.echo(f"Run {found.name} was over already.")


def status(
    run: Annotated[
        str | None, typer.Argument(help="A run's name or folder; without it, the centre and all its runs.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every event, not the last 20.")] = False,
    centre: Centre = None,
) -> None:
    """Tell how the centre, its sites and its runs stand, or what happened in one run."""
    with fail_clearly():
        from common.errors import RunError
        from server.centre.folder import CentreFolder
        from server.centre.follow import line_of, standing
        from server.centre.run_folder import RunFolder, find_run

        if run is not None and centre is None and (Path(run) / "ledger.sqlite").is_file():
            found = RunFolder(Path(run))
        elif run is not None and "/" in run:
            raise RunError(f"{run} holds no run", fix="name the folder given to --out")
        else:
            folder = CentreFolder.find(centre)
            if run is None:
                _tell_all(folder)
                return
            found = find_run(folder, run)
            typer.echo(f"{found.name}: {standing(found)}")
        events = found.events()
        for event in events if everything else events[-20:]:
            typer.echo(line_of(event))


def _show(name: str, proposal: Proposal, left_out: tuple[str, ...]) -> None:
    """Say what a plan asks of whom, before anybody is asked."""
    config, now = proposal.config, time.time()
    rounds, absent = config.rounds, proposal.absent()
    if left_out:
        typer.echo(f"Of the file only the run's own settings count; left out: {', '.join(left_out)}")
    typer.echo(
        f"Run {name}: {config.pet.method} on {config.model.backbone}, {', '.join(config.data.findings)}"
    )
    typer.echo(f"  stages      {' -> '.join(proposal.stages)}; {config.last_round} rounds")
    typer.echo(
        f"  each round  every site gets {_size(proposal.down)}, trains {proposal.trained_parameters:,} "
        f"parameters, sends at most {_size(proposal.up)}"
    )
    typer.echo(
        f"  waits for   {rounds.sites} sites; a round needs {rounds.quorum} and waits {rounds.deadline:g} s"
    )
    typer.echo(f"  plan {proposal.plan_digest}")
    typer.echo(f"  base {proposal.base_digest}")
    typer.echo(f"  code {proposal.code_digest}")
    typer.echo(f"  app  {proposal.bundle_sha256}")
    typer.echo("Admitted sites:")
    for site in proposal.admitted:
        typer.echo(f"  {site.name:<32}  {_heard(site.heard_at, now)}")
    if len(proposal.admitted) - len(absent) < rounds.sites:
        connected = len(proposal.admitted) - len(absent)
        enough = connected >= rounds.quorum
        without = f"; to begin without them: --set rounds.sites={connected}" if enough else ""
        typer.echo(
            f"Not connected: {', '.join(absent)}. "
            f"The run waits for them for up to {rounds.deadline:g} s{without}"
        )
    if rounds.quorum < _COMMON_LEAST:
        typer.echo(
            f"Note: hospitals that keep the policy they began with refuse rounds.quorum = {rounds.quorum}; "
            f"they ask for {_COMMON_LEAST} or more sites in an average."
        )
    if config.strategy.mean == "median":
        typer.echo("Note: only hospitals whose policy.toml has median in federation.means train in this run.")
    if config.evaluate.calibrate != "none":
        typer.echo("Note: only hospitals whose policy.toml has calibrate in asked.stages help to calibrate.")
    if config.evaluate.matrix:
        typer.echo("Note: in the matrix are the models of hospitals that set answers.local_adapter = true.")


def _ask_whether(yes: bool) -> None:
    from common.errors import ConfigError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to ask whether to submit it", fix="add --yes")
    if not typer.confirm("Submit it?"):
        raise SystemExit(0)


def _follow_or_leave(run: RunFolder, control: Control, after: int, detach: bool) -> None:
    from server.centre.follow import QUIET, follow, line_of

    status = f"fedcxr-server status {run.name}"
    if detach:
        typer.echo(f"It goes on by itself: {status}")
        return
    try:
        follow(
            run,
            control,
            run.flower_runs()[-1],
            after,
            lambda event: None if event.kind in QUIET else typer.echo(line_of(event)),
        )
    except KeyboardInterrupt:
        typer.echo(f"\nThe run goes on by itself: {status}; to end it: fedcxr-server stop {run.name}")
        raise SystemExit(0) from None
    _report(run)
    typer.echo(f"Finished. The adapter: fedcxr-server release {run.name} --out FOLDER")


def _report(run: RunFolder) -> None:
    from common.errors import FedcxrError
    from server.report import write_report
    from server.summary import summarise

    try:
        typer.echo(f"Report: {write_report(summarise(run.path), run.path)}")
    except FedcxrError as error:
        typer.echo(f"No report: {error.problem}", err=True)


def _tell_all(centre: CentreFolder) -> None:
    from server.centre.follow import standing
    from server.centre.instance import is_running
    from server.centre.registry import Registry
    from server.centre.run_folder import run_folders

    config, now = centre.config(), time.time()
    runs = "is running" if is_running(centre) else "is not running (fedcxr-server start)"
    typer.echo(f"Centre {config.name} {runs}; sites dial {config.address}")
    with Registry(centre.registry) as registry:
        sites = registry.sites()
    typer.echo("Sites:" if sites else "No site is invited yet: fedcxr-server invite SITE")
    for site in sites:
        heard = _heard(site.heard_at, now) if site.state == "admitted" else ""
        typer.echo(f"  {site.name:<32}  {site.state:<9} {heard}".rstrip())
    folders = run_folders(centre)
    typer.echo("Runs, the latest last:" if folders else "No run yet: fedcxr-server run PLAN")
    for folder in folders:
        typer.echo(f"  {folder.name:<32}  {standing(folder)}")


def _heard(when: float | None, now: float) -> str:
    """Say when a site was heard last.

    >>> _heard(None, 0), _heard(100, 103), _heard(0, 7200)
    ('never heard', 'heard 3 s ago', 'heard 2 h ago')
    """
    if when is None:
        return "never heard"
    ago = max(0.0, now - when)
    for seconds, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if ago >= 2 * seconds:
            return f"heard {ago / seconds:.0f} {unit} ago"
    return f"heard {ago:.0f} s ago"


def _size(count: int) -> str:
    from server.rounds import size_text

    return size_text(count)


def _say(text: str) -> None:
    """Say a line at once, also into a pipe."""
    typer.echo(text)
    sys.stdout.flush()
