"""Write a site.toml that a hospital can read in a meeting: grouped, and with a word on every key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tomli_w

from client.review.summary import plain
from client.setup.guess_columns import LabelGuess
from common.clinical import VARIABLES
from common.findings import Uncertainty

_MOST_LISTED = 40
_ROLES: Mapping[str, str] = {
    "path": "image file, relative to data.root",
    "patient": "tells patients apart; never leaves the site",
    "study": "groups the images of one examination",
    "view": "PA, AP, ...",
    "age": "years, or 045Y",
    "sex": "M or F",
    "split": "a split already made, used instead of ours",
    "accession": "accession number",
    "instance": "SOP Instance UID",
    "file": "file name",
    "report": "free text of the report",
    "indication": "free text of the request",
    "findings_text": "free text of the description",
    "impression": "free text of the conclusion",
}
_LAYOUTS = {"table": "one row of the table per image", "folder": "every image file under root"}
_BURNED_IN = {
    "refuse": "set aside if the header says that letters are burnt in",
    "require-no": "set aside unless the header says that no letters are burnt in",
    "accept": "used, whatever the header says of letters burnt in",
}
_POLICIES = {"ignore": "counts as not annotated", "ones": "counts as present", "zeros": "counts as absent"}


@dataclass(frozen=True)
class Draft:
    """What a site.toml is to say."""

    name: str
    layout: str
    root: str = "."
    table: str = ""
    join: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    views: tuple[str, ...] = ("PA", "AP")
    """None of them means any."""
    burned_in: str = "refuse"
    labels: tuple[LabelGuess, ...] = ()
    uncertainty: Mapping[str, Uncertainty] = field(default_factory=dict)
    clinical: Mapping[str, str] = field(default_factory=dict)
    unplaced: tuple[str, ...] = ()
    """Columns that are used for nothing."""


def write_site(draft: Draft) -> str:
    """Return the text of a site.toml."""
    head = [
        "# What this site brings to a federation. Images and this file stay here; every key and its default:",
        "# docs/site.md. Paths are relative to this file's folder.",
        "",
        *_aligned([(_line("name", draft.name), "in logs and reports; tells nothing about patients")]),
    ]
    parts = [head, _data(draft)]
    if draft.columns:
        parts.append(column_lines(draft.columns))
    if draft.layout in _LAYOUTS:
        parts.append(label_lines(draft.labels, draft.unplaced))
    if draft.uncertainty:
        title = "What an uncertain label (-1) counts as, finding by finding."
        lines = [(_line(finding, policy), _POLICIES[policy]) for finding, policy in draft.uncertainty.items()]
        parts.append(_part("uncertainty", title, lines))
    if draft.clinical:
        parts.append(clinical_lines(draft.clinical))
    if set(draft.columns) & {"report", "indication", "findings_text", "impression"}:
        title = "How reports are cut before a model may read them: they tell what it should find out itself."
        parts.append(_part("text", title, [(_line("redaction", "indication"), "the redacted request alone")]))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def column_lines(columns: Mapping[str, str]) -> list[str]:
    """Return ``[columns]`` with what each is."""
    title = "What the table calls things. Cells of these columns never leave the site."
    return _part("columns", title, [(_line(role, name), _ROLES[role]) for role, name in columns.items()])


def label_lines(labels: Sequence[LabelGuess], unplaced: Sequence[str]) -> list[str]:
    """Return ``[labels]``, and as a comment the columns that are used for nothing."""
    title = "Finding = its column: 1 present, 0 absent, empty not annotated; or a column of words, sorted."
    lines = _part("labels", title, [(_label(label), "") for label in labels])
    if not labels:
        lines.append('# effusion = "name of its column"')
    if unplaced:
        shown = ", ".join(repr(plain(name)) for name in unplaced[:_MOST_LISTED])
        more = f" and {len(unplaced) - _MOST_LISTED} more" if len(unplaced) > _MOST_LISTED else ""
        lines.append(f"# Columns used for nothing: {shown}{more}")
    return lines


def clinical_lines(clinical: Mapping[str, str]) -> list[str]:
    """Return ``[clinical]`` with the unit each column must be in."""
    title = "Clinical variable = its column, in this unit; age and sex come from [columns]."
    lines = [(_line(name, column), VARIABLES[name].unit) for name, column in clinical.items()]
    return _part("clinical", title, lines)


def _data(draft: Draft) -> list[str]:
    views = list(draft.views) or "any"
    lines = [
        (_line("layout", draft.layout), _LAYOUTS.get(draft.layout, "a public set as published")),
        (_line("root", draft.root), "folder the images lie under; nothing outside it is read"),
        (_line("views", views), "other views are counted and left out" if draft.views else "every image"),
        (_line("burned_in", draft.burned_in), _BURNED_IN[draft.burned_in]),
        ("max_quarantined = 0.2", "the site stops if more of its images have a fault"),
        ("split = [0.7, 0.1, 0.2]", "train, validation and test, always by patient"),
        ("split_seed = 0", "the same seed is the same split for ever"),
    ]
    if draft.join:
        lines.insert(1, (_line("join", draft.join), "what the files and the table have in common"))
    if draft.table:
        lines.insert(1, (_line("table", draft.table), "CSV or Parquet"))
    return _part("data", "Where the studies are and how they are divided.", lines)


def _part(name: str, title: str, lines: Sequence[tuple[str, str]]) -> list[str]:
    return [f"# {title}", f"[{name}]", *_aligned(lines)]


def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    width = min(max((len(text) for text, why in lines if why), default=0), 40)
    return [f"{text:<{width}}  # {why}" if why else text for text, why in lines]


def _line(key: str, value: str | list[str]) -> str:
    # tomli_w breaks a list over lines; a short one reads better on one.
    if isinstance(value, list):
        return f"{key} = [{', '.join(_quoted(item) for item in value)}]"
    return f"{key} = {_quoted(value)}"


def _quoted(value: str) -> str:
    return tomli_w.dumps({"k": value}).removeprefix("k = ").strip()


def _label(label: LabelGuess) -> str:
    if not label.positive:
        return _line(label.finding, label.column)
    lists = "".join(
        f", {name} = [{', '.join(_value(value) for value in values)}]"
        for name, values in (("positive", label.positive), ("negative", label.negative))
    )
    return f"{label.finding} = {{ column = {_quoted(label.column)}{lists} }}"


def _value(value: str) -> str:
    """Write a number as a number, which matches however the table spells it; a word as it stands."""
    return value if re.fullmatch(r"-?(0|[1-9][0-9]*)", value) else _quoted(value)
