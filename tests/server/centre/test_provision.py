"""A centre's folder, invitations, admissions, revocations and renewals, by their commands."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from client.join.joining import prepare_site
from client.join.keys import load_keys
from client.place import SiteFolder
from common.certificate import centre_key_in, fingerprint
from common.credentials import Invitation, Request, WelcomeFile
from common.errors import ConfigError, CredentialError, DeploymentError
from common.signing import create_signing_key, load_signing_key, public_text, sign
from server.centre import provision_commands
from server.centre.bundle import build_bundle
from server.centre.certificates import hosts_in
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site, open_registry, renew_server

ADDRESS = "127.0.0.1:9443"
KEYS = {"ca.key", "ca.crt", "server.key", "server.crt", "centre.key", "admin.token", "superexec.secret"}

app = typer.Typer(pretty_exceptions_enable=False)
for name in ("init", "invite", "admit", "revoke", "sites", "renew"):
    app.command(name)(getattr(provision_commands, name))


def command(*words: object) -> str:
    """Run a command that must work, and return what it printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*words: object) -> tuple[int, str]:
    """Run a command that must not, and return its exit code and what it printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("begun") / "centre"
    init_centre(root, "uni", ADDRESS)
    return root


@pytest.fixture
def centre(begun, tmp_path, monkeypatch) -> CentreFolder:
    """A centre of its own for the test, whose working folder holds it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun, tmp_path / "centre")
    return CentreFolder((tmp_path / "centre").resolve())


@pytest.fixture
def request_file(centre, tmp_path) -> Path:
    """What site north answers its invitation with."""
    invite_site(centre, "north")
    return prepare_site(Path("north.invitation"), Path("north")).request


def test_init_makes_a_whole_centre(tmp_path):
    said = command(
        "init", tmp_path / "c", "--name", "uni", "--address", "Fed.example.org:9443", "--san", "10.0.0.7"
    )
    folder = CentreFolder.find(tmp_path / "c")
    config = folder.config()
    assert (config.name, config.address) == ("uni", "fed.example.org:9443")
    assert (config.listen, config.admin) == ("0.0.0.0:9443", "127.0.0.1:9444")
    keys = folder.key("ca.key").parent
    assert {path.name for path in keys.iterdir()} == KEYS
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.registry.stat().st_mode) == 0o600
    hosts = set(hosts_in(folder.key("server.crt").read_bytes()))
    assert hosts == {"fed.example.org", "10.0.0.7", "localhost", "127.0.0.1", "::1"}
    authority = folder.key("ca.crt").read_text()
    assert centre_key_in(authority) == public_text(load_signing_key(folder.key("centre.key")))
    assert fingerprint(authority) in said
    for secret in ("admin.token", "superexec.secret"):
        assert len(folder.key(secret).read_bytes()) >= 40
        assert folder.key(secret).read_bytes().strip() == folder.key(secret).read_bytes()
        assert folder.key(secret).read_text() not in said
    with open_registry(folder) as registry:
        assert registry.sites() == []


def test_the_settings_can_be_read_by_people(centre):
    text = (centre.root / "centre.toml").read_text()
    values = tomllib.loads(text)
    fields = type(centre.config()).model_fields
    tables = {key for key, field in fields.items() if field.annotation == dict[str, Any]}
    assert tables == {"monitor", "alerts"} and values.keys() == fields.keys() - tables
    lines = text.splitlines()
    for key in values:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
        assert lines[at - 1].startswith("# "), f"{key} has no word on why"
    for key in tables:
        assert f"# [{key}" in text, f"{key} is not shown"


