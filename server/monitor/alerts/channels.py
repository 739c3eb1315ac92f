"""The channels: one way each to hand a notice over; neither knows of queues, retries or rules."""

from __future__ import annotations

import smtplib
import ssl
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urlsplit

from common.errors import ConfigError
from server.monitor.alerts.alert import Notice
from server.monitor.alerts.messages import SIGNATURE, Sender, body, mail, signature
from server.monitor.alerts.settings import (
    AlertSettings,
    EmailSettings,
    Severity,
    WebhookSettings,
    is_loopback,
    read_secret,
    web_address,
)

TIMEOUT = 10.0
"""Seconds that connecting, and each answer, may take."""
LEAST_SECRET = 16
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_UNWANTED = frozenset({400, 405, 406, 410, 411, 413, 414, 415, 422})
"""Answers by which a receiver says that it will never take this message."""


@dataclass(frozen=True)
class Failure:
    """Why a notice was not taken, in words that hold no address and no secret."""

    why: str
    final: bool = False
    """Whether trying again is of no use."""


class Channel(Protocol):
    """One way to reach somebody."""

    name: str
    least: Severity

    @property
    def where(self) -> str:
        """The host it delivers to, for logs."""

    def send(self, notice: Notice) -> Failure | None:
        """Hand a notice over; returns why it could not be, or None. Does not raise."""


class Webhook:
    """Posts notices as JSON. Redirects are not followed, and no answer is read beyond its head."""

    name = "webhook"

    def __init__(self, settings: WebhookSettings, sender: Sender, folder: Path) -> None:
        """Read the files the settings name.

        Raises:
            ConfigError: if one cannot be read or does not hold what it should.
        """
        self.least = settings.least
        self._sender = sender
        self._url = settings.url or _address_in(settings.url_file, folder)
        self._secret = read_secret(settings.secret_file, folder, LEAST_SECRET) if settings.secret_file else ""
        self._opener = urllib.request.OpenerDirector()  # without the handlers that follow redirects
        if not is_loopback(self.where):
            self._opener.add_handler(urllib.request.ProxyHandler())
        self._opener.add_handler(urllib.request.HTTPHandler())
        context = _tls(settings.ca_file, folder)
        self._opener.add_handler(urllib.request.HTTPSHandler(context=context))
        self._opener.addheaders = [("User-Agent", "fedcxr")]

    @property
    def where(self) -> str:
        """The host it posts to."""
        return urlsplit(self._url).hostname or ""

    def send(self, notice: Notice) -> Failure | None:
        """Post a notice; any answer of 200 to 299 means that it was taken."""
        data = body(notice, self._sender)
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if self._secret:
            headers[SIGNATURE] = signature(self._secret, data)
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            response = self._opener.open(request, timeout=TIMEOUT)
            if response is None:
                return Failure("no handler for its address", final=True)
            with response:
                status = int(response.status)
        except URLError as error:
            return Failure(_named(error.reason if isinstance(error.reason, Exception) else error))
        except (OSError, HTTPException, ValueError) as error:
            return Failure(_named(error))
        if 200 <= status < 300:
            return None
        return Failure(f"it answered {status}", final=status in _UNWANTED)


class Email:
    """Mails notices, one mail each."""

    name = "email"

    def __init__(self, settings: EmailSettings, sender: Sender, folder: Path) -> None:
        """Read the files the settings name.

        Raises:
            ConfigError: if one cannot be read or does not hold what it should.
        """
        self.least = settings.least
        self._settings, self._sender = settings, sender
        self._password = read_secret(settings.password_file, folder) if settings.password_file else ""
        if not self._password.isascii():
            raise ConfigError("alerts.email: the password may hold ASCII only", fix="set another one")
        self._context = _tls(settings.ca_file, folder)

    @property
    def where(self) -> str:
        """The mail server."""
        return self._settings.server

    def send(self, notice: Notice) -> Failure | None:
        """Mail a notice to every recipient."""
        chosen = self._settings
        message = mail(notice, self._sender, chosen.sender, chosen.recipients)
        try:
            with self._connected() as server:
                if chosen.security == "starttls":
                    server.starttls(context=self._context)
                if chosen.user:
                    server.login(chosen.user, self._password)
                server.send_message(message, chosen.sender, chosen.recipients)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            return Failure(f"it answered {max(codes)} to every recipient", final=min(codes) >= 500)
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
            return Failure(f"it answered {error.smtp_code}", final=error.smtp_code >= 500)
        except smtplib.SMTPResponseException as error:
            return Failure(f"it answered {error.smtp_code}")
        except (OSError, smtplib.SMTPException, ValueError) as error:
            return Failure(_named(error))
        return None

    def _connected(self) -> smtplib.SMTP:
        chosen = self._settings
        port = chosen.port or _PORTS[chosen.security]
        name = chosen.sender.rpartition("@")[2]  # said in EHLO; else smtplib looks this machine's name up
        if chosen.security == "tls":
            return smtplib.SMTP_SSL(chosen.server, port, name, timeout=TIMEOUT, context=self._context)
        return smtplib.SMTP(chosen.server, port, name, timeout=TIMEOUT)


def make_channels(settings: AlertSettings, sender: Sender, folder: Path) -> tuple[Channel, ...]:
    """Return the channels that the settings name; relative file names are looked for in ``folder``.

    Raises:
        ConfigError: if a file they name cannot be used.
    """
    found: list[Channel] = []
    if settings.webhook is not None:
        found.append(Webhook(settings.webhook, sender, folder))
    if settings.email is not None:
        found.append(Email(settings.email, sender, folder))
    return tuple(found)


def by_name(channels: Sequence[Channel]) -> dict[str, Channel]:
    """Return name -> channel.

    Raises:
        ConfigError: if two have the same name.
    """
    named = {channel.name: channel for channel in channels}
    if len(named) < len(channels):
        raise ConfigError("two alert channels have the same name")
    return named


def _address_in(name: str, folder: Path) -> str:
    try:
        return web_address(read_secret(name, folder))
    except ValueError as error:
        raise ConfigError(f"alerts.webhook.url_file: {error}", fix="see the address in the file") from None


def _tls(ca_file: str, folder: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=folder / ca_file if ca_file else None)
    except (OSError, ssl.SSLError):
        raise ConfigError(f"alerts: {folder / ca_file} is not a PEM file of certificates") from None


def _named(error: BaseException) -> str:
    """Say what went wrong; never in the error's own words, which may quote the address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "it does not offer STARTTLS, or a way to log in"
    return type(error).__name__
