"""Make a site.toml by questions in a terminal, each with its guess, or from the guesses alone.

No cell of a table is shown but the words of label columns that `client.setup.guess_columns` lets pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from client.data.columns import fixed_width
from client.data.folder import CONFLICT
from client.review.summary import plain
from client.setup import guess_columns
from client.setup.guess import Guess, guess_site
from client.setup.guess_columns import LabelGuess
from client.setup.interview import Tell, ask, draft, patient_needed, uncertain, usual_views
from client.setup.site_text import clinical_lines, column_lines, label_lines, write_site
from client.site import load_site
from common.clinical import suggest_variables
from common.errors import ConfigError
from common.files import READABLE, write_atomic
from common.findings import suggest

if TYPE_CHECKING:
    from rich.console import Console

_PATHS = {"path", "imagepath", "filepath", "filename", "imageindex", "imagefile", "file"}


def describe_site(folder: Path, console: Console, take_guesses: bool = False) -> Path:
    """Ask about a folder of studies and write its ``site.toml``; returns the file.

    Raises:
        ConfigError: if there is a site.toml already, the folder holds nothing to describe, the
            answers end early, or guesses shall do and something has none.
        TableError: if the folder's table cannot be read.
    """
    from rich.text import Text

    file = folder / "site.toml"
    if file.exists():
        raise ConfigError("there is a site.toml already", found=str(file), fix="edit it, or move it away")

    def tell(text: str) -> None:
        console.print(Text(plain(text, 1000)))

    def answer(question: str, guess: str) -> str:
        try:
            shown = plain(f"{question} [{guess}]" if guess else question, 1000)
            return console.input(Text(f"{shown} ", "bold"))
        except EOFError:
            raise ConfigError(
                "the questions ended before their answers",
                fix="answer them in a terminal, or add --yes to take the guesses",
            ) from None

    guess = guess_site(folder)
    text = from_guesses(guess, tell) if take_guesses else ask(guess, answer, tell)
    write_atomic(file, text.encode(), READABLE)
    load_site(file)
    tell(f"{file.name} is written: read it, and change what is not right")
    return file


def from_guesses(guess: Guess, tell: Tell = lambda text: None) -> str:
    """Return a site.toml made of the guesses alone.

    Raises:
        ConfigError: if something has no guess and no safe default: the patient, uncertain labels.
    """
    for remark in guess.remarks:
        tell(f"! {remark}")
    missing = []
    if guess.layout == "table" and "path" not in guess.columns:
        missing.append("columns.path (which column names the image files)")
    if patient_needed(guess.layout, guess) and "patient" not in guess.columns:
        missing.append("columns.patient (which column tells patients apart)")
    if "view" in guess.columns and not guess.views and not guess.public:
        missing.append("data.views (which of the table's views are frontal)")
    if findings := uncertain(guess, guess.labels):
        missing.append(f"uncertainty (what -1 counts as for {', '.join(findings)})")
    if missing:
        raise ConfigError(
            f"no guess is good enough for {'; '.join(missing)}",
            fix="run fedcxr-site index on the folder in a terminal without --yes, or write site.toml",
        )
    settled = tuple(label for label in guess.labels if label.settled)
    for label in guess.labels:
        if not label.settled:
            tell(f"! column {label.column!r} is left out: which values mean {label.finding} is not known")
    return write_site(draft(guess, settled, usual_views(guess), {}))


def suggest_text(columns: Iterable[str]) -> str:
    """Propose ``[columns]``, ``[labels]`` and ``[clinical]`` for the columns of a table.

    Given the cells as well, a mapping of name to text, it looks at them; it shows only the words
    of label columns that may be shown.

    >>> print(suggest_text(["MRN", "Pleural_Effusion", "WBC", "ward"]))
    # What the table calls things. Cells of these columns never leave the site.
    [columns]
    patient = "MRN"  # tells patients apart; never leaves the site
    <BLANKLINE>
    # Finding = its column: 1 present, 0 absent, empty not annotated; or a column of words, sorted.
    [labels]
    effusion = "Pleural_Effusion"
    # Columns used for nothing: 'ward'
    <BLANKLINE>
    # Clinical variable = its column, in this unit; age and sex come from [columns].
    [clinical]
    leukocytes = "WBC"  # 10^9/L
    """
    remarks: list[str] = []
    if isinstance(columns, Mapping):
        cells = {name: fixed_width(column) for name, column in columns.items() if name != CONFLICT}
        names = list(cells)
        roles, doubts = guess_columns.roles(cells)
        rest = {name: column for name, column in cells.items() if name not in roles.values()}
        labels, of_labels = guess_columns.labels(rest)
        clinical, of_clinical = guess_columns.clinical(rest)
        remarks = [*doubts, *of_labels, *of_clinical]
    else:
        names = list(columns)
        roles = guess_columns.by_name(names)
        labels = [LabelGuess(finding, name) for finding, name in suggest(names).items()]
        clinical = {k: v for k, v in suggest_variables(names).items() if k not in ("age", "male")}
    if path := next((name for name in names if guess_columns.key(name) in _PATHS), ""):
        roles = {"path": path} | {role: name for role, name in roles.items() if name != path}
    settled = [label for label in labels if label.settled]
    placed = {*roles.values(), *clinical.values(), *(label.column for label in settled)}
    parts = [column_lines(roles)] if roles else []
    parts.append(label_lines(settled, [name for name in names if name not in placed]))
    parts += [clinical_lines(clinical)] if clinical else []
    parts += [[f"# {plain(remark, 300)}" for remark in remarks]] if remarks else []
    return "\n\n".join("\n".join(part) for part in parts)
