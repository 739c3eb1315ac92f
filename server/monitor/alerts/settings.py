"""AlertSettings: what ``[alerts]`` says: which rules hold, how strict they are, and who is told."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from common.errors import ConfigError, closest
from common.sections import Fraction, Names, NonNegative, Section

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
Ending = Literal["finished", "failed", "stopped"]

Count = Annotated[int, Field(ge=0)]
Mailbox = Annotated[str, Field(pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+$", max_length=254)]


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name or its address.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("10.0.0.1")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def web_address(url: str) -> str:
    """Check where messages are posted to. The message never quotes it: its path is often a secret.

    Raises:
        ValueError: if it is not https, or http on this machine; or holds a user or password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("this is no web address") from None
    if not host or any(c.isspace() or ord(c) < 32 for c in url):
        raise ValueError("this is no web address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("leave user and password out of it; sign with secret_file")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError("it must begin with https:// (http:// only to this machine)")
    return url


Url = Annotated[str, AfterValidator(lambda url: web_address(url) if url else url)]


class WebhookSettings(Section):
    """The table ``[alerts.webhook]``."""

    url: Url = ""
    """Where each alert is posted as JSON (Slack and Teams take it): https, or http on this machine."""
    url_file: str = ""
    """File that holds the address instead, where its path is a secret (as Slack's is)."""
    secret_file: str = ""
    """File with a secret of 16 bytes or more; each message is then signed with it (HMAC-SHA256)."""
    ca_file: str = ""
    """PEM file of the authority that vouches for the receiver, where the system does not know it."""
    least: Severity = "info"
    """Alerts below this are not sent here."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if bool(self.url) == bool(self.url_file):
            raise ValueError("say either url or url_file")
        return self


class EmailSettings(Section):
    """The table ``[alerts.email]``."""

    server: Annotated[str, Field(pattern=r"^[^\s/:@]+$|^[0-9a-fA-F:]+$")]
    """Host of the mail server."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """0: 587 with STARTTLS, 465 with TLS, 25 without."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection is encrypted; ``none`` only for a mail server on this machine."""
    sender: Mailbox
    """Address the mail comes from."""
    recipients: Annotated[tuple[Mailbox, ...], Field(min_length=1, max_length=50)]
    """Addresses it goes to."""
    user: str = ""
    """Who to log in as; empty: without a login."""
    password_file: str = ""
    """File with the password."""
    ca_file: str = ""
    """PEM file of the authority that vouches for the mail server, where the system does not know it."""
    least: Severity = "info"
    """Alerts below this are not sent here."""

    @model_validator(mode="after")
    def _private(self) -> Self:
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file go together")
        if self.security == "none" and (self.user or not is_loopback(self.server)):
            raise ValueError("security = none is only for a mail server on this machine, without a login")
        return self


class AlertSettings(Section):
    """The table ``[alerts]``. A limit of 0 switches its rule off."""

    every: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Seconds between two looks at the runs."""
    settle: NonNegative = 60.0
    """Seconds for which an alert must be gone before it is over, so that a site that flaps is one alert."""
    remind: NonNegative = 24.0
    """Hours after which an alert that still holds is told again; 0: never."""
    page: Url = ""
    """Address of the monitor's page, for a link in each message."""

    site_silent: NonNegative = 300.0
    """Seconds without a sign of life after which a site of a live run counts as silent."""
    update_rejected: bool = True
    """A site's newest update was not admitted, or the site could not take part."""
    round_abandoned: bool = True
    """The newest round had fewer admissible updates than the quorum."""
    quorum_at_risk: bool = True
    """Fewer sites than the quorum are connected."""
    run_ended: Annotated[Names, AfterValidator(lambda names: _endings(names))] = (
        "finished", "failed", "stopped",
    )  # fmt: skip
    """Ends of a run that are told; ``failed`` also tells of one that nobody works on any more."""

    divergence_rounds: PositiveInt = 3
    """Rounds in a row for which a measure must be bad before it is called divergence."""
    loss_factor: Annotated[float, Field(ge=0.0)] = 1.5
    """Mean training loss above this many times its best."""
    auroc_drop: Fraction = 0.05
    """Mean validation AUROC this far below its best."""
    norm_factor: NonNegative = 10.0
    """A site's update norm above this many times the median of the earlier rounds' norms."""
    lora_error: NonNegative = 0.5
    """LoRA aggregation error (share of the mean update that is lost) above this."""

    budget_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of a budget at which it counts as near its end."""
    budget_epsilon: NonNegative = 0.0
    """Privacy budget (epsilon) of a site."""
    budget_bytes: Count = 0
    """Bytes a run may send, both ways together."""
    budget_hours: NonNegative = 0.0
    """Hours a run may take."""
    patience: Count = 10
    """Rounds without a new best mean validation AUROC."""

    webhook: WebhookSettings | None = None
    """Where alerts are posted."""
    email: EmailSettings | None = None
    """Whom they are mailed to."""


def _endings(names: tuple[str, ...]) -> tuple[str, ...]:
    known = ("finished", "failed", "stopped")
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"expected any of {', '.join(known)}, got {wrong[0]!r:.40}")
    return names


def alert_settings(table: Mapping[str, Any], source: str = "centre.toml") -> AlertSettings:
    """Check an ``[alerts]`` table.

    Raises:
        ConfigError: if a key is unknown or its value is of the wrong type or out of range.
    """
    try:
        return AlertSettings(**table)
    except ValidationError as error:
        # without the input: it may be an address whose path is a secret
        first = error.errors(include_url=False, include_input=False)[0]
        path = [str(part) for part in first["loc"]]
        known = _fields(path[:-1]) if first["type"] == "extra_forbidden" else ()
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{source}: {'.'.join(['alerts', *path])}: {message}",
            fix=closest(path[-1], known) if known else "",
        ) from None


def _fields(section: list[str]) -> tuple[str, ...]:
    kinds: dict[str, type[Section]] = {"webhook": WebhookSettings, "email": EmailSettings}
    return tuple((kinds[section[0]] if section else AlertSettings).model_fields)


def read_secret(name: str, folder: Path, least: int = 1) -> str:
    """Read the one line of a file of secrets; a relative name is looked for in ``folder``.

    Raises:
        ConfigError: if it cannot be read, others can read it too, or it is too short.
    """
    path = folder / name
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"alerts: {path} cannot be read", fix="name the file that holds it") from None
    if mode & 0o077:
        raise ConfigError(
            f"alerts: other accounts can read {path}", found=f"mode {mode & 0o777:o}", fix=f"chmod 600 {path}"
        )
    if len(text.encode()) < least or "\n" in text:
        raise ConfigError(f"alerts: {path} should hold one line of at least {least} characters")
    return text
