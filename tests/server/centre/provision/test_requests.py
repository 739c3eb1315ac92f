"""Every way to tamper with the request of a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.join.joining import prepare_site
from client.join.keys import load_keys
from client.place import SiteFolder
from common.credentials import Request
from common.signing import create_signing_key, load_signing_key, public_text
from server.centre.provision import invite_site
from tests.server.centre.provision.provisioning import nobody_admitted, refusal
from tests.signed_file import changed, sign_anew

BY_ITS_SIGNER = ["site", "node_key", "signing_key", "secret", "node_proof"]


@pytest.mark.parametrize("field", BY_ITS_SIGNER)
def test_no_field_of_a_request_can_be_changed_on_its_way(centre, request_file, field):
    whole = json.loads(request_file.read_bytes())
    whole["body"][field] = changed(whole["body"][field])
    request_file.write_text(json.dumps(whole))
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code in (7, 8) and "fix:" in said
    nobody_admitted(centre)


@pytest.mark.parametrize("field", BY_ITS_SIGNER)
def test_nor_by_somebody_who_signs_it_anew(centre, request_file, tmp_path, field):
    """A thief of the request has its secret, and no private key of the site."""
    own = create_signing_key(tmp_path / "own.key")
    whole = json.loads(request_file.read_bytes())
    body = whole["body"] | {"signing_key": public_text(own)}
    body[field] = changed(body[field])
    sign_anew(request_file, whole["kind"], body, own)
    code, _ = refusal("admit", request_file, "--centre", centre.root)
    assert code in (7, 8)
    nobody_admitted(centre)


def test_a_request_is_signed_by_the_key_it_brings(centre, request_file, tmp_path):
    whole = json.loads(request_file.read_bytes())
    sign_anew(request_file, whole["kind"], whole["body"], create_signing_key(tmp_path / "own.key"))
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 7 and "not signed by the key it brings" in said
    nobody_admitted(centre)


@pytest.mark.parametrize(
    "rewrite",
    [lambda pem: pem.replace("\n", "\r\n"), lambda pem: "a comment\n" + pem, lambda pem: pem.strip()],
)
def test_a_node_key_is_written_in_the_one_form_that_flower_compares(centre, request_file, rewrite):
    """In another form it would be admitted, never recognised, and stand twice in the registry."""
    keys = load_keys(SiteFolder(request_file.parent))
    request = Request.read(request_file)
    odd = request.model_copy(update={"node_key": rewrite(request.node_key), "node_proof": ""})
    odd.proved(keys.node).write(request_file, keys.signing)
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and "not written as Flower writes it" in said
    nobody_admitted(centre)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()])
def test_a_node_key_is_of_the_one_kind_that_is_made(centre, request_file, key):
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    odd = Request.read(request_file).model_copy(update={"node_key": pem})
    odd.write(request_file, load_keys(SiteFolder(request_file.parent)).signing)
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and "not an EC P-384 public key" in said


def test_a_node_key_of_somebody_else_is_not_admitted(centre, request_file, tmp_path):
    """Public keys are no secret: whoever brings one must be able to sign with it."""
    invite_site(centre, "south")
    south = prepare_site(Path("south.invitation"), Path("south"))
    theirs = json.loads(request_file.read_bytes())["body"]
    body = json.loads(south.request.read_bytes())["body"] | {
        name: theirs[name] for name in ("node_key", "node_proof")
    }
    sign_anew(south.request, Request.kind, body, load_signing_key(south.folder.signing_key))
    code, said = refusal("admit", south.request, "--centre", centre.root)
    assert code == 7 and "node key did not sign" in said


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: b"", 8),
        (lambda data: data[: len(data) // 2], 8),
        (lambda data: data.replace(b"fedcxr request", b"fedcxr welcome"), 8),
        (lambda data: b"[" * 60_000, 8),
        (lambda data: b"\xff" + data, 8),
        (lambda data: data + b" " * 64_000, 8),
        (lambda data: data.replace(b'"secret"', b'"patient"'), 7),
    ],
)
def test_what_is_no_request_is_refused(centre, request_file, change, code):
    request_file.write_bytes(change(request_file.read_bytes()))
    assert refusal("admit", request_file, "--centre", centre.root)[0] == code
    nobody_admitted(centre)


@pytest.mark.parametrize("extra", [{"patient": "x"}, {"node_key": 1}, {"secret": None}, {"site": "North"}])
def test_a_well_signed_request_with_odd_fields_is_refused(centre, request_file, extra):
    body = json.loads(request_file.read_bytes())["body"] | extra
    sign_anew(request_file, Request.kind, body, load_signing_key(Path("north/keys/site.key")))
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and next(iter(extra)) in said


def test_a_missing_request_is_named(centre):
    code, said = refusal("admit", "north.request", "--centre", centre.root)
    assert code == 8 and "north.request" in said
