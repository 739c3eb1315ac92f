"""The questions that make a site.toml, one after the other; Enter takes a question's guess."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from client.data.facts import BurnedIn
from client.setup.guess import Guess, as_layout, with_table
from client.setup.guess_columns import LabelGuess
from client.setup.site_text import Draft, write_site
from client.site import Join, Layout
from common.errors import ConfigError, FedcxrError, closest
from common.findings import CHEXPERT_5, Uncertainty

Answer = Callable[[str, str], str]
"""Asks a question with its guess, '' if there is none; returns what was typed, '' for Enter."""
Tell = Callable[[str], None]

_OPTIONAL = ("study", "view", "age", "sex", "split", "report", "indication", "findings_text", "impression")
_NONE = "-"


def ask(guess: Guess, answer: Answer, tell: Tell) -> str:
    """Ask what a folder's site.toml must say and return its text; Enter takes the guess."""
    form = _Form(answer, tell)
    for remark in guess.remarks:
        tell(f"! {remark}")
    tell("Enter takes the guess in [brackets].")
    name = form.ask("Site's name, for logs and reports; nothing about patients:", guess.name, _site_name)
    guess = _layout(guess, form)
    if not guess.public:
        guess = _columns(guess, form)
    views = usual_views(guess) if guess.public or guess.layout == "folder" else _ask_views(guess, form)
    burned_in = "refuse"
    if guess.dicom:
        tell("Letters burnt into a picture may be a name. refuse sets aside what the header says has them,")
        tell("require-no whatever does not say it has none, accept neither.")
        burned_in = form.choose("Burnt-in letters:", get_args(BurnedIn), "refuse")
    labels = _ask_labels(guess, form) if guess.labels else ()
    uncertainty = _ask_policies(guess, labels, form)
    kept = _without(guess.clinical, "Clinical variables", form)
    guess = replace(guess, name=name, clinical={key: guess.clinical[key] for key in kept})
    return write_site(replace(draft(guess, labels, views, uncertainty), burned_in=burned_in))


@dataclass(frozen=True)
class _Form:
    """Asks until an answer will do."""

    answer: Answer
    tell: Tell

    def ask(self, question: str, guess: str, check: Callable[[str], str]) -> str:
        """Return the checked answer; a check raises ValueError with what is wrong."""
        while True:
            typed = self.answer(question, guess).strip() or guess
            try:
                return check(typed)
            except ValueError as error:
                self.tell(f"  {error}")
            except FedcxrError as error:
                self.tell(f"  {error.problem}" + (f"; {error.fix}" if error.fix else ""))

    def choose(self, question: str, options: Sequence[str], guess: str, none: bool = False) -> str:
        """Return one of the options; with ``none``, '' for the answer '-'."""

        def check(typed: str) -> str:
            if none and typed in (_NONE, ""):
                return ""
            if typed in options:
                return typed
            if not typed:
                raise ValueError(f"there is no guess: {_listing(options)}")
            raise ValueError(f"not one of them; {closest(typed, options) or _listing(options)}")

        return self.ask(question, guess or (_NONE if none else ""), check)

    def several(self, question: str, options: Sequence[str], guess: str) -> tuple[str, ...]:
        """Return some of the options, typed with commas; none for the answer '-'."""

        def check(typed: str) -> str:
            wrong = [word for word in _split(typed) if word not in options]
            if wrong and typed != _NONE:
                raise ValueError(closest(wrong[0], options) or f"not one of them: {_listing(options)}")
            return typed

        typed = self.ask(question, guess or _NONE, check)
        return () if typed == _NONE else _split(typed)


def _split(typed: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in typed.split(",") if word.strip()))


def _listing(options: Sequence[str]) -> str:
    shown = ", ".join(options[:30])
    return f"{shown} and {len(options) - 30} more" if len(options) > 30 else shown