@pytest.mark.parametrize(
    ("address", "listen", "admin", "expected"),
    [
        ("h:65535", "", "", ("0.0.0.0:65535", "127.0.0.1:65534")),
        ("[2001:db8::1]:9443", "", "", ("[::]:9443", "127.0.0.1:9444")),
        ("h:443", "127.0.0.1:9443", "[::1]:9000", ("127.0.0.1:9443", "[::1]:9000")),
    ],
)
def test_addresses_that_are_not_given_follow_from_the_one_that_is(tmp_path, address, listen, admin, expected):
    config = init_centre(tmp_path / "c", "uni", address, listen, admin).config()
    assert (config.listen, config.admin) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--name", "Uni", "--address", ADDRESS), "--name"),
        (("--name", "uni", "--address", "nohost"), "HOST:PORT"),
        (("--name", "uni", "--address", "0.0.0.0:9443"), "cannot dial"),
        (("--name", "uni", "--address", ADDRESS, "--san", "a b"), "neither"),
        (("--name", "uni", "--address", ADDRESS, "--admin", "0.0.0.0:9444"), "loopback"),
        (("--name", "uni", "--address", ADDRESS, "--admin", "admin.example:9444"), "loopback"),
        (("--name", "uni", "--address", ADDRESS, "--admin", "127.0.0.1:9443"), "port of its own"),
        (("--name", "uni", "--address", ADDRESS, "--listen", "0.0.0.0"), "HOST:PORT"),
    ],
)
def test_init_refuses_settings_that_make_no_sense_and_writes_nothing(tmp_path, words, says):
    code, said = refusal("init", tmp_path / "c", *words)
    assert code == 2 and says in said
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("left", ["centre.toml", "keys", "registry.sqlite"])
def test_init_never_touches_a_centre_that_is_there_or_was_begun(centre, left):
    for path in list(centre.root.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in centre.root.rglob("*") if path.is_file()}
    code, said = refusal("init", centre.root, "--name", "uni", "--address", ADDRESS)
    assert code == 8 and left in said and "another folder" in said
    assert {path: path.read_bytes() for path in centre.root.rglob("*") if path.is_file()} == before


def test_init_takes_an_empty_folder_and_one_with_other_things(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "keys").mkdir()
    init_centre(tmp_path, "uni", ADDRESS)


def test_init_says_where_it_cannot_write(tmp_path):
    (tmp_path / "c").write_text("a file")
    code, said = refusal("init", tmp_path / "c", "--name", "uni", "--address", ADDRESS)
    assert code == 8 and "cannot write in" in said


def test_an_invitation_says_who_the_centre_is(centre):
    said = command("invite", "north", "--centre", centre.root)
    invitation = Invitation.read(Path("north.invitation"))
    assert (invitation.site, invitation.centre, invitation.address) == ("north", "uni", ADDRESS)
    assert invitation.certificate == centre.key("ca.crt").read_text()
    assert invitation.centre_key == public_text(load_signing_key(centre.key("centre.key")))
    assert 13.9 < (invitation.expires - time.time()) / 86400 < 14.1
    assert fingerprint(invitation.certificate) in said and invitation.secret not in said
    assert stat.S_IMODE(Path("north.invitation").stat().st_mode) == 0o600
    with open_registry(centre) as registry:
        registry.check_invitation("north", invitation.secret)


def test_an_invitation_does_not_overwrite_another(centre):
    command("invite", "north", "--centre", centre.root)
    before = Path("north.invitation").read_bytes()
    code, said = refusal("invite", "north", "--centre", centre.root)
    assert code == 8 and "--out" in said
    assert Path("north.invitation").read_bytes() == before
    with open_registry(centre) as registry:
        registry.check_invitation("north", Invitation.read(Path("north.invitation")).secret)
    command("invite", "north", "--centre", centre.root, "--out", "again.invitation")


@pytest.mark.parametrize("site", ["North", "../north", "a/b", ""])
def test_a_site_has_a_name_that_fits_everywhere(centre, site):
    code, said = refusal("invite", site, "--centre", centre.root, "--out", "x.invitation")
    assert code == 8 and "small letters" in said
    assert not Path("x.invitation").exists()


def test_a_request_becomes_a_welcome(centre, request_file):
    request = Request.read(request_file)
    said = command("admit", request_file, "--centre", centre.root)
    welcome = WelcomeFile.read(Path("north.welcome"), public_text(load_signing_key(centre.key("centre.key"))))
    assert welcome.site == "north" and welcome.keys_fingerprint == request.fingerprint
    assert welcome.bundle_bytes() == build_bundle()
    assert request.fingerprint in said and "revoke north" in said
    with open_registry(centre) as registry:
        (site,) = registry.sites()
        assert (site.state, site.node_id) == ("admitted", None)
        assert (site.node_key.decode(), site.signing_key) == (request.node_key, request.signing_key)


def test_the_same_request_again_gives_another_welcome(centre, request_file):
    command("admit", request_file, "--centre", centre.root)
    with open_registry(centre) as registry:
        registry.set_node_id("north", 7)
    Path("north.welcome").unlink()
    assert "admitted already" in command("admit", request_file, "--centre", centre.root)
    assert WelcomeFile.read(Path("north.welcome")).site == "north"
    with open_registry(centre) as registry:
        assert registry.names() == {7: "north"}


