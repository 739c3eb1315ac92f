"""Read certificates: fingerprints for people, dates, and the hosts one stands for."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import CredentialError

Pem = bytes | str
_CENTRE_KEY = "urn:fedcxr:centre-key:"


def fingerprint(pem: Pem) -> str:
    """Return the SHA-256 of a certificate for people to compare, as ``openssl x509 -fingerprint`` does."""
    return colons(load_certificate(pem).fingerprint(SHA256()))


def colons(digest: bytes) -> str:
    """Write bytes for people.

    >>> colons(bytes([1, 171, 255]))
    '01:AB:FF'
    """
    return digest.hex(":").upper()


def load_certificate(pem: Pem, name: str = "the certificate") -> x509.Certificate:
    """Parse the one certificate of a PEM text.

    Raises:
        CredentialError: if it is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except ValueError:
        raise CredentialError(f"{name} is not a PEM certificate", fix="restore it from a backup") from None


def valid_until(pem: Pem) -> datetime:
    """Return the last moment of a certificate, in UTC."""
    return load_certificate(pem).not_valid_after_utc


def days_left(pem: Pem, now: datetime | None = None) -> float:
    """Return how many days a certificate has left; below 0 it has expired."""
    return (valid_until(pem) - (now or datetime.now(UTC))).total_seconds() / 86400


def check_dates(pem: Pem, name: str, now: datetime | None = None, fix: str = "") -> None:
    """Refuse a certificate that is not valid now.

    Raises:
        CredentialError: if it has expired or is not valid yet, as a clock that is wrong makes it seem.
    """
    certificate, now = load_certificate(pem, name), now or datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        raise CredentialError(
            f"{name} is not valid yet",
            found=f"it begins {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, "
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC",
            fix="set the clock",
        )
    if now > certificate.not_valid_after_utc:
        raise CredentialError(
            f"{name} has expired",
            found=f"it ended {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, "
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC",
            fix=fix,
        )


def hosts_in(pem: Pem) -> tuple[str, ...]:
    """Return the DNS names and IP addresses a certificate stands for."""
    names = _alternative_names(load_certificate(pem))
    found = names.get_values_for_type(x509.DNSName)
    return (*found, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def covers(pem: Pem, host: str) -> bool:
    """Tell whether a certificate stands for a host as a client compares it: addresses by value."""
    try:
        return str(ipaddress.ip_address(host.strip("[]"))) in hosts_in(pem)
    except ValueError:
        return host.lower().rstrip(".") in {name.lower() for name in hosts_in(pem)}


def centre_key_in(pem: Pem) -> str:
    """Return the centre's signing key that its CA certificate vouches for; empty if for none.

    So one fingerprint, read out over the telephone, stands for both.
    """
    for uri in _alternative_names(load_certificate(pem)).get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(_CENTRE_KEY):
            return uri.removeprefix(_CENTRE_KEY)
    return ""


def centre_key_uri(centre_key: str) -> str:
    """Return how a CA certificate names the centre's signing key."""
    return _CENTRE_KEY + centre_key


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return x509.SubjectAlternativeName([])
