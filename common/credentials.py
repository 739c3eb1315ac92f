"""What a centre and a site hand each other before they trust each other: three signed files.

    SITE.invitation   centre -> site   who the centre is, and a secret that is used once
    SITE.request      site -> centre   the site's public keys, signed by both of its private keys
    SITE.welcome      centre -> site   the site is admitted; the app bundle it may look at

Each is read with the same care whoever sent it: whole, of its kind, every field as it should be.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.certificate import centre_key_in, colons, load_certificate
from common.errors import CredentialError, DeploymentError, SignatureError
from common.signing import read_signed, write_signed

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Address = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}$", max_length=270)]
SigningKey = Annotated[str, Field(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Seconds since 1970, up to the year 9999."""
Pem = Annotated[str, Field(min_length=1, max_length=20_000)]


class _SignedFile(BaseModel):
    """The body of a signed file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    kind: ClassVar[str]
    most_bytes: ClassVar[int] = 64_000

    @classmethod
    def read(cls, path: Path, public: str | None = None) -> Self:
        """Read a file of this kind; ``public`` is the key that must have signed it.

        Raises:
            CredentialError: if it is missing, cut, of another kind, or a field is not as it should be.
            SignatureError: if its signature does not fit, or is not by the key it should be by.
        """
        try:
            return cls._read(path, public)
        except (CredentialError, SignatureError) as error:
            fix = error.fix or "it is damaged or was changed on its way: ask for the file again"
            raise type(error)(error.problem, found=error.found, fix=fix) from None

    @classmethod
    def _read(cls, path: Path, public: str | None) -> Self:
        if not path.is_file():
            raise CredentialError(f"there is no file {path}", fix=f"name the {cls.kind} you were sent")
        size = path.stat().st_size
        if size > cls.most_bytes:
            raise CredentialError(f"{path.name} is too large for a {cls.kind}", found=f"{size} bytes")
        try:
            body = read_signed(path, cls.kind, public)
        except RecursionError:
            raise CredentialError(f"{path.name} is not a signed file of fedcxr") from None
        signer = body.pop("key")
        try:
            record = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:60]
            raise CredentialError(
                f"{path.name}: {where}: {first['msg'][:200]}", fix="it may be of another version of fedcxr"
            ) from None
        record.check(path.name, signer)
        return record

    def write(self, path: Path, key: Ed25519PrivateKey) -> None:
        """Write the file, signed; only its owner can read it."""
        write_signed(path, self.kind, self.model_dump(), key)

    def check(self, name: str, signer: str) -> None:
        """Refuse a record whose parts do not belong together."""
        raise NotImplementedError


class _ByCentre(_SignedFile):
    """What both files of the centre say about it."""

    site: Name
    """Whom it is for."""
    centre: Name
    """The centre's name."""
    address: Address
    """HOST:PORT that the site dials."""
    certificate: Pem
    """CA certificate that the centre's server is known by."""
    centre_key: SigningKey
    """Key that signs what the centre asks for; the CA certificate names it too."""

    def check(self, name: str, signer: str) -> None:
        """Refuse what is signed by another key than it names, or names one the certificate does not."""
        if signer != self.centre_key:
            raise SignatureError(f"{name} is not signed by the centre it names")
        certificate = load_certificate(self.certificate, f"the CA certificate in {name}")
        # A second one after it would be trusted too, and stand in no fingerprint.
        if certificate.public_bytes(Encoding.PEM).decode() != self.certificate:
            raise CredentialError(f"{name}: there is more than one CA certificate in it")
        if centre_key_in(self.certificate) != self.centre_key:
            raise SignatureError(f"{name}: the CA certificate and the centre's key do not belong together")


class Invitation(_ByCentre):
    """``SITE.invitation``."""

    kind: ClassVar[str] = "fedcxr invitation"
    secret: Annotated[str, Field(min_length=20, max_length=200)]
    """Shows the centre that a request answers this invitation; used once."""
    expires: Moment
    """Until when."""


