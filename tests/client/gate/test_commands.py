"""``approve`` shows what is signed and signs only what is installed; ``audit`` shows and proves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from flwr.cli.build import build_fab_from_files
from typer.testing import CliRunner, Result

from client.gate import approval, commands
from client.gate.approval import current_approval
from client.gate.audit import Audit, read_audit
from client.gate.audit_commands import audit
from client.place import SiteFolder
from common.bundle import read_bundle
from common.code import code_digest
from common.errors import ApprovalError
from server.centre.bundle import build_bundle

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command("approve")(commands.approve)
APP.add_typer(audit, name="audit")


def run(*arguments: object, answer: str = "") -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], input=answer)


@pytest.fixture(scope="module")
def bundle() -> bytes:
    return build_bundle()


@pytest.fixture
def joined(site_folder: SiteFolder, bundle: bytes) -> SiteFolder:
    site_folder.bundle.parent.mkdir()
    site_folder.bundle.write_bytes(bundle)
    return site_folder


def flat(result: Result) -> str:
    return " ".join(result.output.split())


def test_approve_shows_everything_and_asks(joined: SiteFolder, bundle: bytes) -> None:
    asked = run("approve", joined.root, answer="n\n")
    assert asked.exit_code == 7 and "Nothing is approved" in asked.output
    assert not joined.approvals.exists()
    told = flat(asked)
    for words in (
        hashlib.sha256(bundle).hexdigest(),
        code_digest(),
        "each the same as in the package installed here",
        "comes with the software",
        "at least 1 other site",
        "What may leave",
        "What never leaves - images, reports",
    ):
        assert words in told, told
    assert run("approve", joined.root).exit_code == 7, "silence is no consent"
    agreed = run("approve", joined.settings, "--by", "Dr. Who", answer="y\n")
    assert agreed.exit_code == 0 and "Approved by Dr. Who, number 1" in flat(agreed)
    made = current_approval(joined)
    assert (made.fab, made.by) == (hashlib.sha256(bundle).hexdigest(), "Dr. Who")
    (base,) = made.bases
    assert base in told


def test_a_bundle_of_other_code_is_not_approved(joined: SiteFolder, bundle: bytes, tmp_path: Path) -> None:
    files = {name: data for name, data in read_bundle(bundle).items() if not name.startswith(".info")}
    files["client/app.py"] = files["client/app.py"].replace(b"hands", b"hants", 1)
    files["client/spy.py"] = b"import socket\n"
    other = tmp_path / "other.fab"
    other.write_bytes(build_fab_from_files(files)[0])
    refused = run("approve", joined.root, "--bundle", other, "--yes")
    assert refused.exit_code == 7 and not joined.approvals.exists()
    assert "client/app.py differs" in flat(refused) and "client/spy.py is not installed" in flat(refused)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--bundle", "nowhere.fab"], 2, "no bundle nowhere.fab"),
        (["--bundle", "site.toml"], 7, "not a Flower App Bundle"),
        (["--by", "two\nlines"], 7, "names who approves"),
    ],
)
def test_what_is_wrong_is_said(
    joined: SiteFolder, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(joined.root)
    result = run("approve", "site.toml", "--yes", *arguments)
    assert result.exit_code == code and words in flat(result)
    assert not joined.approvals.exists()


def test_a_site_that_has_not_joined_has_nothing_to_approve(site_folder: SiteFolder) -> None:
    result = run("approve", site_folder.root, "--yes")
    assert result.exit_code == 7 and "fedcxr-site join" in flat(result)


def test_a_plan_brings_its_base(joined: SiteFolder, tmp_path: Path) -> None:
    from client.plan import read_plan
    from common.model.build import build_model

    plan = tmp_path / "plan.toml"
    plan.write_text('[model]\nbackbone = "timm:test_vit"\n[data]\nimage_size = 32\n[rounds]\nquorum = 2\n')
    result = run("approve", joined.root, "--plan", plan, "--yes", "--by", "IT")
    assert result.exit_code == 0, result.output
    assert build_model(read_plan(plan)).base_digest in current_approval(joined).bases
    assert len(current_approval(joined).bases) == 2 and "timm:test_vit" in result.output
    plan.write_text(plan.read_text().replace("quorum = 2", "quorum = 1"))
    beyond = run("approve", joined.root, "--plan", plan, "--yes", "--by", "IT")
    assert beyond.exit_code == 7 and "federation.min_sites = 2" in flat(beyond)
    assert current_approval(joined).number == 1


def test_an_approval_can_be_withdrawn(joined: SiteFolder, fab: bytes, base: str) -> None:
    assert run("approve", joined.root, "--withdraw", "--yes").exit_code == 7
    approval.approve(joined, fab, [base], "IT")
    run("approve", joined.root, "--withdraw", answer="n\n")
    assert current_approval(joined).number == 1
    assert run("approve", joined.root, "--withdraw", "--yes", "--by", "Dr. Who").exit_code == 0
    with pytest.raises(ApprovalError, match=r"withdrawn"):
        current_approval(joined)


@pytest.fixture
def audited(site_folder: SiteFolder) -> SiteFolder:
    log = Audit(site_folder)
    log.append("instruction", run="7", stage="train", round=1, plan="a" * 64)
    log.append(
        "answer",
        run="7",
        stage="train",
        round=1,
        code="",
        bytes=1234567,
        records={"update": {"shape": [308641], "dtype": "float32"}},
    )
    log.append("refused", run="7", stage="train", round=1, code="E_REPLAY", problem="seen before")
    return site_folder


def test_show_is_a_table_for_people(audited: SiteFolder) -> None:
    result = run("audit", "show", audited.settings)
    assert result.exit_code == 0
    rows = result.output.splitlines()
    assert rows[0].split()[:4] == ["n", "time", "kind", "run"]
    assert "1,234,567" in rows[2] and "an update of 308,641 float32 numbers" in rows[2]
    assert "E_REPLAY: seen before" in rows[3]
    assert "aaaa" not in rows[1], "digests are for --json"
    assert rows[-1].startswith("3 lines")


def test_show_as_json_is_the_lines_themselves(audited: SiteFolder) -> None:
    result = run("audit", "show", audited.root, "--json")
    assert [json.loads(line) for line in result.output.splitlines()] == list(read_audit(audited))


def test_show_since(audited: SiteFolder) -> None:
    times = [line["time"] for line in read_audit(audited)]
    day = times[0][:10]
    assert run("audit", "show", audited.root, "--since", day).output.splitlines()[-1].startswith("3 lines")
    assert (
        run("audit", "show", audited.root, "--since", "2999-01-01")
        .output.splitlines()[-1]
        .startswith("0 lines")
    )
    wrong = run("audit", "show", audited.root, "--since", "yesterday")
    assert wrong.exit_code == 2 and "--since" in wrong.output


def test_verify_says_whole_or_which_line(audited: SiteFolder) -> None:
    whole = run("audit", "verify", audited.root)
    assert whole.exit_code == 0 and "whole: 3 lines" in whole.output
    audited.audit.write_text(audited.audit.read_text().replace("1234567", "7"))
    broken = run("audit", "verify", audited.root)
    assert broken.exit_code == 7 and "line 2 was changed" in broken.output and "E_AUDIT" in broken.output
    facts = json.loads(run("audit", "verify", audited.root, "--json").output)
    assert facts["lines"] == 3 and len(facts["problems"]) == 1


def test_verify_takes_a_crash_for_a_crash(audited: SiteFolder) -> None:
    with audited.audit.open("a") as stream:
        stream.write('{"n":4,')
    result = run("audit", "verify", audited.root)
    assert result.exit_code == 0 and "note: line 4 is not whole" in result.output


def test_there_is_no_traceback(tmp_path: Path, no_such: Callable[[], Path]) -> None:
    for arguments in (("approve",), ("audit", "show"), ("audit", "verify")):
        result = run(*arguments, no_such())
        assert result.exit_code == 2 and "there is no site" in result.output


@pytest.fixture
def no_such(tmp_path: Path) -> Callable[[], Path]:
    return lambda: tmp_path / "nowhere" / "site.toml"


def test_what_is_signed_is_what_was_shown(
    joined: SiteFolder, monkeypatch: pytest.MonkeyPatch, rewrite: Callable[..., None]
) -> None:
    def slowly(question: str, yes: bool) -> bool:
        rewrite(joined, "max_rounds = 100", "max_rounds = 9000")
        return True

    monkeypatch.setattr(commands, "_agreed", slowly)
    result = run("approve", joined.root, "--by", "IT")
    assert result.exit_code == 7 and "while you read it" in flat(result)
    assert not joined.approvals.exists()
