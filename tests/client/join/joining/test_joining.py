"""The whole ladder between a centre and a site, climbed once, again, cut off, and left."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from client.join.joining import accept_welcome, forget_centre, load_welcome
from client.join.keys import load_keys, load_node_key, next_node_key
from client.place import SiteFolder
from common.code import code_digest
from common.credentials import WelcomeFile
from common.errors import ConfigError, CredentialError, DeploymentError, SignatureError
from common.signing import load_signing_key, public_text
from server.centre.bundle import build_bundle
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, invite_site, open_registry
from tests.client.join.joining.ladder import ADDRESS, command, not_joined, refusal
from tests.signed_file import changed, sign_anew


def test_the_ladder(centre, here):
    invite_site(centre, "west")
    said = command("init", "west.invitation")
    folder = SiteFolder(here / "west")
    keys = load_keys(folder)
    assert keys.fingerprint in said and "west.request" in said
    admit_site(centre, Path("west/west.request"))
    said = command("join", "west.welcome", "west")
    assert f"joined uni at {ADDRESS}" in said and "other code" not in said
    welcome = load_welcome(folder)
    assert (welcome.site, welcome.centre, welcome.address) == ("west", "uni", ADDRESS)
    assert welcome.centre_key == public_text(load_signing_key(centre.key("centre.key")))
    assert welcome.certificate == folder.centre_certificate.read_text() == centre.key("ca.crt").read_text()
    assert folder.bundle.read_bytes() == build_bundle()
    assert welcome.code_digest == code_digest()
    assert not folder.invitation.exists()
    with open_registry(centre) as registry:
        assert registry.site("west").node_key == keys.node_key


def test_a_site_that_was_not_invited_cannot_join(here, north):
    north.invitation.unlink()
    code, said = refusal("join", "north.welcome", "north")
    assert code == 8 and "fedcxr-site init" in said
    assert refusal("join", "north.welcome", "nowhere")[0] == ConfigError.exit_code


@pytest.mark.parametrize("key", ["node_key", "signing_key"])
def test_a_key_that_others_can_read_is_not_used(north, key):
    path = getattr(north, key)
    path.chmod(0o640)
    code, said = refusal("join", "north.welcome", "north")
    assert code == 8 and f"{path.name} can be read by others" in said and "chmod 600" in said
    assert refusal("init", "north.invitation", "north")[0] == 8
    not_joined(north)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA", "site.key"])
def test_a_node_key_that_is_none_is_named(north, content):
    data = north.signing_key.read_bytes() if content == "site.key" else content
    north.node_key.write_bytes(data)
    with pytest.raises(CredentialError, match=r"node\.key is not an EC P-384 private key"):
        load_node_key(north.node_key)
    north.node_key.unlink()
    with pytest.raises(CredentialError, match=r"node\.key cannot be read"):
        load_node_key(north.node_key)


def test_join_twice_changes_nothing(north):
    command("join", "north.welcome", "north")
    before = {p: p.read_bytes() for p in north.root.rglob("*") if p.is_file()}
    command("join", "north.welcome", "north")
    assert {p: p.read_bytes() for p in north.root.rglob("*") if p.is_file()} == before


def test_a_newer_welcome_is_taken_and_an_older_one_is_not(centre, here, north):
    command("join", "north.welcome", "north")
    settings_file = centre.root / "centre.toml"
    settings_file.write_text(settings_file.read_text().replace(f'"{ADDRESS}"', '"127.0.0.1:9999"', 1))
    admit_site(centre, here / "north" / "north.request", Path("newer.welcome"))
    command("join", "newer.welcome", "north")
    assert load_welcome(north).address == "127.0.0.1:9999"
    code, said = refusal("join", "north.welcome", "north")
    assert code == 8 and "older" in said
    assert load_welcome(north).address == "127.0.0.1:9999"


def test_another_code_at_the_centre_is_pointed_out(centre, north):
    path = Path("north.welcome")
    body = json.loads(path.read_bytes())["body"] | {"code_digest": "0" * 64}
    sign_anew(path, WelcomeFile.kind, body, load_signing_key(centre.key("centre.key")))
    assert "other code" in command("join", path, "north")


def test_a_new_node_key_counts_from_its_welcome_on(centre, here, north):
    command("join", "north.welcome", "north")
    old = load_keys(north)
    invite_site(centre, "north", Path("again.invitation"))
    said = command("init", "again.invitation", "north")
    assert "old one is used until" in said
    assert load_keys(north).fingerprint == old.fingerprint
    waiting = load_keys(north, pending=True)
    assert waiting.node_key != old.node_key and waiting.signing_key == old.signing_key
    assert stat.S_IMODE(next_node_key(north).stat().st_mode) == 0o600
    admit_site(centre, here / "north" / "north.request", Path("again.welcome"))
    command("join", "again.welcome", "north")
    assert load_keys(north).node_key == waiting.node_key
    assert not next_node_key(north).exists() and not north.invitation.exists()
    with open_registry(centre) as registry:
        assert registry.site("north").node_key == waiting.node_key
        assert registry.by_node_key(old.node_key) is None
    code, said = refusal("join", "north.welcome", "north")
    assert code == 8 and "other keys" in said


def test_while_a_new_key_waits_the_old_one_can_have_a_newer_welcome(centre, here, north):
    command("join", "north.welcome", "north")
    shutil.copy(here / "north" / "north.request", "first.request")
    invite_site(centre, "north", Path("again.invitation"))
    command("init", "again.invitation", "north")
    admit_site(centre, Path("first.request"), Path("newer.welcome"))
    command("join", "newer.welcome", "north")
    assert next_node_key(north).exists() and north.invitation.exists()


@pytest.mark.parametrize("step", range(6))
def test_join_goes_on_where_it_was_cut_off(centre, here, north, step, monkeypatch):
    """Whatever write fails, the site works with the old key or, once join is run again, the new one."""
    command("join", "north.welcome", "north")
    old = load_keys(north).node_key
    invite_site(centre, "north", Path("again.invitation"))
    command("init", "again.invitation", "north")
    new = load_keys(north, pending=True).node_key
    admit_site(centre, here / "north" / "north.request", Path("again.welcome"))
    left = step
    fsync = os.fsync

    def fail_later(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("common.files.os.fsync", fail_later)
        with pytest.raises(DeploymentError, match="cannot write"):
            accept_welcome(Path("again.welcome"), north)
    assert load_keys(north).node_key in (old, new)
    load_welcome(north)
    command("join", "again.welcome", "north")
    assert load_keys(north).node_key == new and not north.invitation.exists()
    load_welcome(north)


def test_a_site_that_has_not_joined_knows_no_centre(north):
    with pytest.raises(CredentialError, match="has not joined"):
        load_welcome(north)


@pytest.mark.parametrize("damage", ["welcome", "centre_certificate"])
def test_what_is_kept_of_the_centre_is_checked_and_join_mends_it(north, damage):
    command("join", "north.welcome", "north")
    path = getattr(north, damage)
    whole = path.read_bytes()
    for content in (changed(whole.decode()).encode(), b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises((CredentialError, SignatureError)) as caught:
            load_welcome(north)
        assert "fedcxr-site join" in caught.value.fix
    command("join", "north.welcome", "north")
    assert load_welcome(north).site == "north" and path.read_bytes() == whole


def test_leave_removes_credentials_and_keeps_what_was_done(north):
    command("join", "north.welcome", "north")
    north.audit.parent.mkdir()
    north.audit.write_text("{}\n")
    (north.root / "mine.request").write_text("not ours")
    forgotten = forget_centre(north)
    assert set(forgotten.removed) == {
        "keys/node.key",
        "centre/welcome.json",
        "centre/ca.crt",
        "centre/app.fab",
        "north.request",
    }
    assert "node/audit.jsonl" in forgotten.kept and "keys/site.key" in forgotten.kept
    for path in (north.settings, north.policy, north.signing_key, north.audit, north.root / "mine.request"):
        assert path.exists()
    with pytest.raises(CredentialError, match="has not joined"):
        load_welcome(north)
    assert forget_centre(north).removed == ()


def test_who_left_can_come_back_with_a_new_key_and_the_same_signature(centre, here, north):
    command("join", "north.welcome", "north")
    old = load_keys(north)
    forget_centre(north)
    with open_registry(centre) as registry:
        registry.revoke("north")
    invite_site(centre, "north", Path("again.invitation"))
    command("init", "again.invitation", "north")
    admit_site(centre, here / "north" / "north.request", Path("again.welcome"))
    command("join", "again.welcome", "north")
    assert load_keys(north).signing_key == old.signing_key
    assert load_keys(north).node_key != old.node_key


def test_who_left_can_join_another_centre(here, north):
    command("join", "north.welcome", "north")
    forget_centre(north)
    other = CentreFolder(here / "other")
    invite_site(other, "north", Path("other.invitation"))
    command("init", "other.invitation", "north")
    admit_site(other, here / "north" / "north.request", Path("other.welcome"))
    assert "joined other" in command("join", "other.welcome", "north")


def test_join_takes_site_toml_or_its_folder(here, north, monkeypatch):
    command("join", "north.welcome", north.settings)
    monkeypatch.chdir(north.root)
    command("join", "../north.welcome")
