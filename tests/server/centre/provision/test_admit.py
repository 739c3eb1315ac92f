"""Invitations, admissions, revocations and the list of sites, by their commands."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from client.join.joining import prepare_site
from common.certificate import fingerprint
from common.credentials import Invitation, Request, WelcomeFile
from common.errors import CredentialError, DeploymentError
from common.signing import load_signing_key, public_text
from server.centre.bundle import build_bundle
from server.centre.provision import admit_site, init_centre, open_registry
from tests.server.centre.provision.provisioning import ADDRESS, command, nobody_admitted, refusal


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


def test_a_full_disk_is_named(centre, request_file, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("common.files.os.replace", full)
        with pytest.raises(DeploymentError, match="cannot write") as caught:
            admit_site(centre, request_file)
    assert "No space left" in caught.value.found
    assert admit_site(centre, request_file).again, "the site is in; only its welcome was missing"
