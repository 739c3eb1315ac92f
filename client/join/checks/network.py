"""The way to the centre: name, port, proxy, certificate, clock, and whether it knows this site."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from client.join.checks.case import Case, Outcome, failure, ok, skipped, warning
from client.join.checks.proxy import find_proxy
from client.join.checks.reach import (
    Budget,
    Reply,
    Route,
    Stopped,
    ask,
    checked_context,
    connect,
    resolve,
    shown_certificate,
    split_address,
    unchecked_context,
)
from client.join.checks.stops import explain
from client.join.keys import load_node_key
from common.certificate import covers, days_left, hosts_in, load_certificate
from common.credentials import WelcomeFile, node_key_bytes
from common.errors import CredentialError

SECONDS = 7.5
"""For the whole way; each step may take three."""
_STEP = 3.0
HEALTH = "/health"
KNOCK = "/v1/fleet/get-run"
"""Asked with a signature and a body of the wrong kind: a stranger gets 401, a site 415; nothing is done."""

AHEAD, BEHIND = 5.0, 305.0
"""Seconds the site's clock may be ahead of the centre's or behind it (Flower's SYSTEM_TIME_TOLERANCE and
TIMESTAMP_TOLERANCE): a request signed outside of it is answered 401."""
NOTICEABLE = 2.0

PUBLIC_KEY, SIGNATURE, TIMESTAMP = "flwr-public-key", "flwr-signature", "flwr-timestamp"
"""Headers of Flower's node authentication."""


def check_network(case: Case) -> Iterator[Outcome]:
    """Go from the name to the centre's answer, and say where it ends."""
    if case.offline:
        yield skipped("network", "--offline: nothing was sent.")
        return
    centre = case.centre
    if centre is None:
        yield skipped("network", "without a welcome or an invitation the centre's address is not known.")
        return
    host, port = split_address(centre.address)
    route = Route(host, port, find_proxy(case.around.environment, host))
    visit = _Visit(case, route, centre.certificate.encode(), Budget(SECONDS))
    yield from visit.outcomes()


