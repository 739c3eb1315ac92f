"""A site's folder, keys and request, as init makes them for an invitation."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from shutil import which

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.join.joining import prepare_site
from client.join.keys import load_keys, next_node_key
from client.place import SiteFolder
from client.site import load_site
from common.credentials import Request, node_key_bytes
from common.errors import ConfigError, CredentialError
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, invite_site, open_registry
from tests.client.join.joining.ladder import command, refusal


def test_nothing_private_travels(here, north):
    keys = load_keys(north)
    request = (here / "north" / "north.request").read_bytes()
    scalar = keys.node.private_numbers().private_value.to_bytes(48, "big")
    seed = keys.signing.private_bytes_raw()
    texts = [
        north.node_key.read_bytes(),
        north.signing_key.read_bytes(),
        keys.node.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        keys.signing.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    ]
    for secret in (scalar, seed, *texts):
        # Base64 of a part is found whatever it is aligned to.
        for piece in (secret, secret.hex().encode(), *(base64.b64encode(secret[i:])[4:-4] for i in range(3))):
            assert piece not in request
    assert b"PRIVATE" not in request
    assert json.loads(request)["body"].keys() == set(Request.model_fields)
    # The search itself works: what is public is found.
    assert keys.node_key.replace(b"\n", b"\\n") in request
    assert keys.signing_key.encode() in request
    for handed_on in (here / "north.welcome", here / "north.invitation"):
        assert b"PRIVATE" not in handed_on.read_bytes()


def test_private_files_are_for_their_owner_alone(north):
    keys = north.node_key.parent
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in keys.iterdir()} == {
        "node.key": 0o600,
        "site.key": 0o600,
    }
    assert stat.S_IMODE(north.invitation.stat().st_mode) == 0o600


def test_flower_reads_the_node_key(north):
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    found = _try_setup_client_authentication(
        Namespace(auth_supernode_private_key=str(north.node_key), auth_supernode_public_key=None)
    )
    assert found is not None
    private, public = found
    assert private.curve.name == "secp384r1" and uses_nist_ec_curve(public)
    assert public_key_to_bytes(public) == load_keys(north).node_key == node_key_bytes(public)


@pytest.mark.skipif(not which("ssh-keygen"), reason="no ssh-keygen command")
def test_ssh_keygen_reads_the_node_key(north):
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-f", north.node_key], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("ecdsa-sha2-nistp384 ")


def test_the_settings_load_as_they_are_written(north):
    site = load_site(north.settings)
    assert site.name == "north"
    text = north.settings.read_text()
    assert text.count("#") > 30 and "—" not in text


def test_the_policy_is_the_gates_default(north):
    from client.gate.policy import load_policy, policy_text

    assert north.policy.read_text() == policy_text()
    load_policy(north.policy)


def test_what_a_site_has_is_kept(centre, here):
    invite_site(centre, "west")
    folder = SiteFolder(here / "west")
    folder.root.mkdir()
    folder.settings.write_text('name = "west"\n[data]\ntable = "mine.csv"\n')
    folder.policy.write_text("# mine\n")
    said = command("init", "west.invitation", "west")
    assert "kept as they were: site.toml, policy.toml" in said
    assert "mine.csv" in folder.settings.read_text() and folder.policy.read_text() == "# mine\n"


def test_the_working_folder_is_the_site_where_it_holds_one(centre, here, monkeypatch):
    invite_site(centre, "west")
    (here / "w").mkdir()
    (here / "w" / "site.toml").write_text('name = "west"\n')
    monkeypatch.chdir(here / "w")
    command("init", here / "west.invitation")
    assert (here / "w" / "west.request").is_file()


def test_init_again_keeps_the_keys(here, north):
    before = load_keys(north).fingerprint
    (here / "north" / "north.request").unlink()
    command("init", "north.invitation", "north")
    assert load_keys(north).fingerprint == before
    assert Request.read(here / "north" / "north.request").fingerprint == before


@pytest.mark.parametrize("missing", ["node_key", "signing_key"])
def test_init_goes_on_where_it_was_cut_off(here, north, missing):
    getattr(north, missing).unlink()
    command("init", "north.invitation", "north")
    assert Request.read(here / "north" / "north.request").fingerprint == load_keys(north).fingerprint


def test_a_later_invitation_of_the_centre_takes_the_place_of_the_first(centre, here, north):
    before = load_keys(north).fingerprint
    invite_site(centre, "north", Path("later.invitation"))
    command("init", "later.invitation", "north")
    admitted = admit_site(centre, here / "north" / "north.request", Path("later.welcome"))
    assert admitted.keys_fingerprint == before
    command("join", "later.welcome", "north")
    with open_registry(centre) as registry:
        assert registry.site("north").invitation_expires is None, "it has been used up"


def test_a_site_of_another_name_is_refused(centre, here):
    invite_site(centre, "west")
    (here / "w").mkdir()
    (here / "w" / "site.toml").write_text('name = "east"\n')
    code, said = refusal("init", "west.invitation", "w")
    assert code == 8 and "name = 'east'" in said and 'name = "west"' in said
    assert sorted(path.name for path in (here / "w").iterdir()) == ["site.toml"]


def test_a_broken_site_toml_is_named(centre, here):
    invite_site(centre, "west")
    (here / "w").mkdir()
    (here / "w" / "site.toml").write_text("name = ")
    assert refusal("init", "west.invitation", "w")[0] == ConfigError.exit_code


@pytest.mark.parametrize("joined", [False, True])
def test_a_folder_belongs_to_one_centre(here, north, joined):
    if joined:
        command("join", "north.welcome", "north")
    invite_site(CentreFolder(here / "other"), "north", Path("other.invitation"))
    code, said = refusal("init", "other.invitation", "north")
    assert code == 8 and "fedcxr-site leave" in said
    assert not next_node_key(north).exists()


def test_an_expired_invitation_is_refused(here):
    late = time.time() + 15 * 86400
    with pytest.raises(CredentialError, match="has expired") as caught:
        prepare_site(Path("north.invitation"), Path("elsewhere"), now=late)
    assert "this machine's clock says" in caught.value.found
    assert not Path("elsewhere").exists()


def test_a_clock_before_the_centre_was_made_is_named(here):
    with pytest.raises(CredentialError, match="not valid yet") as caught:
        prepare_site(Path("north.invitation"), Path("elsewhere"), now=time.time() - 3 * 86400)
    assert "set the clock" in caught.value.fix


def test_a_file_in_the_way_is_named(centre, here):
    invite_site(centre, "west")
    Path("west").write_text("a file")
    assert refusal("init", "west.invitation")[0] == 8
    Path("west").unlink()
    Path("west").mkdir()
    Path("west/west.request").write_text("mine")
    code, said = refusal("init", "west.invitation")
    assert code == 8 and "move it away" in said
    assert Path("west/west.request").read_text() == "mine"
