"""What happened, event by event, in plain language."""

from __future__ import annotations

from server.facts.reasons import reason_of
from server.facts.records import FeedEntry, Tone
from server.facts.view import LedgerView
from server.ledger import Event

_TONES: dict[str, Tone] = {
    "finished": "good",
    "released": "good",
    "rejected": "warning",
    "refused": "warning",
    "lost": "warning",
    "waiting": "warning",
    "disk": "warning",
    "stopped": "warning",
    "failed": "bad",
}
_UNTOLD = {"answered"}
"""Kinds that say nothing the next event does not say better."""


def feed(view: LedgerView, before: int | None = None, limit: int = 200) -> list[FeedEntry]:
    """Return the newest entries, those with an id below ``before``, the newest first."""
    found: list[FeedEntry] = []
    with view.still():
        while len(found) < limit:
            events = view.events_before(before, limit)
            found += [_entry(event) for event in events if event.kind not in _UNTOLD]
            if len(events) < limit:
                break
            before = events[-1].id
    return found[:limit]


def feed_after(view: LedgerView, after: int) -> list[FeedEntry]:
    """Return the entries with an id above ``after``, the oldest first."""
    return [_entry(event) for event in view.events(after) if event.kind not in _UNTOLD]


def _entry(event: Event) -> FeedEntry:
    text = "; ".join(line.strip() for line in event.text.splitlines() if line.strip())
    code = event.facts.get("code")
    if isinstance(code, str) and code and not event.facts.get("reason") and event.kind != "failed":
        text += f": {reason_of(code)}"
    tone = _TONES.get(event.kind, "plain")
    if event.kind in ("local", "evaluated") and code:
        tone = "warning"
    if event.kind == "round":
        facts = event.facts
        if facts.get("status") == "abandoned":
            tone = "bad"
        elif facts.get("missing") or facts.get("rejected"):
            tone = "warning"
    return FeedEntry(event.id, event.time, event.round, event.site, event.kind, tone, text)
