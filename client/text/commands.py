"""``fedcxr-site redact`` and ``fedcxr-site leak-probe``, mounted in `client.cli`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console import fail_clearly

if TYPE_CHECKING:
    from client.text.leak_probe import ProbeResult
    from common.sections import Redaction

TOP = 5
"""Findings shown one by one."""

SiteFile = Annotated[Path, typer.Argument(help="The site's site.toml.")]
Fields = Annotated[
    str,
    typer.Option(help="Comma list of report, indication, findings, impression; empty: those with a column."),
]


def redact(
    site: SiteFile,
    out: Annotated[Path, typer.Argument(help="CSV to write; the log goes beside it as *.spans.csv.")],
    mode: Annotated[
        str, typer.Option(help="none, word, sentence or indication; empty: text.redaction of site.toml.")
    ] = "",
    fields: Fields = "",
) -> None:
    """Write the reports without what gives the findings away, and a log of what was taken out.

    Names, dates and numbers stay: this is not de-identification. Both files are for the owner's
    eyes only and belong at the site.
    """
    with fail_clearly():
        from collections import Counter

        from client.site import load_site
        from client.text.redaction import parse_mode
        from client.text.studies import read_reports, used_text
        from common.errors import ConfigError
        from common.files import write_atomic

        config = load_site(site)
        chosen = parse_mode(mode) if mode else config.text.redaction
        spans_out = out.with_name(f"{out.stem}.spans.csv")
        if config.data.table and config.data.table.resolve() in (out.resolve(), spans_out.resolve()):
            raise ConfigError(
                "redact would overwrite the site's table", found=str(out), fix="name another file"
            )
        reports = read_reports(config, _listed(fields))
        texts, log, rules = [], [], Counter[str]()
        for number, cells in enumerate(reports.texts, 1):
            text, spans = used_text(cells, chosen)
            texts.append(text)
            log += [(number, field, span.start, span.end, span.rule) for field, span in spans]
            rules.update(span.rule for _, span in spans)
        rows = zip(reports.path, reports.study, reports.patient, texts, strict=True)
        write_atomic(out, _csv(("path", "study", "patient", "text"), rows))
        write_atomic(spans_out, _csv(("row", "field", "start", "end", "rule"), log))

        written = sum(bool(cells) for cells in reports.texts)
        left = sum(bool(text) for text in texts)
        typer.echo(f"{config.name}: {len(reports)} rows, {written} with a report, redaction {chosen}")
        typer.echo(f"  with text left          {left:>8}")
        typer.echo(f"  empty after redaction   {written - left:>8}")
        typer.echo("deletions by rule")
        for rule, count in rules.most_common():
            typer.echo(f"  {rule:<28}{count:>8}")


def leak_probe(
    site: SiteFile,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=1, help="Macro AUROC allowed; by default text.leak_threshold of site.toml."
        ),
    ] = None,
    fields: Fields = "",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Predict the site's labels from its reports alone, no image, after each mode of redaction.

    Exit code 3 when the mode of site.toml leaves more than the threshold: what a model with that
    text scores says nothing about its reading of images. Prints scores and counts, never text.
    """
    with fail_clearly(as_json):
        from client.site import load_site
        from client.text.leak_probe import check_leak
        from client.text.redaction import MODES
        from client.text.studies import probe_modes, read_reports

        config = load_site(site)
        allowed = config.text.leak_threshold if threshold is None else threshold
        used = config.text.redaction
        reports = read_reports(config, _listed(fields))
        results: dict[Redaction, ProbeResult] = {}
        for mode, result in probe_modes(reports, MODES, seed=config.data.split_seed):
            results[mode] = result
            if not as_json:
                _show_mode(config.name, mode, result, used, len(results) == 1)
        if as_json:
            typer.echo(json.dumps(_facts(config.name, results, used, allowed)))
        else:
            _show_findings(results, used)
        check_leak(results[used], used, allowed)


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


def _show_mode(site: str, mode: Redaction, result: ProbeResult, used: Redaction, first: bool) -> None:
    if first:
        measured = sum(metrics.auroc is not None for metrics in result.findings.values())
        typer.echo(f"{site}: {result.studies} reports, {measured} of {len(result.findings)} findings")
        typer.echo(f"{'text alone':<16}{'macro AUROC':>12}{'95 % interval':>18}")
    low, high = result.macro_interval or (None, None)
    figures = f"{_figure(result.macro_auroc):>12}{_figure(low):>9} to {_figure(high)}"
    typer.echo(f"{_title(mode):<16}{figures}{'  used at this site' if mode == used else ''}")


def _show_findings(results: Mapping[Redaction, ProbeResult], used: Redaction) -> None:
    """Print the findings that the used text gives away most, over all modes."""
    findings = {name: metrics.auroc for name, metrics in results[used].findings.items()}
    worst = sorted((area, name) for name, area in findings.items() if area is not None)[: -TOP - 1 : -1]
    heads = "".join(f"{_title(mode):>12}" for mode in results)
    typer.echo(f"{'most given away':<28}{'with':>6}{heads}")
    for _, name in worst:
        scores = "".join(f"{_figure(result.findings[name].auroc):>12}" for result in results.values())
        typer.echo(f"{name:<28}{results[used].findings[name].positives:>6}{scores}")


def _title(mode: Redaction) -> str:
    return "raw" if mode == "none" else mode


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _facts(
    site: str, results: Mapping[Redaction, ProbeResult], used: Redaction, allowed: float
) -> dict[str, object]:
    return {
        "kind": "leak-probe",
        "site": site,
        "redaction": used,
        "threshold": allowed,
        "modes": {
            mode: {
                "macro_auroc": result.macro_auroc,
                "interval": result.macro_interval,
                "reports": result.studies,
                "findings": {
                    name: {"auroc": metrics.auroc, "positives": metrics.positives}
                    for name, metrics in result.findings.items()
                    if metrics.auroc is not None
                },
            }
            for mode, result in results.items()
        },
    }
