"""Who is calling: Flower's signed headers against the sites that are admitted, before any body.

Flower verifies the same headers, but after it has read and parsed the whole body, and it does not
bind what the body says to who sent it.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from server.centre.registry import RegisteredSite, Registry

Headers = Iterable[tuple[bytes, bytes]]

LOOK_SECONDS = 0.25
"""A revoked site is known as such this long after, at the latest."""

_NAMES = {
    FLEET_HTTP_PUBLIC_KEY_HEADER.encode(): 2048,
    FLEET_HTTP_SIGNATURE_HEADER.encode(): 512,
    TIMESTAMP_HEADER.encode(): 64,
}
"""Header -> longest value."""


@dataclass(frozen=True)
class Caller:
    """A site whose headers are in order."""

    site: str
    node: int | None
    """None for the moment between admission and Flower's number."""
    key: bytes


class DeniedError(Exception):
    """A request ends here, with this status."""

    def __init__(
        self, status: int, why: str, *, site: str = "", kind: str = "refused", retry_after: int = 0
    ) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.site = site
        self.kind = kind
        self.retry_after = retry_after


class Roster:
    """The admitted sites by node key, as fresh as the registry."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._version: int | None = None
        self._looked = -LOOK_SECONDS
        self._sites: dict[bytes, tuple[RegisteredSite, ec.EllipticCurvePublicKey]] = {}

    def refresh(self, now: bool = False) -> bool:
        """Read the registry if it has changed; returns whether it had."""
        if not now and self._clock() - self._looked < LOOK_SECONDS:
            return False
        self._looked = self._clock()
        version = self._registry.version()
        if version == self._version:
            return False
        sites = {}
        for site in self._registry.sites():
            if site.state == "admitted" and site.node_key:
                sites[site.node_key] = (site, bytes_to_public_key(site.node_key))
        self._sites, self._version = sites, version
        return True

    def find(self, key: bytes) -> tuple[RegisteredSite, ec.EllipticCurvePublicKey] | None:
        """Return the admitted site with this key."""
        self.refresh()
        return self._sites.get(key)

    def admitted(self) -> Mapping[bytes, RegisteredSite]:
        """Return the admitted sites."""
        return {key: site for key, (site, _) in self._sites.items()}


class NodeCredentials:
    """Checks Flower's three headers; each signature is good for one request."""

    def __init__(
        self,
        roster: Roster,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._roster = roster
        self._now = now
        self._seen: dict[tuple[str, str], float] = {}
        self._swept = 0.0

    def check(self, headers: Headers) -> Caller:
        """Return who sent these headers.

        Raises:
            DeniedError: 401 if a header is missing or doubled, the key is no admitted site's, the
                signature or the time does not fit; 503 if the signature was used before (a site that
                signs anew, as Flower's client does for every attempt, passes).
        """
        values = _only(headers)
        try:
            key = base64.b64decode(values[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = base64.b64decode(values[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            stamp = values[TIMESTAMP_HEADER].decode("ascii")
            signed_at = datetime.datetime.fromisoformat(stamp)
        except (KeyError, ValueError, binascii.Error):
            raise DeniedError(401, "no credential") from None
        # A dictionary look-up first: strangers do not get a signature checked.
        found = self._roster.find(key)
        if found is None:
            raise DeniedError(401, "not an admitted site's key")
        site, public_key = found
        if signed_at.tzinfo is None or not verify_signature(public_key, stamp.encode(), signature):
            raise DeniedError(401, "signature does not fit", site=site.name)
        age = (self._now() - signed_at).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            side = "behind" if age > 0 else "ahead"
            raise DeniedError(401, f"its clock is {abs(age):.0f} s {side}", site=site.name, kind="clock")
        self._once(site.name, stamp, age)
        return Caller(site.name, site.node_id, key)

    def withdrawn(self, caller: Caller) -> bool:
        """Whether a site that was admitted when its request began is so no longer."""
        found = self._roster.find(caller.key)
        return found is None or found[0].node_id != caller.node

    def _once(self, site: str, stamp: str, age: float) -> None:
        now = time.monotonic()
        if now - self._swept > 10:
            self._swept = now
            self._seen = {mark: until for mark, until in self._seen.items() if until > now}
        if (site, stamp) in self._seen:
            raise DeniedError(503, "a signature came twice", site=site, retry_after=1)
        self._seen[(site, stamp)] = now + TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE - age


def bearer(headers: Headers) -> str:
    """Return the bearer token, or an empty string if there is none, or more than one."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return ""
    scheme, _, token = found[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def same_token(given: str, expected: str) -> bool:
    """Compare in constant time; an empty token never fits."""
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())


def _only(headers: Headers) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    for name, value in headers:
        if (longest := _NAMES.get(name)) is None:
            continue
        if name.decode() in values or len(value) > longest:
            raise DeniedError(401, "no credential")
        values[name.decode()] = value
    return values
