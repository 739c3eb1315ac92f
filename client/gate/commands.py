"""``fedcxr-site approve``, mounted in `client.cli`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from rich.console import Console

    from client.gate.policy import Policy
    from client.place import SiteFolder
    from client.site import SiteConfig
    from common.config import RunConfig

Place = Annotated[Path, typer.Argument(help="The site's site.toml, or the folder that holds it.")]


def approve(
    place: Place = Path("site.toml"),
    bundle: Annotated[
        Path | None, typer.Option(help="The centre's app.fab; by default the one that came with the welcome.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="The centre's plan (TOML): also approve the base that it trains on.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who approves; by default the name of this account.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Approve without being asked.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take the approval back: nothing runs any more.")
    ] = False,
) -> None:
    """Look at the code, the policy and the base that would run here, and sign that they may.

    The centre's bundle must hold the code that is installed here, file by file. The approval names
    bundle, code, policy.toml and base by SHA-256: if one of them changes, everything is refused until
    somebody approves again. The last approval counts.
    """
    with fail_clearly():
        from rich.console import Console

        from client.gate import approval
        from client.place import SiteFolder
        from common.errors import ApprovalError

        folder, console = SiteFolder.of(place), Console(highlight=False, soft_wrap=True)
        person = by or _account()
        if withdraw:
            if _agreed("Withdraw the approval? Nothing runs here until somebody approves again.", yes):
                number = approval.withdraw(folder, person).number
                console.print(f"Withdrawn by {person} (number {number}): every instruction is refused now.")
            return
        fab, read = _read_bundle(folder, bundle), approval.policy_digest(folder)
        bases = _show(folder, fab, plan, console)
        if not _agreed(f"Approve this as {person}?", yes):
            console.print("Nothing is approved.")
            raise SystemExit(7)
        if approval.policy_digest(folder) != read:
            raise ApprovalError("policy.toml has changed while you read it", fix="run the command again")
        signed = approval.approve(folder, fab, list(bases), person)
        console.print(
            f"Approved by {person}, number {signed.number}, {signed.when}, signed with {folder.signing_key}."
        )


def _read_bundle(folder: SiteFolder, named: Path | None) -> bytes:
    from common.errors import ApprovalError, ConfigError

    file = named or folder.bundle
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if named is None:
            raise ApprovalError(
                "there is no bundle of the centre's here to approve",
                fix="fedcxr-site join WELCOME brings it; or name it: --bundle app.fab",
            ) from None
        raise ConfigError(f"there is no bundle {file}", fix="check the path") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", found=error.strerror or "") from None


def _show(folder: SiteFolder, fab: bytes, plan: Path | None, console: Console) -> Sequence[str]:
    """Print what would be approved; returns the digests of the bases.

    Raises:
        ApprovalError: if the bundle does not hold the installed code.
        PolicyError: if the plan asks for more than the policy allows.
    """
    import hashlib

    from rich.markup import escape

    from client.gate.policy import load_policy
    from client.gate.words import leaving_sentences, policy_sentences, staying_sentences
    from client.site import load_site
    from common.bundle import differences, read_bundle
    from common.code import code_digest
    from common.errors import ApprovalError
    from common.overrides import shortened

    site, policy = load_site(folder.settings), load_policy(folder.policy)
    count = len(read_bundle(fab))
    told = differences(fab)
    if told:
        raise ApprovalError(
            "the bundle does not hold the code that is installed here",
            found=shortened("; ".join(told[:3]), 300) + (f" (+{len(told) - 3})" if len(told) > 3 else ""),
            fix="install the centre's version of fedcxr, or ask for a bundle of this one",
        )
    bases = _bases(folder, site, policy, plan, console)

    def section(title: str, lines: Sequence[str]) -> None:
        console.print(f"[bold]{title}[/bold]")
        for line in lines:
            console.print(f"  {escape(line)}")

    section(
        f"What may run at {site.name}",
        [
            f"bundle  sha256 {hashlib.sha256(fab).hexdigest()}",
            f"        {count} files, each the same as in the package installed here",
            f"code    sha256 {code_digest()}",
            *(f"base    sha256 {digest}  ({what})" for digest, what in bases.items()),
        ],
    )
    section("What it may be asked (policy.toml)", policy_sentences(policy))
    section("What may leave", [f"- {line}" for line in leaving_sentences(policy)])
    section("What never leaves", [f"- {line}" for line in staying_sentences(policy)])
    return list(bases)


def _bases(
    folder: SiteFolder, site: SiteConfig, policy: Policy, plan: Path | None, console: Console
) -> dict[str, str]:
    """Return digest -> what it is: of the base that comes with the software, and of a plan's."""
    from client.gate.plan_check import check_plan
    from client.plan import read_plan
    from common.config import RunConfig
    from common.model.build import build_model

    wanted: dict[str, RunConfig] = {"comes with the software": RunConfig()}
    if plan is not None:
        config = read_plan(plan)
        for stage in policy.asked.stages:
            check_plan(policy, config, site, stage)
        if config.model.weights and site.model.weights is not None:
            own = config.model.model_copy(update={"weights": str(site.model.weights)})
            config = config.model_copy(update={"model": own})
        name = config.model.backbone
        wanted[f"of {plan.name}: {name}{', weights of site.toml' if config.model.weights else ''}"] = config
    elif site.model.weights is not None:
        console.print(
            "site.toml names weights of its own: to approve them, give the plan that uses them (--plan)."
        )
    found: dict[str, str] = {}
    for what, config in wanted.items():
        digest = build_model(config).base_digest
        found[digest] = f"{found[digest]}; {what}" if digest in found else what
    return found


def _agreed(question: str, yes: bool) -> bool:
    if yes:
        return True
    try:
        return typer.confirm(question, default=False)
    except typer.Abort:
        # No terminal to answer at, or Ctrl-D: silence is no consent.
        return False


def _account() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
