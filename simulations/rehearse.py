"""A whole run on phantoms at one site's machine: ``python -m simulations.rehearse SITE_FOLDER``.

Everything a site does in a federation is done here, in one process without a network: an invitation is
answered, a bundle approved, signed instructions are checked by the site's own policy, a model is
trained, and what would leave passes the gate and is audited. Only the studies are drawn.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.no_network import CutOff, cut_off

if TYPE_CHECKING:
    from common.config import RunConfig
    from simulations.rehearsal_gate import GatedSites
    from simulations.rehearsal_sites import Stage

Say = Callable[[str], None]


def rehearse(real: Path, place: Path, network: CutOff, say: Say) -> bool:
    """Rehearse at the site whose folder is ``real``, in ``place``; True if nothing was refused.

    Raises:
        FedcxrError: if the site's settings or policy cannot be read, or the run cannot go on.
    """
    began = time.monotonic()
    from flwr.app import Context, RecordDict

    from client.gate.policy import load_policy
    from client.place import SiteFolder
    from common.errors import RunError
    from common.model.build import build_model
    from common.signing import load_signing_key
    from server.centre.line import CentreLine
    from server.centre.registry import Registry
    from server.plan import run_plan
    from simulations.inline_grid import InlineGrid
    from simulations.rehearsal_gate import RUN, GatedSites
    from simulations.rehearsal_sites import approve_everywhere, set_the_stage, small_plan
    from simulations.run import quiet_libraries

    quiet_libraries()
    say(f"1. Without a network: {network}.")
    folder = SiteFolder.of(real)
    stage = set_the_stage(folder, place)
    _tell_the_stage(stage, say)
    plan = small_plan(load_policy(folder.policy), stage.findings, len(stage.sites))
    approve_everywhere(stage, build_model(plan).base_digest)
    _tell_the_plan(stage, plan, say)
    flat = plan.to_flat()
    gated = GatedSites(stage, flat, say)
    contexts = {site.node: Context(RUN, site.node, {}, RecordDict(), flat) for site in stage.sites}
    registry = Registry(stage.centre.registry)
    key = load_signing_key(stage.centre.key("centre.key"))
    try:
        run_plan(
            InlineGrid(gated, contexts, gated.left),  # type: ignore[arg-type]
            plan,
            place / "run",
            lambda grid, ledger: CentreLine(grid, ledger, registry, key, RUN),
        )
    except RunError:
        if not gated.refusals:
            raise
    finally:
        registry.close()
        _tell_the_end(stage, gated, network, place / "run", time.monotonic() - began, say)
    return gated.refusals == 0 and not network.attempts


def _tell_the_stage(stage: Stage, say: Say) -> None:
    own, *others = stage.sites
    names = " and ".join(site.site.name for site in others)
    say(
        f"2. A centre for the day and {len(stage.sites)} phantom sites ({stage.format.upper()}) that joined "
        "it by invitation,"
    )
    say(f"   request and welcome: {own.site.name}, which stands for yours, {names}.")
    say(f"   Findings: {', '.join(stage.findings)}.")
    if stage.unlike:
        say(f"   No phantom shows {', '.join(stage.unlike)}: left out of the rehearsal.")


def _tell_the_plan(stage: Stage, plan: RunConfig, say: Say) -> None:
    own, bundle = stage.sites[0].site.name, stage.fab_sha256[:12]
    say(f"3. Approved at each site: the bundle of this installation ({bundle}) and this site's policy.toml.")
    say(
        f"4. A run of {plan.rounds.count} rounds as {own} sees it. What is asked is held against the centre's"
    )
    say("   signature, this site's name, this run, a number not seen before, the approved bundle, code,")
    say("   plan and base, policy.toml. What leaves: names, shapes, number formats, counts, small cells,")
    say("   norm, size.")


def _tell_the_end(
    stage: Stage, gated: GatedSites, network: CutOff, run: Path, seconds: float, say: Say
) -> None:
    from client.gate.audit import verify_audit

    own = stage.sites[0]
    check = verify_audit(own.folder)
    audited = gated.audited(own.node)
    say("5. Afterwards:")
    problems = "; ".join(check.problems)
    say(
        f"   The audit of {own.site.name} has {check.lines} lines, "
        f"{problems or 'none of them changed and none missing'}."
    )
    left = gated.bytes_left.get(own.node, 0)
    same = "and as many are in its audit" if left == audited else f"but its audit accounts for {audited:,}"
    say(f"   {left:,} bytes would have left {own.site.name} in {gated.answers} answers, {same}.")
    tried = f"{len(network.attempts)} were tried and refused" if network.attempts else "none was tried"
    say(f"   Connections to anywhere: {tried}.")
    for line in _how_long(run, *gated.trained):
        say(f"   {line}")
    if check.problems or left != audited:
        gated.refusals += 1
    if gated.refusals or network.attempts:
        say(f"   Not as it should be: {gated.refusals} refused, see above. Rehearsed in {seconds:.0f} s.")
    else:
        say(f"   Nothing was refused. Rehearsed in {seconds:.0f} s.")


def _how_long(run: Path, seconds: float, studies: int) -> list[str]:
    """Say how long a round took, and each study in it."""
    from server.ledger import Ledger

    if not (run / "ledger.sqlite").is_file():
        return []
    ledger = Ledger(run / "ledger.sqlite")
    rounds = ledger.rounds()
    ledger.close()
    if not rounds:
        return ["No round was reached."]
    sites, took = len(rounds[-1]["cohort"]), rounds[-1]["seconds"]
    told = [f"A round of {sites} sites, one after the other, took {took:.1f} s."]
    if seconds and studies:
        each = seconds / studies
        told.append(
            f"Training took {1000 * each:.0f} ms a study here: 10,000 studies would take about "
            f"{max(10_000 * each / 60, 1):.0f} min a round with this plan."
        )
    return told


def main(arguments: list[str]) -> int:
    """Rehearse and return the exit code."""
    network = cut_off()
    from common.console import fail_clearly
    from common.errors import RefusedError

    with fail_clearly():
        real, *rest = arguments
        kept = Path(rest[0]) if rest else None
        place = kept or Path(tempfile.mkdtemp(prefix="fedcxr-rehearsal-"))
        try:
            if not rehearse(Path(real), place, network, _write):
                return RefusedError.exit_code
        finally:
            if kept is None:
                shutil.rmtree(place, ignore_errors=True)
            else:
                _write(f"Kept in {place}.")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
