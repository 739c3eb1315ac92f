"""What a test reads in a drawn figure, and in the ledger past everything that draws it."""

from __future__ import annotations

import sqlite3

from server.facts.records import SiteRow


def asked(run, query, values=()):
    """Ask the ledger itself, past everything that is tested here."""
    with sqlite3.connect(f"file:{run.folder / 'ledger.sqlite'}?mode=ro", uri=True) as db:
        return db.execute(query, values).fetchall()


def texts(value):
    """Every text in a figure."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


def places(trace):
    """The x of every point, also where Plotly counts them itself."""
    return trace["x"] if "x" in trace else [trace["x0"] + trace["dx"] * i for i in range(len(trace["y"]))]


def row(name, parts):
    nothing = dict.fromkeys(
        ("heard", "train_studies", "validation_studies", "test_studies", "patients", "update_norm", "cosine",
         "weight", "seconds", "auroc", "gain", "personalised_gain")
    )  # fmt: skip
    return SiteRow(
        name=name, contact="unknown", doing="", findings=(), participation=tuple(parts), up=0, down=0,
        set_aside=0, rejections=(), **nothing,
    )  # fmt: skip
