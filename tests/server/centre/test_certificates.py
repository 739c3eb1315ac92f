"""The CA and the server certificate, as OpenSSL sees them over a socket."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from common.certificate import centre_key_in, check_dates, covers, fingerprint, load_certificate
from common.errors import ConfigError, CredentialError
from server.centre.certificates import (
    Issued,
    create_authority,
    days_left,
    dialled,
    hosts_in,
    hosts_of,
    issue_server,
    split_address,
    valid_until,
)

HOSTS = hosts_of("fed.example.org:9443", "0.0.0.0:9443", ["10.1.2.3"])
KEY = "ed25519:" + "A" * 43 + "="


@pytest.fixture(scope="module")
def authority():
    return create_authority("uni", HOSTS, KEY)


@pytest.fixture(scope="module")
def server(authority):
    return issue_server(authority, "uni", HOSTS)


def handshake(tmp_path: Path, trusted: bytes, server: Issued, host: str) -> None:
    """Speak TLS over 127.0.0.1 and check the certificate for ``host``."""
    (tmp_path / "ca.crt").write_bytes(trusted)
    (tmp_path / "server.crt").write_bytes(server.certificate)
    (tmp_path / "server.key").write_bytes(server.key)
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    there = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    # What Python 3.13 asks for without being told.
    there.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with here.wrap_socket(connection, server_side=True) as tls:
                    tls.sendall(b"hello")
            except (ssl.SSLError, ConnectionError):
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                there.wrap_socket(plain, server_hostname=host) as tls,
            ):
                assert tls.recv(5) == b"hello"
        finally:
            thread.join(10)


@pytest.mark.parametrize("host", ["fed.example.org", "FED.example.org", "10.1.2.3", "127.0.0.1", "localhost"])
def test_the_server_is_who_it_says_it_is(tmp_path, authority, server, host):
    handshake(tmp_path, authority.certificate, server, host)


@pytest.mark.parametrize("host", ["example.org", "fed.example.com", "x.fed.example.org", "10.1.2.4"])
def test_it_is_nobody_else(tmp_path, authority, server, host):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(tmp_path, authority.certificate, server, host)


def test_another_ca_of_the_same_name_is_not_believed(tmp_path, server):
    other = create_authority("uni", HOSTS, KEY)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, other.certificate, server, "fed.example.org")


@pytest.mark.parametrize("host", ["bank.example.com", "8.8.8.8", "::2"])
def test_with_the_stolen_ca_nobody_can_pass_for_another_host(tmp_path, authority, host):
    with pytest.raises(CredentialError, match=f"was not made for {host}"):
        issue_server(authority, "uni", [host])
    forged = forge(authority, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(tmp_path, authority.certificate, forged, host)


def forge(authority: Issued, host: str) -> Issued:
    """Sign what our own code refuses to."""
    broad = create_authority("uni", [*HOSTS, host], KEY)
    key = load_pem_private_key(authority.key, None)
    asked = load_certificate(issue_server(broad, "uni", [host]).certificate)
    own = ec.generate_private_key(ec.SECP256R1())
    ours = load_certificate(authority.certificate)
    builder = x509.CertificateBuilder(
        issuer_name=ours.subject,
        subject_name=asked.subject,
        public_key=own.public_key(),
        serial_number=1,
        not_valid_before=asked.not_valid_before_utc,
        not_valid_after=asked.not_valid_after_utc,
    )
    for extension in asked.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
    )
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Issued(builder.sign(key, SHA256()).public_bytes(Encoding.PEM), private)


def test_the_server_certificate_certifies_nobody(server):
    certificate = load_certificate(server.certificate)
    extensions = {type(e.value): e for e in certificate.extensions}
    assert not extensions[x509.BasicConstraints].value.ca
    usage = extensions[x509.KeyUsage]
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert list(extensions[x509.ExtendedKeyUsage].value) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_ca_certifies_servers_and_no_further_ca(authority):
    extensions = {type(e.value): e for e in load_certificate(authority.certificate).extensions}
    basic = extensions[x509.BasicConstraints]
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    usage = extensions[x509.KeyUsage]
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert extensions[x509.NameConstraints].critical


def test_names_and_addresses_are_told_apart(server):
    names = load_certificate(server.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    addresses = [str(a) for a in names.value.get_values_for_type(x509.IPAddress)]
    assert addresses == ["10.1.2.3", "127.0.0.1", "::1"]
    assert set(hosts_in(server.certificate)) == set(HOSTS)


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("FED.example.org.", True),
        ("0:0::1", True),
        ("[::1]", True),
        ("example.org", False),
        ("10.1.2.4", False),
    ],
)
def test_a_doctor_can_ask_whether_a_host_is_covered(server, host, covered):
    assert covers(server.certificate, host) is covered


def test_dates(authority, server):
    now = datetime.now(UTC)
    for certificate, least, most in ((authority.certificate, 3649, 3653), (server.certificate, 394, 397)):
        parsed = load_certificate(certificate)
        whole = parsed.not_valid_after_utc - parsed.not_valid_before_utc
        assert whole <= timedelta(days=most)
        assert least < days_left(certificate) < most
        assert valid_until(certificate) == parsed.not_valid_after_utc
        check_dates(certificate, "it", now)
        with pytest.raises(CredentialError, match="has expired"):
            check_dates(certificate, "it", now + timedelta(days=most))
        with pytest.raises(CredentialError, match="not valid yet") as caught:
            check_dates(certificate, "it", now - timedelta(days=2))
        assert caught.value.fix == "set the clock"


def test_a_server_certificate_does_not_outlive_its_ca(authority):
    late = valid_until(authority.certificate) - timedelta(days=30)
    assert valid_until(issue_server(authority, "uni", HOSTS, late).certificate) == valid_until(
        authority.certificate
    )
    with pytest.raises(CredentialError, match=r"ca\.crt has expired"):
        issue_server(authority, "uni", HOSTS, late + timedelta(days=31))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (b"", "not an EC private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not an EC"),
        (None, "does not belong"),
    ],
)
def test_a_ca_whose_key_does_not_fit_signs_nothing(authority, key, problem):
    other = create_authority("uni", HOSTS, KEY)
    with pytest.raises(CredentialError, match=problem):
        issue_server(Issued(authority.certificate, other.key if key is None else key), "uni", HOSTS)


def test_the_ca_names_the_key_that_signs_instructions(authority, server):
    assert centre_key_in(authority.certificate) == KEY
    assert centre_key_in(server.certificate) == ""


@pytest.mark.skipif(not which("openssl"), reason="no openssl command")
def test_the_fingerprint_is_the_one_openssl_shows(tmp_path, authority):
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    command = ["openssl", "x509", "-in", str(tmp_path / "ca.crt"), "-noout", "-fingerprint", "-sha256"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip().partition("=")[2] == fingerprint(authority.certificate)


@pytest.mark.parametrize("pem", ["", "nonsense", b"\xff\xfe", "\ud800", "-----BEGIN CERTIFICATE-----\nAA"])
def test_what_is_no_certificate_is_named(pem):
    with pytest.raises(CredentialError, match=r"ca\.crt is not a PEM certificate"):
        load_certificate(pem, "ca.crt")


@pytest.mark.parametrize(
    ("address", "listen", "more", "expected"),
    [
        ("fed.example.org:1", "0.0.0.0:1", (), ("fed.example.org",)),
        ("FED.Example.org.:1", "[::]:1", ("fed.example.org",), ("fed.example.org",)),
        ("10.0.0.7:1", "10.0.0.8:1", ("b.example",), ("10.0.0.7", "10.0.0.8", "b.example")),
        ("[2001:db8::0001]:1", "[::]:1", (), ("2001:db8::1",)),
        ("münchen.example:1", "0.0.0.0:1", (), ("xn--mnchen-3ya.example",)),
        ("127.0.0.1:1", "127.0.0.1:1", ("::1",), ("127.0.0.1",)),
    ],
)
def test_hosts_of_a_centre(address, listen, more, expected):
    hosts = hosts_of(address, listen, more)
    assert hosts[: len(expected)] == expected
    assert set(hosts) == {*expected, "localhost", "127.0.0.1", "::1"}
    assert len(hosts) == len(set(hosts))


@pytest.mark.parametrize(
    "host", ["", "a b", "-a.example", "300.1.2.3", "a..b", "*.example.org", "0.0.0.0", "::"]
)
def test_what_is_no_host_is_named(host):
    with pytest.raises(ConfigError):
        hosts_of("fed.example.org:1", "0.0.0.0:1", [host])


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "::1:9", "a:²"]
)
def test_what_is_no_address_is_named(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)


@given(st.text(max_size=40))
def test_any_text_is_a_host_that_fits_a_certificate_or_is_refused(text):
    try:
        (host, *_) = hosts_of("localhost:1", "0.0.0.0:1", [text])[1:]
    except ConfigError:
        return
    assert host.isascii()
    assert split_address(dialled(f"[{host}]:1" if ":" in host else f"{host}:1"))[1] == 1


def test_a_subject_holds_no_more_than_the_name(authority):
    subject = load_certificate(authority.certificate).subject
    assert [(part.oid, part.value) for part in subject] == [(NameOID.COMMON_NAME, "fedcxr uni CA")]
