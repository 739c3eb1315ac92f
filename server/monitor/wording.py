"""How the pages write numbers, times and states: one place, so that every page says them alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from server.report_words import between, counted, listed, number, signed, size

STATES = {
    "waiting": ("waiting", "wait"),
    "enrolling": ("enrolling", "run"),
    "local": ("local training", "run"),
    "training": ("training", "run"),
    "testing": ("testing", "run"),
    "finished": ("finished", "good"),
    "failed": ("failed", "bad"),
    "stopped": ("stopped", "still"),
    "idle": ("idle", "still"),
}
"""State -> (the word on its badge, its look)."""

ACTIVE = frozenset({"waiting", "enrolling", "local", "training", "testing"})
"""States in which somebody works on a run."""

METRICS = {
    "auroc": "AUROC",
    "pr-auc": "PR-AUC",
    "loss": "Training loss",
    "ece": "Calibration error (ECE)",
    "update-norm": "Update norm",
    "codec-error": "Codec error",
    "cosine": "Cosine with the aggregate",
    "weight": "Weight in the mean",
    "seconds": "Seconds",
    "examples": "Examples",
    "steps": "Local steps",
    "up": "Bytes up",
    "down": "Bytes down",
    "payload": "Payload bytes",
    "lora-error": "LoRA aggregation error",
    "aggregate-norm": "Norm of the aggregate",
    "epsilon": "Privacy spent (epsilon)",
}


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def span(seconds: float) -> str:
    """Write a length of time; the page's script writes it the same way.

    >>> [span(s) for s in (0.4, 59.9, 64, 615, 7500, 90000, 200000)]
    ['0 s', '59 s', '1 min 04 s', '10 min', '2 h 05 min', '1 day', '2 days']
    """
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return counted(whole // 86400, "day")


def took(seconds: float) -> str:
    """Write how long something took, tenths below ten seconds.

    >>> took(1.234), took(75)
    ('1.2 s', '1 min 15 s')
    """
    return f"{seconds:.1f} s" if seconds < 9.95 else span(seconds)


def figure(value: float) -> str:
    """Write a measured value to three digits, whatever its size.

    >>> figure(0.71249), figure(12.345), figure(1234.5), figure(1.2e-7)
    ('0.712', '12.3', '1,234', '1.2e-07')
    """
    size = abs(value)
    if size and size < 5e-4:
        return f"{value:.1e}".replace("-", "−", 1) if value < 0 else f"{value:.1e}"
    digits = 3 if size < 9.9995 else 1 if size < 999.95 else 0
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−")


def clock(moment: float) -> str:
    """Write a moment in this machine's time zone, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def day(moment: float) -> str:
    """Write a moment shortly: day, month, hour and minute."""
    then = time.localtime(moment)
    return f"{then.tm_mday} {_MONTHS[then.tm_mon - 1]} {then.tm_hour:02d}:{then.tm_min:02d}"


def zone() -> str:
    """Return the name of this machine's time zone."""
    return time.strftime("%Z")


def words(name: str) -> str:
    """Write a finding as people do."""
    return name.replace("_", " ")


def count(n: int) -> str:
    """Write a number of things.

    >>> count(2_370_062), count(1204)
    ('2.37 M', '1,204')
    """
    return f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}"


def metric_name(metric: str) -> str:
    """Return what people call a metric."""
    return METRICS.get(metric, metric)


FILTERS: dict[str, Callable[..., Any]] = {
    "between": between,
    "between_signed": lambda interval: between(interval, signed),
    "clock": clock,
    "count": count,
    "day": day,
    "figure": figure,
    "metric_name": metric_name,
    "number": number,
    "percent": lambda share: f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %",
    "signed": signed,
    "size": size,
    "span": span,
    "took": took,
    "words": words,
}
"""What templates may write after ``|``."""

GLOBALS: dict[str, Any] = {"counted": counted, "listed": listed, "states": STATES, "zone": zone}
"""What templates may call."""
