"""Approvals: the newest sound one counts, and only while code and policy are as they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from client.gate import approval as module
from client.gate.approval import Approval, approve, current_approval, withdraw
from client.gate.audit import read_audit
from client.place import SiteFolder
from common.code import code_digest
from common.errors import ApprovalError, ConfigError, CredentialError
from common.signing import create_signing_key


def test_an_approval_names_everything(site_folder: SiteFolder, fab: bytes, base: str) -> None:
    made = approve(site_folder, fab, [base, "c" * 64, base], " Dr. Who ")
    assert current_approval(site_folder) == made
    assert made.fab == hashlib.sha256(fab).hexdigest() and made.code == code_digest()
    assert made.policy == hashlib.sha256(site_folder.policy.read_bytes()).hexdigest()
    assert made.bases == (base, "c" * 64) and made.by == "Dr. Who" and made.number == 1
    (line,) = read_audit(site_folder)
    assert (line["kind"], line["bundle"], line["approval"]) == ("approved", made.fab, 1)


def test_nothing_is_approved_at_first(site_folder: SiteFolder) -> None:
    with pytest.raises(ApprovalError, match="nobody"):
        current_approval(site_folder)
    with pytest.raises(ApprovalError, match="nobody"):
        withdraw(site_folder, "IT")


def test_the_second_replaces_the_first(site_folder: SiteFolder, approved: Approval, base: str) -> None:
    second = approve(site_folder, b"another bundle", [base], "IT")
    assert current_approval(site_folder) == second != approved
    assert second.number == 2


def test_a_withdrawal_ends_it_until_somebody_approves_again(
    site_folder: SiteFolder, approved: Approval, fab: bytes, base: str
) -> None:
    assert withdraw(site_folder, "IT").withdrawn
    with pytest.raises(ApprovalError, match="withdrawn"):
        current_approval(site_folder)
    assert current_approval_after(site_folder, fab, base).number == 3
    assert [line["kind"] for line in read_audit(site_folder)] == ["approved", "withdrawn", "approved"]


def current_approval_after(folder: SiteFolder, fab: bytes, base: str) -> Approval:
    approve(folder, fab, [base], "IT")
    return current_approval(folder)


def test_a_changed_policy_ends_it(
    site_folder: SiteFolder, approved: Approval, rewrite: Callable[..., None], fab: bytes, base: str
) -> None:
    rewrite(site_folder, "max_rounds = 100", "max_rounds = 101")
    with pytest.raises(ApprovalError, match=r"policy\.toml has changed"):
        current_approval(site_folder)
    assert current_approval_after(site_folder, fab, base).number == 2
    site_folder.policy.unlink()
    with pytest.raises(ApprovalError, match="cannot be read"):
        current_approval(site_folder)


def test_other_code_ends_it(
    site_folder: SiteFolder, approved: Approval, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: "0" * 64)
    with pytest.raises(ApprovalError, match="installed code"):
        current_approval(site_folder)


def change(key: str, value: Any) -> Callable[[SiteFolder], None]:
    def edit(folder: SiteFolder) -> None:
        file = folder.approvals / "approval-0001.json"
        whole = json.loads(file.read_text())
        whole["body"][key] = value
        file.write_text(json.dumps(whole))

    return edit


def another_key(folder: SiteFolder) -> None:
    folder.signing_key.unlink()
    create_signing_key(folder.signing_key)


def garbage(folder: SiteFolder) -> None:
    (folder.approvals / "approval-0001.json").write_bytes(b"{")


def copied(folder: SiteFolder) -> None:
    """Old approvals do not come back under a newer name."""
    shutil.copy(folder.approvals / "approval-0001.json", folder.approvals / "approval-0007.json")


@pytest.mark.parametrize(
    "damage",
    [change("fab", "f" * 64), change("bases", []), change("withdrawn", 0), another_key, garbage, copied],
)
def test_a_damaged_or_foreign_approval_means_none(
    site_folder: SiteFolder, approved: Approval, damage: Callable[[SiteFolder], None]
) -> None:
    damage(site_folder)
    with pytest.raises(ApprovalError, match="newest approval"):
        current_approval(site_folder)


@pytest.mark.parametrize(
    ("bases", "by", "words"),
    [([], "IT", "bases"), (["b" * 63], "IT", "bases"), (["b" * 64], " ", "who"), (["b" * 64], "a\nb", "who")],
)
def test_what_cannot_be_approved(site_folder: SiteFolder, bases: list[str], by: str, words: str) -> None:
    with pytest.raises(ApprovalError, match=words):
        approve(site_folder, b"", bases, by)
    assert not site_folder.approvals.exists()


def test_a_wrong_policy_or_no_key_cannot_be_approved(
    site_folder: SiteFolder, base: str, rewrite: Callable[..., None]
) -> None:
    site_folder.signing_key.rename(site_folder.root / "elsewhere")
    with pytest.raises(CredentialError):
        approve(site_folder, b"", [base], "IT")
    rewrite(site_folder, "max_rounds", "max_round")
    with pytest.raises(ConfigError):
        approve(site_folder, b"", [base], "IT")