class _Visit:
    """One visit to the centre; what it learns on the way is kept for the steps that follow."""

    def __init__(self, case: Case, route: Route, authority: bytes, budget: Budget) -> None:
        self.case, self.route, self.authority, self.budget = case, route, authority, budget
        self.address = f"{route.host}:{route.port}"
        self.reply: Reply | None = None
        self.trusted = False
        self.clock_refused = False

    def outcomes(self) -> Iterator[Outcome]:
        try:
            yield from self._name()
            yield from self._port()
            yield from self._certificate()
            yield from self._clock()
            yield from self._answer()
        except Stopped as stopped:
            yield explain(stopped, self.route, SECONDS)

    def _name(self) -> Iterator[Outcome]:
        host = self.route.first[0]
        addresses = resolve(host, self.budget.step(_STEP))
        if self.route.proxy is None and addresses != [host]:
            yield ok("name", f"{host} is {', '.join(addresses[:3])}.")
        elif self.route.proxy is not None:
            yield ok(
                "proxy",
                f"{self.route.proxy.variable} sends requests for {self.address} through {self.route.proxy}.",
            )

    def _port(self) -> Iterator[Outcome]:
        connect(self.route, self.budget.step(_STEP)).close()
        yield ok("port", f"{self.address} takes connections.")

    def _certificate(self) -> Iterator[Outcome]:
        try:
            context = checked_context(self.authority)
        except (ssl.SSLError, ValueError):
            yield skipped("certificate", "the centre's CA certificate cannot be read.")
            return
        try:
            self.reply = self._ask(context, "GET", HEALTH)
            self.trusted = True
            shown = shown_certificate(self.route, self.budget.step(_STEP))
        except ssl.SSLCertVerificationError as error:
            shown = shown_certificate(self.route, self.budget.step(_STEP))
            self.reply = self._look_at_the_clock()
            yield self._distrust(shown, error)
            return
        left = days_left(shown, self._centre_time())
        if left < 14:
            yield warning(
                "certificate",
                f"the centre's certificate ends in {max(left, 0):.0f} days.",
                "tell the centre: fedcxr-server renew makes a new one and changes nothing here",
            )
        else:
            yield ok("certificate", f"the centre's, for {self.route.host}, good for {left:.0f} more days.")

    def _distrust(self, shown: bytes, error: ssl.SSLCertVerificationError) -> Outcome:
        """Say why a certificate is not believed, from the certificate itself."""
        certificate, now = load_certificate(shown), self._centre_time()
        issuer = certificate.issuer.rfc4514_string()[:80]
        if not _issued_by(certificate, self.authority):
            who = f"the proxy {self.route.proxy}" if self.route.proxy else "something on the way"
            return failure(
                "certificate",
                f"{self.address} shows a certificate of another CA ({issuer}), not of this site's centre: "
                f"{who} intercepts TLS, or it is another server.",
                f"have {self.address} exempted from TLS inspection; if nothing inspects, ask the centre "
                "whether it was set up anew",
            )
        if now > certificate.not_valid_after_utc:
            return failure(
                "certificate",
                f"the centre's certificate has expired: it ended {certificate.not_valid_after_utc:%Y-%m-%d}.",
                "tell the centre to run fedcxr-server renew",
            )
        if now < certificate.not_valid_before_utc:
            return failure(
                "certificate",
                "the centre's certificate is not valid yet: "
                f"it begins {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC.",
                "set this machine's clock; if it is right, tell the centre",
            )
        if not covers(shown, self.route.host):
            names = ", ".join(hosts_in(shown)[:4]) or "nobody"
            return failure(
                "certificate",
                f"the centre's certificate does not name {self.route.host} (SAN): it is for {names}.",
                f"ask the centre for a certificate with --san {self.route.host}, or for the right address",
            )
        local = datetime.fromtimestamp(self.case.around.now(), UTC)
        if abs((local - now).total_seconds()) > BEHIND:
            return failure(
                "certificate",
                f"this machine's clock makes the centre's certificate invalid ({error.verify_message}).",
                "set this machine's clock",
            )
        return failure(
            "certificate",
            f"the centre's certificate is not believed: {error.verify_message}.",
            "show this line to the centre",
        )

    def _clock(self) -> Iterator[Outcome]:
        """Compare with the server's Date, which has whole seconds and may be one second old."""
        theirs = _date(self.reply)
        if self.reply is None or theirs is None:
            yield skipped("clock", "the centre's answer has no date to compare with.")
            return
        # Their moment lies in the two seconds after Date, ours between question and answer.
        ahead = (self.reply.sent + self.reply.received) / 2 - (theirs.timestamp() + 1)
        slack = 1 + (self.reply.received - self.reply.sent) / 2
        word = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the centre's"
        if ahead - slack > AHEAD or -ahead - slack > BEHIND:
            self.clock_refused = True
            yield failure(
                "clock",
                f"this machine's clock is {word}: the centre refuses what is signed more than "
                f"{AHEAD:.0f} s ahead or {BEHIND:.0f} s behind.",
                "set the clock and keep it right: timedatectl set-ntp true",
            )
        elif abs(ahead) - slack > NOTICEABLE:
            yield warning(
                "clock",
                f"this machine's clock is {word}; {AHEAD:.0f} s ahead and requests are refused.",
                "keep the clock right: timedatectl set-ntp true",
            )
        else:
            yield ok("clock", "agrees with the centre's to within two seconds.")

    def _answer(self) -> Iterator[Outcome]:
        if not self.trusted or self.reply is None:
            yield skipped("centre", "nothing is asked of a server that is not believed.")
            return
        status = self.reply.status
        if status == 503:
            yield warning(
                "centre", "the centre is there and asks to wait.", "nothing to do here: its disk may be full"
            )
        elif status != 200:
            yield failure(
                "centre",
                f"{self.address} answers {status} when asked for its health: the port is of another service.",
                "ask the centre which port sites are to dial",
            )
            return
        else:
            yield ok("centre", f"answers at {self.address}.")
        yield from self._knows_us()

    def _knows_us(self) -> Iterator[Outcome]:
        """Send a signed request without sense: it is refused either way, but a stranger's with 401."""
        if not isinstance(self.case.welcome, WelcomeFile):
            yield skipped("admission", "this site has no welcome yet.")
            return
        if self.clock_refused:
            yield skipped("admission", "with this clock the centre refuses every signature.")
            return
        try:
            key = load_node_key(self.case.folder.node_key)
        except CredentialError:
            yield skipped("admission", "the node key cannot be used.")
            return
        stamp = datetime.fromtimestamp(self.case.around.now(), UTC).isoformat()
        signature = key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        headers = {
            PUBLIC_KEY: base64.b64encode(node_key_bytes(key.public_key())).decode(),
            TIMESTAMP: stamp,
            SIGNATURE: base64.b64encode(signature).decode(),
            "content-type": "text/plain",
        }
        reply = self._ask(checked_context(self.authority), "POST", KNOCK, headers)
        if reply.status == 401:
            yield failure(
                "admission",
                "the centre does not take requests signed with this site's node key.",
                "if the clock is right: ask the centre whether this site was revoked, or admitted with "
                "another key",
            )
        elif reply.status in (404, 405):
            yield failure(
                "admission",
                f"{self.address} has no door for sites: it is the port of the centre's own commands.",
                "ask the centre which port sites are to dial",
            )
        else:
            yield ok("admission", "the centre knows this site's node key.")

    def _ask(
        self, context: ssl.SSLContext, method: str, path: str, headers: dict[str, str] | None = None
    ) -> Reply:
        return ask(self.route, context, method, path, self.case.around.now, self.budget.step(_STEP), headers)

    def _look_at_the_clock(self) -> Reply | None:
        """Learn the date from a server that is not believed; it is told nothing but a path."""
        try:
            return self._ask(unchecked_context(), "GET", HEALTH)
        except Stopped:
            return None

    def _centre_time(self) -> datetime:
        return _date(self.reply) or datetime.fromtimestamp(self.case.around.now(), UTC)


def _issued_by(certificate: x509.Certificate, authority: bytes) -> bool:
    try:
        certificate.verify_directly_issued_by(load_certificate(authority))
    except (ValueError, TypeError, InvalidSignature, CredentialError):
        return False
    return True


def _date(reply: Reply | None) -> datetime | None:
    if reply is None or "date" not in reply.headers:
        return None
    try:
        return parsedate_to_datetime(reply.headers["date"])
    except ValueError:
        return None
