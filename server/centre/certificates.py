"""The centre's private CA and the server certificate that sites check before they say a word.

The CA signs nothing but this centre's server certificates, and only for the hosts named when it was
made (RFC 5280, 4.2.1.10): whoever steals its key cannot pass for anybody else with it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificate import (
    centre_key_uri,
    check_dates,
    days_left,
    fingerprint,
    hosts_in,
    load_certificate,
    valid_until,
)
from common.errors import ConfigError, CredentialError

__all__ = [
    "Issued",
    "create_authority",
    "days_left",
    "dialled",
    "fingerprint",
    "hosts_in",
    "hosts_of",
    "issue_server",
    "split_address",
    "valid_until",
]

AUTHORITY_LASTS = timedelta(days=3652)
SERVER_LASTS = timedelta(days=397)
"""The longest that browsers and libraries take from a server certificate."""
_BEFORE = timedelta(days=1)
"""Valid from a day ago, for sites whose clock is behind."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_CERTIFY = {"key_cert_sign": True, "crl_sign": True}
_SERVE = {"digital_signature": True}
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def create_authority(name: str, hosts: Sequence[str], centre_key: str, now: datetime | None = None) -> Issued:
    """Make the centre's CA, good for server certificates of ``hosts`` alone.

    Its certificate also names the key that signs the centre's instructions, so that one
    fingerprint stands for both.
    """
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"fedcxr {name} CA")
    builder = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(_CERTIFY), critical=True)
        .add_extension(x509.NameConstraints(_permitted(hosts), None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(centre_key_uri(centre_key))]),
            critical=False,
        )
    )
    return _issued(builder.sign(key, SHA256()), key)


def issue_server(authority: Issued, name: str, hosts: Sequence[str], now: datetime | None = None) -> Issued:
    """Make a new key and a certificate for it that stands for ``hosts``.

    Raises:
        CredentialError: if the CA is damaged, over, or not made for one of the hosts.
    """
    now = now or datetime.now(UTC)
    certificate = load_certificate(authority.certificate, "ca.crt")
    rotate = "make a new centre with fedcxr-server init and invite the sites again"
    check_dates(authority.certificate, "ca.crt", now, fix=rotate)
    signer = _load_key(authority)
    _check_permitted(certificate, hosts, rotate)
    key = ec.generate_private_key(ec.SECP256R1())
    lasts = min(SERVER_LASTS, certificate.not_valid_after_utc - (now - _BEFORE))
    builder = (
        _builder(_subject(f"fedcxr {name}"), certificate.subject, key.public_key(), now, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(_SERVE), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(map(_general_name, hosts))), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _issued(builder.sign(signer, SHA256()), key)


def hosts_of(address: str, listen: str, more: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the hosts a server certificate stands for: where sites dial, what is bound, loopback.

    Raises:
        ConfigError: if one is neither a host name nor an address.
    """
    bound = split_address(listen)[0]
    concrete = () if _any_address(bound) else (bound,)
    named = (split_address(address)[0], *concrete, *more, *_LOCAL)
    return tuple(dict.fromkeys(_host(name) for name in named))


def dialled(address: str) -> str:
    """Return an address as sites can dial it and as certificates spell its host.

    >>> dialled("Fed.Example.ORG.:9443"), dialled("[0::1]:443")
    ('fed.example.org:9443', '[::1]:443')

    Raises:
        ConfigError: if the host is neither a host name nor an address to dial.
    """
    host, port = split_address(address)
    host = _host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host stands in brackets.

    >>> split_address("[::1]:9443")
    ('::1', 9443)

    Raises:
        ConfigError: if it is not one.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    whole = colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdigit()
    if not whole or not 1 <= int(port) <= 65535:
        raise ConfigError(
            "an address is HOST:PORT", found=address[:80], fix="for example fed.example.org:9443"
        )
    return host[1:-1] if bracketed else host, int(port)


def _any_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _host(text: str) -> str:
    """Return a host as a certificate spells it."""
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            raise ConfigError(f"sites cannot dial {address}", fix="name the host or address they can reach")
        return str(address)
    try:
        name = text.strip().rstrip(".").encode("idna").decode().lower()
    except UnicodeError:
        name = ""
    labels = name.split(".")
    # Four numbers that are no address would be looked up as a name.
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ConfigError("that is neither a host name nor an IP address", found=repr(text)[:80])
    return name


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _permitted(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return the constraint: these hosts, names below them, and loopback."""
    names = dict.fromkeys((*hosts, *_LOCAL))
    permitted: list[x509.GeneralName] = []
    for host in names:
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(host)))
        except ValueError:
            permitted.append(x509.DNSName(host))
    return permitted


def _check_permitted(authority: x509.Certificate, hosts: Sequence[str], fix: str) -> None:
    try:
        limits = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return
    permitted = [limit.value for limit in limits.permitted_subtrees or []]
    for host in hosts:
        try:
            address = ipaddress.ip_address(host)
            good = any(not isinstance(limit, str) and address in limit for limit in permitted)
        except ValueError:
            good = any(isinstance(limit, str) and f".{host}".endswith(f".{limit}") for limit in permitted)
        if not good:
            raise CredentialError(f"this centre's CA was not made for {host}", fix=fix)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    begins = (now - _BEFORE).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(given: dict[str, bool]) -> x509.KeyUsage:
    return x509.KeyUsage(**{**dict.fromkeys(_USAGES, False), **given})


def _load_key(authority: Issued) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(authority.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError("ca.key is not an EC private key", fix="restore it from a backup")
    if key.public_key() != load_certificate(authority.certificate, "ca.crt").public_key():
        raise CredentialError("ca.key does not belong to ca.crt", fix="restore both from one backup")
    return key


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Issued(certificate.public_bytes(Encoding.PEM), private)
