"""An index in words: what needs attention, and the summary as the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.review.summary import UNKNOWN, Group, IndexSummary, SetAside, VariableCounts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

RARE = 0.01
"""Share of the images below which a scanner is too rare to be learned or measured."""
SPARSE = 0.5
"""Share missing from which an age, a sex or a clinical variable says little."""


def percent(share: float) -> str:
    """Write a share; only none is 0 and only all is 100.

    >>> percent(0.1234), percent(0.0), percent(0.0002), percent(0.99999)
    ('12.3 %', '0 %', '<0.1 %', '>99.9 %')
    """
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.001:
        return "<0.1 %"
    return ">99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def amount(value: float) -> str:
    """Write a measured value with three figures.

    >>> amount(37.25), amount(6000), amount(0.1234)
    ('37.2', '6,000', '0.123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(number: int, thing: str) -> str:
    """Write a count with its noun.

    >>> counted(1, "image"), counted(1200, "image"), counted(2, "study")
    ('1 image', '1,200 images', '2 studies')
    """
    if number != 1:
        thing = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names as in a sentence, the first ``most`` of them.

    >>> listed(["covid", "icu", "mass"]), listed(["covid", "icu", "mass"], most=1)
    ('covid, icu and mass', 'covid and 2 more')
    """
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(summary: IndexSummary) -> str:
    """Say in one sentence how much of the site's images can be used."""
    total, faults = summary.total.images, summary.faults
    if not summary.usable.images:
        why = _reasons(summary.set_aside)
        return f"No image can be used: {why}." if why else "The index holds no image."
    if faults:
        verb = "is" if faults == 1 else "are"
        return f"{faults:,} of {counted(total, 'image')} {verb} set aside: {_reasons(summary.set_aside)}."
    asked = total - summary.not_asked
    every = "The only image" if asked == 1 else f"All {counted(asked, 'image')}"
    return f"{every}{' asked for' if summary.not_asked else ''} can be used."


def notices(summary: IndexSummary) -> tuple[str, ...]:
    """Say what a person should look at, the gravest first; nothing if all is well."""
    usable = summary.usable.images
    if not usable:
        return ()
    empty = [name for name, counts in summary.splits.items() if not counts.images]
    rare = [group for group in summary.scanners if group.value and group.share < RARE]
    sparse = [v for v in summary.clinical if v.missing >= SPARSE]
    parts = [
        f"No image is in {listed(empty)}." if empty else "",
        _strange("view", summary.views),
        _strange("scanner", summary.scanners),
        _flagged(summary, "not annotated", "No usable image is annotated for {}."),
        _flagged(summary, "only one class", "Only one class, present or absent, occurs for {}."),
        _flagged(summary, "one class in train", "Only one class is in train for {}."),
        _flagged(
            summary,
            "fewer than",
            f"Fewer than {summary.min_cell} positives or negatives in test, so no score is given: {{}}.",
        ),
        *(
            _flagged(
                summary,
                f"follows the {thing}",
                f"The {thing} alone tells most images with and without {{}} apart: "
                f"a model may learn the {thing} instead.",
            )
            for thing in ("scanner", "view")
        ),
        f"{counted(len(rare), 'scanner')} made less than 1 % of the images: "
        f"{listed([f'{group.name} ({group.images})' for group in rare], most=3)}."
        if rare
        else "",
        *(
            _unknown(thing, groups)
            for thing, groups in (("view", summary.views), ("age", summary.ages), ("sex", summary.sexes))
        ),
        f"Missing on half of the images or more: {listed([_sparse(v) for v in sparse])}." if sparse else "",
    ]
    return tuple(part for part in parts if part)


def not_asked(summary: IndexSummary) -> str:
    """Say how many images site.toml does not ask for; '' if it asks for all."""
    if not summary.not_asked:
        return ""
    parts = [part for part in summary.set_aside if not part.fault]
    return f"Not asked for, and no fault: {_reasons(parts)}."


def _reasons(parts: Sequence[SetAside]) -> str:
    shown = [part for part in parts if part.fault] or list(parts)
    return listed([f"{part.images:,} {part.code}" for part in shown])


def _flagged(summary: IndexSummary, flag: str, sentence: str) -> str:
    names = [
        finding.name.replace("_", " ")
        for finding in summary.findings
        if any(text.startswith(flag) for text in finding.flags)
    ]
    return sentence.format(listed(names)) if names else ""


def _sparse(variable: VariableCounts) -> str:
    return f"{variable.name.replace('_', ' ')} ({percent(variable.missing)})"


def _strange(thing: str, groups: Sequence[Group]) -> str:
    if not groups or groups[0].value is not None:
        return ""
    return f"There are {groups[0].name}: see whether the {thing} is read from the right column."


def _unknown(thing: str, groups: Sequence[Group]) -> str:
    share = next((group.share for group in groups if group.name == UNKNOWN), 0.0)
    return f"The {thing} is unknown on {percent(share)} of the images." if share >= SPARSE else ""


def render(summary: IndexSummary) -> RenderableType:
    """Lay the summary out for a terminal of 80 columns or more; it holds no patient and no path."""
    from rich.console import Group as Together
    from rich.text import Text

    total, usable = summary.total, summary.usable
    title = Text.assemble(
        (summary.site, "bold"),
        f"  {counted(total.images, 'image')} of {counted(total.patients, 'patient')}, "
        f"{usable.images:,} usable",
    )
    parts: list[RenderableType] = [title, *_sentences(summary), "", _splits(summary)]
    if summary.findings:
        parts += ["", _findings(summary)]
    if usable.images:
        parts += ["", _people(summary)]
    if summary.clinical:
        parts += ["", _clinical(summary)]
    if summary.set_aside:
        parts += ["", _set_aside(summary)]
    return Together(*parts)


def _sentences(summary: IndexSummary) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    alarm = bool(summary.faults or not summary.usable.images)
    rows = [(alarm, headline(summary)), *((True, text) for text in notices(summary))]
    if rest := not_asked(summary):
        rows.append((False, rest))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    for loud, text in rows:
        grid.add_row(Text("!" if loud else "", "bold yellow"), Text(text))
    return [grid]


def _table(*headings: str, words: int = 1) -> Table:
    """Start a table whose first ``words`` columns are text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < words else "right", no_wrap=True, overflow="ellipsis")
    return table


def _row(table: Table, *cells: str, style: str = "") -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells), style=style)


def _splits(summary: IndexSummary) -> Table:
    table = _table("usable", "images", "studies", "patients")
    for name, counts in (*summary.splits.items(), ("all", summary.usable)):
        _row(table, name, f"{counts.images:,}", f"{counts.studies:,}", f"{counts.patients:,}")
    return table


def _findings(summary: IndexSummary) -> Table:
    table = _table("finding", "positive", "negative", "share", "train +", "val. +", "test +")
    for finding in summary.findings:
        share = "-" if finding.prevalence is None else percent(finding.prevalence)
        positives = (f"{count:,}" for count in finding.positives.values())
        counts = (f"{finding.positive:,}", f"{finding.negative:,}", share, *positives)
        _row(table, finding.name, *counts, style="yellow" if finding.flags else "")
    return table


def _people(summary: IndexSummary) -> Table:
    table = _table("of the usable", "", "images", "share", words=2)
    table.columns[1].max_width = 46
    parts = (
        ("view", summary.views),
        ("sex", summary.sexes),
        ("age", summary.ages),
        ("scanner", summary.scanners),
    )
    for thing, groups in parts:
        for i, group in enumerate(groups):
            _row(table, "" if i else thing, group.name, f"{group.images:,}", percent(group.share))
    return table


def _clinical(summary: IndexSummary) -> Table:
    table = _table("clinical variable", "unit", "present", "missing", "median", "range", words=2)
    table.columns[1].max_width = 12
    for v in summary.clinical:
        median = "-" if v.median is None else amount(v.median)
        reach = "-" if v.range is None else f"{amount(v.range[0])} to {amount(v.range[1])}"
        _row(table, v.name, v.unit, f"{v.present:,}", percent(v.missing), median, reach)
    return table


def _set_aside(summary: IndexSummary) -> Table:
    from rich.text import Text

    table = _table("set aside", "images", "")
    table.columns[2].no_wrap, table.columns[2].justify, table.columns[2].overflow = False, "left", "fold"
    table.columns[2].header = Text("meaning, and what to do")
    for part in summary.set_aside:
        remedy = f"; {part.remedy}" if part.fault else ""
        _row(table, part.code, f"{part.images:,}", f"{part.meaning}{remedy}")
    return table
