"""What a notice says: as JSON for a webhook, as a mail, and as one line."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from server.monitor.alerts.alert import Notice, Status
from server.monitor.wording import span

SCHEMA = 1
"""Version of the JSON; a key may be added within it, none is renamed or removed."""
SIGNATURE = "X-Fedcxr-Signature"
"""Header: ``sha256=`` and the HMAC-SHA256 of the body in hex."""

_MARKS: dict[Status, str] = {"open": "", "reminder": "Still: ", "over": "Over"}


@dataclass(frozen=True)
class Sender:
    """Who tells, and where there is more to see."""

    centre: str = ""
    """The centre's name."""
    page: str = ""
    """Address of the monitor's page; empty: messages carry no link."""

    def link(self, run: str) -> str:
        """Return the address of a run's page; empty where the page's is not known."""
        return f"{self.page.rstrip('/')}/runs/{quote(run, safe='')}" if self.page else ""


def line(notice: Notice) -> str:
    """Write a notice as one line.

    >>> from server.monitor.alerts.alert import Alert
    >>> alert = Alert("pilot", "run-failed", "", "critical", "the run has failed", since=0.0)
    >>> line(Notice("1", "open", alert, 5.0)), line(Notice("2", "over", alert, 420.0))
    ('Run pilot: the run has failed', 'Over, after 7 min 00 s. Run pilot: the run has failed')
    """
    alert = notice.alert
    mark = _MARKS[notice.status]
    if notice.status == "over":
        mark += f", after {span(notice.time - alert.since)}. "
    return " ".join(f"{mark}Run {alert.run}: {alert.sentence}".split())


def payload(notice: Notice, sender: Sender) -> dict[str, Any]:
    """Return what a webhook is sent; every value is a string but ``schema``."""
    alert = notice.alert
    link = sender.link(alert.run)
    # Slack reads <...> and & as marks, also for calling everybody to the screen
    text = line(notice).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {
        "schema": SCHEMA,
        "id": notice.id,
        "status": notice.status,
        "time": _moment(notice.time),
        "since": _moment(alert.since),
        "centre": sender.centre,
        "run": alert.run,
        "rule": alert.rule,
        "site": alert.site,
        "severity": alert.severity,
        "sentence": alert.sentence,
        "link": link,
        "text": f"{text} {link}".strip(),
    }


def body(notice: Notice, sender: Sender) -> bytes:
    """Return the JSON of `payload`."""
    return json.dumps(payload(notice, sender), ensure_ascii=False).encode()


def signature(secret: str, data: bytes) -> str:
    """Return the value of the signature's header (RFC 2104).

    >>> signature("key", b"The quick brown fox jumps over the lazy dog")[:23]
    'sha256=f7bc83f430538424'
    """
    return "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def mail(notice: Notice, sender: Sender, address: str, recipients: tuple[str, ...]) -> EmailMessage:
    """Return a notice as a plain mail; its Message-ID is the notice's, so that doubles are seen."""
    alert, message = notice.alert, EmailMessage()
    message["From"] = address
    message["To"] = ", ".join(recipients)
    message["Subject"] = f"[fedcxr {alert.severity}] {line(notice)}"[:200]
    message["Date"] = format_datetime(datetime.fromtimestamp(notice.time, UTC))
    message["Message-ID"] = f"<{notice.id}@{address.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    facts = [
        ("Centre", sender.centre),
        ("Run", alert.run),
        ("Site", alert.site),
        ("Rule", alert.rule),
        ("Severity", alert.severity),
        ("Since", _moment(alert.since)),
        ("Page", sender.link(alert.run)),
    ]
    table = "\n".join(f"{name:<10}{value}" for name, value in facts if value)
    message.set_content(f"{line(notice)}\n\n{table}\n")
    return message


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