class Request(_SignedFile):
    """``SITE.request``: public keys only."""

    kind: ClassVar[str] = "fedcxr request"
    site: Name
    """Who asks."""
    node_key: Pem
    """EC P-384 public key of the site's node, as Flower writes it."""
    signing_key: SigningKey
    """Public key of the site's signatures; it signs this file."""
    secret: Annotated[str, Field(max_length=200)]
    """The invitation's."""
    node_proof: Annotated[str, Field(max_length=400)] = ""
    """The node key's own signature of all the above: nobody asks with a key of somebody else."""

    @property
    def fingerprint(self) -> str:
        """One fingerprint for both keys."""
        return keys_fingerprint(self.node_key.encode(), self.signing_key)

    def proved(self, key: ec.EllipticCurvePrivateKey) -> Request:
        """Return the request with the node key's signature."""
        proof = base64.b64encode(key.sign(self._proved_bytes(), ec.ECDSA(SHA384()))).decode()
        return self.model_copy(update={"node_proof": proof})

    def check(self, name: str, signer: str) -> None:
        """Refuse a request that is not signed by both keys it brings."""
        if signer != self.signing_key:
            raise SignatureError(f"{name} is not signed by the key it brings")
        key = load_node_public_key(self.node_key, name)
        try:
            proof = base64.b64decode(self.node_proof, validate=True)
            key.verify(proof, self._proved_bytes(), ec.ECDSA(SHA384()))
        except (InvalidSignature, ValueError, binascii.Error):
            raise SignatureError(f"{name}: the node key did not sign it") from None

    def _proved_bytes(self) -> bytes:
        facts = self.model_dump(exclude={"node_proof"})
        return json.dumps([f"{self.kind}, node", facts], sort_keys=True).encode()


class WelcomeFile(_ByCentre):
    """``SITE.welcome``."""

    kind: ClassVar[str] = "fedcxr welcome"
    most_bytes: ClassVar[int] = 32_000_000
    keys_fingerprint: str
    """Of the site's keys that were admitted."""
    bundle: str
    """The Flower App Bundle, base64; nothing of it runs before the site approves it."""
    bundle_sha256: Sha256
    """SHA-256 of the bundle."""
    code_digest: Sha256
    """Of the centre's code; both sides of a run must have the same."""
    when: Moment
    """When the centre wrote it."""

    def bundle_bytes(self) -> bytes:
        """Return the bundle.

        Raises:
            CredentialError: if it is not what its digest says.
        """
        try:
            data = base64.b64decode(self.bundle, validate=True)
        except (ValueError, binascii.Error):
            data = b""
        if hashlib.sha256(data).hexdigest() != self.bundle_sha256:
            raise CredentialError("the welcome's app bundle is not what its digest says")
        return data


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Say where something could not be written.

    Raises:
        DeploymentError: for a full disk, a folder of somebody else, or no folder at all.
    """
    try:
        yield
    except OSError as error:
        raise DeploymentError(
            f"cannot write in {folder}",
            found=error.strerror or type(error).__name__,
            fix="see to its owner and disk space, then do it again",
        ) from None


def keys_fingerprint(node_key: bytes, signing_key: str) -> str:
    """Return one SHA-256 over a site's two public keys, for people to compare."""
    return colons(hashlib.sha256(node_key + b"\0" + signing_key.encode()).digest())


def load_node_public_key(pem: str, name: str) -> ec.EllipticCurvePublicKey:
    """Parse a node's public key, which Flower knows by its exact bytes.

    Raises:
        CredentialError: if it is not an EC P-384 public key just as Flower writes it.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CredentialError(f"{name}: the node key is not an EC P-384 public key")
    if node_key_bytes(key) != pem.encode():
        raise CredentialError(f"{name}: the node key is not written as Flower writes it")
    return key


def node_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Write a node's public key as Flower does (``flwr.supercore.primitives.asymmetric``)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
