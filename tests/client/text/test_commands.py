from __future__ import annotations

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from client.text import commands
from client.text.redaction import redact

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command("redact")(commands.redact)
APP.command("leak-probe")(commands.leak_probe)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_redact_writes_text_and_a_log_that_explains_it(
    make_report_site: Callable[..., Path], tmp_path: Path
) -> None:
    site, out = make_report_site(rows=40), tmp_path / "out" / "texts.csv"
    result = run("redact", site, out, "--mode", "sentence")
    assert result.exit_code == 0, result.output
    assert "40 rows, 40 with a report, redaction sentence" in result.output
    source, written = rows_of(tmp_path / "studies.csv"), rows_of(out)
    log = rows_of(out.with_name("texts.spans.csv"))
    assert list(written[0]) == ["path", "study", "patient", "text"]
    assert list(log[0]) == ["row", "field", "start", "end", "rule"]
    for number, (before, after) in enumerate(zip(source, written, strict=True), 1):
        assert after["path"] == before["path"] and after["patient"] == before["patient"]
        left = []
        for field in ("indication", "findings", "impression"):
            gone = {
                position
                for line in log
                if int(line["row"]) == number and line["field"] == field
                for position in range(int(line["start"]), int(line["end"]))
            }
            left.append("".join(c for k, c in enumerate(before[field]) if k not in gone))
        assert after["text"] == "\n".join(part for part in left if part)
    for path in (out, out.with_name("texts.spans.csv")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_redact_takes_the_mode_of_the_site(make_report_site: Callable[..., Path], tmp_path: Path) -> None:
    site, out = make_report_site(rows=5), tmp_path / "texts.csv"
    assert "redaction indication" in run("redact", site, out).output
    for before, after in zip(rows_of(tmp_path / "studies.csv"), rows_of(out), strict=True):
        assert after["text"] == redact(before["indication"], field="indication").text
    run("redact", site, out, "--fields", "findings")
    assert {line["text"] for line in rows_of(out)} == {""}


def test_redact_counts_what_is_empty(make_report_site: Callable[..., Path], tmp_path: Path) -> None:
    site = make_report_site(rows=3, indication=["Effusion", "Cough", ""])
    output = " ".join(run("redact", site, tmp_path / "texts.csv").output.split())
    assert "3 rows, 3 with a report" in output
    assert "with text left 1 empty after redaction 2" in output


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--mode", "words"], 2), (["--fields", "report"], 3), (["--fields", "x"], 2)]
)
def test_redact_refuses_what_does_not_exist(
    make_report_site: Callable[..., Path], tmp_path: Path, arguments: list[str], code: int
) -> None:
    result = run("redact", make_report_site(rows=3), tmp_path / "texts.csv", *arguments)
    assert result.exit_code == code
    assert not (tmp_path / "texts.csv").exists()


@pytest.mark.parametrize("name", ["studies.csv", "studies.toml"])
def test_redact_never_overwrites_the_table(
    make_report_site: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    site = make_report_site(rows=3)
    if name == "studies.toml":
        (tmp_path / "studies.csv").rename(tmp_path / "x.spans.csv")
        site.write_text(site.read_text().replace("studies.csv", "x.spans.csv"))
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    result = run("redact", site, tmp_path / ("studies.csv" if name == "studies.csv" else "x.csv"))
    assert result.exit_code == 2
    assert "overwrite" in result.output
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_leak_probe_passes_on_the_indication_and_shows_no_text(make_report_site: Callable[..., Path]) -> None:
    result = run("leak-probe", make_report_site(rows=300))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "300 reports, 8 of 8 findings" in lines[0]
    assert [line.split()[0] for line in lines[2:6]] == ["raw", "word", "sentence", "indication"]
    assert lines[5].endswith("used at this site")
    scores = [float(line.split()[1]) for line in lines[2:6]]
    assert scores[0] > 0.95 and scores[3] < 0.7
    assert len(lines) == 7 + commands.TOP
    assert not any(word in result.output for word in ("MRN", "cough", "palpitations", "year"))


@pytest.mark.parametrize("mode", ["none", "word"])
def test_leak_probe_fails_where_text_gives_the_labels_away(
    make_report_site: Callable[..., Path], mode: str
) -> None:
    site = make_report_site(rows=300, toml=f'[text]\nredaction = "{mode}"')
    result = run("leak-probe", site)
    assert result.exit_code == 3
    assert "E_DATA" in result.output and f"redaction '{mode}'" in result.output
    assert "0.75 is allowed" in result.output and "fix:" in result.output
    assert run("leak-probe", site, "--threshold", "1").exit_code == 0


def test_leak_probe_speaks_json(make_report_site: Callable[..., Path]) -> None:
    site = make_report_site(rows=300)
    result = run("leak-probe", site, "--json", "--threshold", "0.5")
    assert result.exit_code == 3
    facts, error = (json.loads(line) for line in result.output.splitlines())
    assert facts["kind"] == "leak-probe" and facts["redaction"] == "indication"
    assert list(facts["modes"]) == ["none", "word", "sentence", "indication"]
    assert facts["modes"]["none"]["macro_auroc"] > 0.95
    assert error["kind"] == "error" and error["code"] == "E_DATA"


def test_leak_probe_on_chosen_fields(make_report_site: Callable[..., Path]) -> None:
    result = run("leak-probe", make_report_site(rows=300), "--fields", "indication", "--json")
    modes = json.loads(result.output)["modes"]
    assert max(facts["macro_auroc"] for facts in modes.values()) < 0.7


def test_leak_probe_with_too_few_reports_fails_closed(make_report_site: Callable[..., Path]) -> None:
    result = run("leak-probe", make_report_site(rows=30))
    assert result.exit_code == 3
    assert "cannot be measured" in result.output