def _site_name(typed: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", typed):
        raise ValueError("up to 32 lower-case letters, digits, - and _, beginning with a letter or digit")
    return typed


def _layout(guess: Guess, form: _Form) -> Guess:
    """Ask what the folder holds, which table and where the images lie."""
    form.tell("table: a table with a row per image. folder: DICOM files, and perhaps a table of labels.")
    form.tell(f"Or a public set as published: {_listing(get_args(Layout)[2:])}.")
    layout = form.choose("Layout:", get_args(Layout), guess.layout)
    if layout in ("table", "folder"):
        choices = guess.tables
        if layout == "table" and not choices:
            raise ConfigError(
                "the folder holds no table to read", fix="add a CSV (UTF-8, commas) with a row per image"
            )
        if len(choices) > 1 or (choices and layout == "folder"):
            table = form.choose(
                f"Table{' of labels, - for none' if layout == 'folder' else ''} ({_listing(choices)}):",
                choices,
                guess.table or ("" if layout == "folder" else choices[0]),
                none=layout == "folder",
            )
            guess = _of_table(guess, table, form)
        elif choices and not guess.table:
            guess = _of_table(guess, choices[0], form)
    guess = as_layout(guess, layout)
    if layout == "folder" and guess.table and not guess.join:
        form.tell("A file and its row of the table have one thing in common.")
        guess = replace(guess, join=form.choose("Joined by:", get_args(Join), ""))
    if layout != "table" or not guess.located:
        root = form.ask("Folder the images lie under:", guess.root, _folder_in(guess.folder))
        guess = replace(guess, root=root)
    return guess


def _of_table(guess: Guess, table: str, form: _Form) -> Guess:
    if table == guess.table:
        return guess
    if not table:
        return replace(guess, table="", headers=(), columns={}, labels=(), clinical={}, join="", views=())
    before = len(guess.remarks)
    guess = with_table(guess, table)
    for remark in guess.remarks[before:]:
        form.tell(f"! {remark}")
    return guess


def _folder_in(folder: Path) -> Callable[[str], str]:
    def check(typed: str) -> str:
        if not (folder / typed).is_dir():
            raise ValueError("there is no such folder")
        return typed

    return check


def patient_needed(layout: str, guess: Guess) -> bool:
    """Tell whether only a column can say whose an image is: a DICOM header can, a picture cannot."""
    return layout == "table" or (layout == "folder" and not guess.dicom)


def _columns(guess: Guess, form: _Form) -> Guess:
    """Ask which column is which; what was guessed of the optional ones is confirmed in one go."""
    if not guess.table:
        if patient_needed(guess.layout, guess):
            raise ConfigError(
                "pictures do not tell whose they are", fix="add a table that names file and patient"
            )
        return guess
    columns = dict(guess.columns)
    form.tell(f"Columns of {guess.table}: {_listing(guess.headers)}.")
    if guess.layout == "table":
        columns["path"] = form.choose("Column of the image files:", guess.headers, columns.get("path", ""))
    else:
        columns.pop("path", None)
        if guess.join != "patient":
            known = columns.get(guess.join, "")
            columns[guess.join] = form.choose(f"Column of the {guess.join}:", guess.headers, known)
    needed = patient_needed(guess.layout, guess)
    if needed or "patient" in columns or guess.join == "patient":
        form.tell("Patients are told apart by one column; the split is by patient. It never leaves the site.")
        columns["patient"] = form.choose(
            f"Column of the patient{'' if needed else ', - to use the header'}:",
            guess.headers,
            columns.get("patient", ""),
            none=not (needed or guess.join == "patient"),
        )
    others = [role for role in _OPTIONAL if role in columns and role != guess.join]
    if others:
        form.tell("Also: " + ", ".join(f"{role} = {columns[role]!r}" for role in others) + ".")
    if others and form.choose("Are these right? yes or no:", ("yes", "no"), "yes") == "no":
        for role in _OPTIONAL[:5]:
            if role != guess.join:
                columns[role] = form.choose(
                    f"Column of the {role}, - for none:", guess.headers, columns.get(role, ""), none=True
                )
        for role in _OPTIONAL[5:]:
            columns.pop(role, None)
    order = ("path", "file", "instance", "accession", "patient", *_OPTIONAL)
    return replace(guess, columns={role: columns[role] for role in order if columns.get(role)})


def usual_views(guess: Guess) -> tuple[str, ...]:
    """Return the views to use if nobody is asked."""
    if guess.layout == "table":
        return guess.views if "view" in guess.columns else () if guess.pictures else ("PA", "AP")
    return tuple(dict.fromkeys((*guess.views, "PA", "AP")))


def _ask_views(guess: Guess, form: _Form) -> tuple[str, ...]:
    if "view" not in guess.columns and guess.pictures:
        form.tell("The table does not tell which images are frontal, and the files cannot.")
    else:
        form.tell("Views that are used, as the table spells them; the others are counted and left out.")
    proposed = ", ".join(usual_views(guess))
    if not proposed and "view" not in guess.columns:
        proposed = "any"

    def check(typed: str) -> str:
        if not _split(typed):
            raise ValueError("there is no guess: name the frontal views, or any")
        return typed

    typed = form.ask("Views, with commas, or any:", proposed, check)
    return () if typed.lower() == "any" else _split(typed)


def _ask_labels(guess: Guess, form: _Form) -> tuple[LabelGuess, ...]:
    """Show the labels found; ask what words mean where that is not known."""
    settled = {label.finding: label for label in guess.labels if label.settled}
    kept = _without({finding: _shown(label) for finding, label in settled.items()}, "Findings", form)
    labels = [settled[finding] for finding in kept]
    for label in guess.labels:
        if not label.settled:
            form.tell(f"Column {label.column!r} may be {label.finding}; it holds {', '.join(label.values)}.")
            question = f"Which mean {label.finding} is present? With commas, - to leave the column out:"
            positive = form.several(question, label.values, ", ".join(label.positive))
            rest = [value for value in label.values if value not in positive]
            if positive and rest:
                negative = form.several("And which that it is absent?", rest, ", ".join(label.negative))
                if negative:
                    labels.append(replace(label, positive=positive, negative=negative))
    return tuple(labels)


def _shown(label: LabelGuess) -> str:
    words = f" (present: {', '.join(label.positive)}; absent: {', '.join(label.negative)})"
    return f"{label.column!r}{words if label.positive else ''}"


def _without(found: Mapping[str, str], title: str, form: _Form) -> list[str]:
    """Show what was found and ask what to leave out of it."""
    if not found:
        return []
    form.tell(f"{title}: " + ", ".join(f"{name} = {column}" for name, column in found.items()) + ".")
    left_out = form.several("Leave any out? Names with commas, - for none:", list(found), "")
    return [name for name in found if name not in left_out]


def uncertain(guess: Guess, labels: Iterable[LabelGuess]) -> tuple[str, ...]:
    """Return the findings with uncertain labels, for which there must be a policy."""
    return (*guess.uncertain, *(label.finding for label in labels if label.uncertain))


def _ask_policies(guess: Guess, labels: Sequence[LabelGuess], form: _Form) -> dict[str, Uncertainty]:
    """Ask what -1 counts as. There is no guess: it changes what a model learns."""
    findings = uncertain(guess, labels)
    if not findings:
        return {}
    form.tell(f"Some labels are uncertain (-1): {', '.join(findings)}. There is no guess for these.")
    form.tell("ignore: not annotated. ones: present. zeros: absent. each: asked finding by finding.")
    published = [finding for finding in findings if finding in CHEXPERT_5]
    if published:
        form.tell(f"chexpert-5: the published policy for {', '.join(published)}.")
    options = (*get_args(Uncertainty), "each", *(["chexpert-5"] if published else []))
    chosen = form.choose(f"An uncertain label counts as ({', '.join(options)}):", options, "")
    policies: dict[str, Uncertainty] = {}
    if chosen == "chexpert-5":
        policies = {finding: CHEXPERT_5[finding] for finding in published}
        rest = [finding for finding in findings if finding not in policies]
        if rest:
            options = (*get_args(Uncertainty), "each")
            chosen = form.choose(f"And for the other {len(rest)} ({', '.join(options)}):", options, "")
    for finding in findings:
        if finding not in policies:
            policy = chosen
            if chosen == "each":
                policy = form.choose(f"{finding} (ignore, ones, zeros):", get_args(Uncertainty), "")
            policies[finding] = cast("Uncertainty", policy)
    return policies


def draft(
    guess: Guess,
    labels: Sequence[LabelGuess],
    views: tuple[str, ...],
    uncertainty: Mapping[str, Uncertainty],
) -> Draft:
    """Gather what was guessed and answered."""
    used = {*guess.columns.values(), *guess.clinical.values(), *(label.column for label in labels)}
    return Draft(
        name=guess.name,
        layout=guess.layout,
        root=guess.root,
        table="" if guess.public else guess.table,
        join=guess.join if guess.layout == "folder" else "",
        columns={} if guess.public else guess.columns,
        views=views,
        labels=tuple(labels),
        uncertainty=uncertainty,
        clinical={} if guess.public else guess.clinical,
        unplaced=tuple(name for name in guess.headers if name not in used),
    )