def test_an_invitation_admits_one_pair_of_keys(centre, request_file):
    thief = prepare_site(Path("north.invitation"), Path("thief")).request
    command("admit", thief, "--centre", centre.root, "--out", "thief.welcome")
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and "used already" in said
    assert not Path("north.welcome").exists()
    command("revoke", "north", "--centre", centre.root)
    code, said = refusal("admit", thief, "--centre", centre.root)
    assert code == 8 and "used already" in said


def test_a_late_request_is_refused(centre, request_file):
    with pytest.raises(CredentialError, match="has expired"):
        admit_site(centre, request_file, clock=lambda: time.time() + 15 * 86400)
    assert not Path("north.welcome").exists()


def test_a_void_invitation_is_refused(centre, request_file):
    command("invite", "north", "--centre", centre.root, "--out", "later.invitation")
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and "void" in said


def test_a_request_to_another_centre_is_refused(centre, request_file, tmp_path):
    init_centre(tmp_path / "other", "other", ADDRESS)
    code, _ = refusal("admit", request_file, "--centre", tmp_path / "other")
    assert code == 8
    command("invite", "north", "--centre", tmp_path / "other", "--out", "other.invitation")
    code, said = refusal("admit", request_file, "--centre", tmp_path / "other")
    assert code == 8 and "did not write for it" in said


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
    signed(request_file, whole["kind"], body, own)
    code, _ = refusal("admit", request_file, "--centre", centre.root)
    assert code in (7, 8)
    nobody_admitted(centre)


def test_a_request_is_signed_by_the_key_it_brings(centre, request_file, tmp_path):
    whole = json.loads(request_file.read_bytes())
    signed(request_file, whole["kind"], whole["body"], create_signing_key(tmp_path / "own.key"))
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
    signed(south.request, Request.kind, body, load_signing_key(south.folder.signing_key))
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
    signed(request_file, Request.kind, body, load_signing_key(Path("north/keys/site.key")))
    code, said = refusal("admit", request_file, "--centre", centre.root)
    assert code == 8 and next(iter(extra)) in said


def test_a_missing_request_is_named(centre):
    code, said = refusal("admit", "north.request", "--centre", centre.root)
    assert code == 8 and "north.request" in said


def test_a_welcome_that_cannot_be_written_is_written_the_next_time(centre, request_file):
    code, said = refusal("admit", request_file, "--centre", centre.root, "--out", "nowhere/north.welcome")
    assert code == 8 and "nowhere" in said
    nobody_admitted(centre)
    if os.geteuid() == 0:
        # Root writes everywhere; a name that is too long fails for root too.
        code, said = refusal("admit", request_file, "--centre", centre.root, "--out", "n" * 250)
        assert code == 8 and "cannot write in" in said
    command("admit", request_file, "--centre", centre.root)


def test_a_site_brings_a_new_node_key(centre, request_file):
    command("admit", request_file, "--centre", centre.root)
    said = command("invite", "north", "--centre", centre.root, "--out", "again.invitation")
    assert "stays good until" in said
    later = prepare_site(Path("again.invitation"), Path("fresh")).request
    command("admit", later, "--centre", centre.root, "--out", "again.welcome")
    with open_registry(centre) as registry:
        assert registry.site("north").node_key.decode() == Request.read(later).node_key
    code, said = refusal("admit", request_file, "--centre", centre.root, "--out", "old.welcome")
    assert code == 8 and "used already" in said


def test_sites_are_listed(centre, request_file):
    assert "No site" not in command("sites", "--centre", centre.root)
    command("admit", request_file, "--centre", centre.root)
    command("invite", "south", "--centre", centre.root)
    with open_registry(centre) as registry:
        registry.set_node_id("north", 2**64 - 1)
        registry.heard({"north": time.time() - 600})
    said = command("sites", "--centre", centre.root)
    north = next(line for line in said.splitlines() if "north" in line)
    assert "admitted" in north and str(2**64 - 1) in north and "10 min ago" in north
    assert Request.read(request_file).fingerprint[:47] in north
    assert "invited, until" in next(line for line in said.splitlines() if "south" in line)
    command("revoke", "north", "--centre", centre.root)
    assert "revoked" in command("sites", "--centre", centre.root)
    assert "already" in command("revoke", "north", "--centre", centre.root)


def test_a_fingerprint_is_listed_letter_by_letter(centre, monkeypatch):
    """rich would show ``:CD:`` and ``:AB:`` as pictures, and people would see two that differ."""
    whole = ":".join(["CD", "AB", "0A"] * 10 + ["CD", "AB"])
    monkeypatch.setattr("server.centre.provision.site_fingerprint", lambda *keys: whole)
    with open_registry(centre) as registry:
        registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    said = command("sites", "--centre", centre.root)
    assert whole[:47] in said and whole[48:] in said


