"""What is allowed here: policy, approval, and whether bundle and installed code are those approved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from client.gate.approval import current_approval
from client.gate.audit import verify_audit
from client.gate.policy import Policy, load_policy
from client.join.checks.case import Case, Outcome, broken, failure, ok, skipped, warning
from client.site import SiteConfig
from common.bundle import differences
from common.code import code_digest
from common.credentials import WelcomeFile
from common.errors import FedcxrError

_AGAIN = "fedcxr-site join again with the file the centre sent"


def check_policy(case: Case) -> Iterator[Outcome]:
    """policy.toml: readable, valid, not open to others, and not wider than a site would mean."""
    file = case.folder.policy
    try:
        policy = load_policy(file)
        mode = file.stat().st_mode
    except FedcxrError as error:
        yield broken("policy.toml", error, "correct policy.toml; every key is explained in it")
        return
    except OSError as error:
        yield failure(
            "policy.toml", f"policy.toml cannot be read ({error.strerror}).", f"see the rights of {file}"
        )
        return
    if mode & 0o022:
        yield failure(
            "policy.toml",
            f"other accounts can change policy.toml (mode {mode & 0o777:o}).",
            f"chmod 600 {file}",
        )
        return
    site = case.site
    if isinstance(site, SiteConfig) and site.evaluate.min_cell < policy.answers.min_cell:
        yield failure(
            "policy.toml",
            f"site.toml has evaluate.min_cell = {site.evaluate.min_cell} and policy.toml allows no less than "
            f"{policy.answers.min_cell}: every instruction would be refused.",
            f"set evaluate.min_cell = {policy.answers.min_cell} in site.toml",
        )
    elif loose := _loose(policy):
        yield warning(
            "policy.toml",
            f"valid, and wider than what fedcxr-site init wrote: {'; '.join(loose)}.",
            "see that this is meant; whoever approved it should know",
        )
    else:
        yield ok("policy.toml", "valid, and no wider than what fedcxr-site init wrote.")


def check_code(case: Case) -> Iterator[Outcome]:
    """The bundle is the one the centre signed, and holds the code that is installed."""
    welcome = case.welcome
    if not isinstance(welcome, WelcomeFile):
        yield skipped("bundle", "there is no welcome to compare with.")
        return
    if welcome.code_digest != code_digest():
        yield failure(
            "code",
            f"installed is code {code_digest()[:12]} and the centre runs {welcome.code_digest[:12]}.",
            "install the version the centre names; both sides must run the same code",
        )
    else:
        yield ok("code", f"installed is the code the centre runs ({code_digest()[:12]}).")
    try:
        fab = case.folder.bundle.read_bytes()
    except OSError:
        yield failure("bundle", f"{case.folder.bundle.name} is missing.", _AGAIN)
        return
    if hashlib.sha256(fab).hexdigest() != welcome.bundle_sha256:
        yield failure(
            "bundle",
            f"{case.folder.bundle.name} was changed: it is not the one the centre signed.",
            _AGAIN,
        )
        return
    try:
        different = differences(fab)
    except FedcxrError as error:
        yield broken("bundle", error, _AGAIN)
        return
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        yield failure(
            "bundle",
            f"the centre's bundle is not the code installed here: {different[0]}{more}.",
            "install the version the centre names, or ask it for a new welcome",
        )
    else:
        yield ok("bundle", "the one the centre signed, byte for byte the code installed here.")


def check_approval(case: Case) -> Iterator[Outcome]:
    """Somebody here approved this code, this policy and this bundle."""
    if case.welcome is None:
        yield skipped("approval", "the site has not joined: there is nothing to approve yet.")
        return
    try:
        approval = current_approval(case.folder)
    except FedcxrError as error:
        yield broken("approval", error, "look at it and run: fedcxr-site approve")
        return
    except OSError as error:
        yield failure(
            "approval", f"cannot be read ({error.strerror}).", f"see the rights of {case.folder.approvals}"
        )
        return
    try:
        offered = hashlib.sha256(case.folder.bundle.read_bytes()).hexdigest()
    except OSError:
        offered = ""
    if approval.fab != offered:
        yield failure(
            "approval",
            f"the bundle that {approval.by} approved on {approval.when[:10]} is not the one in this folder.",
            "look at the bundle that is here and run: fedcxr-site approve",
        )
        return
    bases = "one base" if len(approval.bases) == 1 else f"{len(approval.bases)} bases"
    yield ok("approval", f"by {approval.by} on {approval.when[:10]}: code, policy and {bases}.")


def check_audit(case: Case) -> Iterator[Outcome]:
    """The record of what left is whole: nothing leaves without it."""
    if not case.folder.audit.exists():
        yield skipped("audit", "nothing was asked or sent yet.")
        return
    try:
        check = verify_audit(case.folder)
    except FedcxrError as error:
        yield broken("audit", error, "fedcxr-site audit verify")
        return
    if check.problems:
        more = f" and {len(check.problems) - 1} more" if len(check.problems) > 1 else ""
        yield failure(
            "audit",
            f"{check.problems[0]}{more}: nothing leaves before that is settled.",
            "fedcxr-site audit verify tells all; keep the file, it may be evidence",
        )
    else:
        yield ok("audit", f"{check.lines} lines, none changed and none missing.")


def _loose(policy: Policy) -> list[str]:
    """Name what is wider than the defaults and matters to patients."""
    usual = Policy()
    least = {
        "federation.min_sites": (policy.federation.min_sites, usual.federation.min_sites),
        "training.min_studies": (policy.training.min_studies, usual.training.min_studies),
        "answers.min_cell": (policy.answers.min_cell, usual.answers.min_cell),
    }
    most = {
        "answers.max_bytes": (policy.answers.max_bytes, usual.answers.max_bytes),
        "answers.max_run_bytes": (policy.answers.max_run_bytes, usual.answers.max_run_bytes),
        "answers.max_update_norm": (policy.answers.max_update_norm, usual.answers.max_update_norm),
    }
    told = [f"{key} = {have}, usual {want}" for key, (have, want) in least.items() if have < want]
    told += [f"{key} = {have:g}, usual {want:g}" for key, (have, want) in most.items() if have > want]
    if "full" in policy.training.methods:
        told.append("training.methods allows full, which sends the whole network")
    if "median" in policy.federation.means:
        told.append("federation.means allows median, which passes numbers of single sites on")
    return told