def test_an_empty_list_says_what_to_do(centre):
    assert "fedcxr-server invite" in command("sites", "--centre", centre.root)


def test_an_unknown_site_cannot_be_revoked(centre, request_file):
    code, said = refusal("revoke", "nroth", "--centre", centre.root)
    assert code == 8 and "did you mean 'north'" in said


def test_renew_changes_what_sites_do_not_need_to_know(centre):
    before = {name: centre.key(name).read_bytes() for name in KEYS}
    said = command("renew", "--centre", centre.root, "--san", "x.localhost")
    changed_files = {name for name in KEYS if centre.key(name).read_bytes() != before[name]}
    assert changed_files == {"server.key", "server.crt"}
    assert stat.S_IMODE(centre.key("server.key").stat().st_mode) == 0o600
    assert "x.localhost" in hosts_in(centre.key("server.crt").read_bytes())
    assert fingerprint(before["ca.crt"]) in said
    assert "x.localhost" in renew_server(centre), "what it stood for it stands for"


def test_renew_mends_a_pair_that_is_gone(centre):
    centre.key("server.key").unlink()
    centre.key("server.crt").unlink()
    assert "127.0.0.1" in renew_server(centre)


def test_renew_does_not_stretch_the_ca(centre):
    code, said = refusal("renew", "--centre", centre.root, "--san", "bank.example.com")
    assert code == 8 and "bank.example.com" in said


@pytest.mark.parametrize("name", ["ca.key", "centre.key"])
def test_a_key_that_others_can_read_is_not_used(centre, name):
    centre.key(name).chmod(0o640)
    words = ("renew",) if name == "ca.key" else ("invite", "north")
    code, said = refusal(*words, "--centre", centre.root)
    assert code == 8 and f"{name} can be read by others" in said and "chmod 600" in said


@pytest.mark.parametrize(
    ("name", "content"), [("ca.key", None), ("ca.crt", None), ("centre.key", None), ("ca.crt", b"x")]
)
def test_a_missing_or_damaged_key_is_named(centre, name, content):
    centre.key(name).unlink() if content is None else centre.key(name).write_bytes(content)
    words = ("renew",) if name == "ca.key" else ("invite", "north")
    code, said = refusal(*words, "--centre", centre.root)
    assert code == 8 and name in said


def test_keys_of_two_centres_do_not_mix(centre):
    centre.key("centre.key").unlink()
    create_signing_key(centre.key("centre.key"))
    code, said = refusal("invite", "north", "--centre", centre.root)
    assert code == 8 and "not the key that ca.crt vouches for" in said


def test_a_lost_registry_is_not_replaced_by_an_empty_one(centre):
    centre.registry.unlink()
    for words in (("sites",), ("invite", "north"), ("revoke", "north")):
        code, said = refusal(*words, "--centre", centre.root)
        assert code == 8 and "registry.sqlite is missing" in said
    assert not centre.registry.exists()


def test_an_address_that_was_edited_to_nonsense_is_named(centre):
    settings = centre.root / "centre.toml"
    settings.write_text(settings.read_text().replace(f'"{ADDRESS}"', '"0.0.0.0:9443"', 1))
    with pytest.raises(ConfigError, match="cannot dial"):
        invite_site(centre, "north")


def test_no_centre_is_named_with_what_to_do(tmp_path):
    code, said = refusal("sites", "--centre", tmp_path)
    assert code == 2 and "--centre" in said


def test_a_full_disk_is_named(centre, request_file, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("common.files.os.replace", full)
        with pytest.raises(DeploymentError, match="cannot write") as caught:
            admit_site(centre, request_file)
    assert "No space left" in caught.value.found
    assert admit_site(centre, request_file).again, "the site is in; only its welcome was missing"


def changed(text: str) -> str:
    """Change one character in the middle."""
    at = len(text) // 2
    return text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]


def signed(path: Path, kind: str, body: dict[str, object], key) -> None:
    """Write a signed file, whatever it says."""
    covered = json.dumps([kind, body], sort_keys=True).encode()
    whole = {"kind": kind, "body": body, "key": public_text(key), "signature": sign(key, covered)}
    path.write_text(json.dumps(whole))


def nobody_admitted(centre: CentreFolder) -> None:
    with open_registry(centre) as registry:
        assert not [site for site in registry.sites() if site.state == "admitted"]
    assert not list(Path().glob("*.welcome"))
