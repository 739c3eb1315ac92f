"""The whole ladder between a centre and a site, and every way to tamper with what travels between."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from shutil import which

import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client.join import commands
from client.join.joining import accept_welcome, forget_centre, load_welcome, prepare_site
from client.join.keys import load_keys, load_node_key, next_node_key
from client.place import SiteFolder
from client.site import load_site
from common.code import code_digest
from common.credentials import Invitation, Request, WelcomeFile, node_key_bytes
from common.errors import ConfigError, CredentialError, DeploymentError, SignatureError
from common.signing import create_signing_key, load_signing_key, public_text, sign
from server.centre.bundle import build_bundle
from server.centre.certificates import create_authority
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site, open_registry

ADDRESS = "127.0.0.1:9443"

app = typer.Typer(pretty_exceptions_enable=False)
app.command("init")(commands.init)
app.command("join")(commands.join)


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


def climb(centre: CentreFolder, site: str) -> SiteFolder:
    """Bring a site in, from its invitation to its welcome, in the working folder."""
    invite_site(centre, site)
    prepared = prepare_site(Path(f"{site}.invitation"), Path(site))
    admit_site(centre, prepared.request)
    return prepared.folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Two centres; north and south of the first are admitted and have not joined yet."""
    root = tmp_path_factory.mktemp("begun")
    before = Path.cwd()
    os.chdir(root)
    try:
        for name in ("uni", "other"):
            init_centre(root / name, name, ADDRESS)
        for site in ("north", "south"):
            climb(CentreFolder(root / "uni"), site)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def here(begun, tmp_path, monkeypatch) -> Path:
    """A copy of all that for the test, as its working folder."""
    shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return (tmp_path / "here").resolve()


@pytest.fixture
def centre(here) -> CentreFolder:
    return CentreFolder(here / "uni")


@pytest.fixture
def north(here) -> SiteFolder:
    return SiteFolder(here / "north")


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


BY_CENTRE = ["site", "centre", "address", "certificate", "centre_key"]
WELCOME = [*BY_CENTRE, "keys_fingerprint", "bundle", "bundle_sha256", "code_digest", "when"]


@pytest.mark.parametrize("field", [*BY_CENTRE, "secret", "expires"])
def test_no_field_of_an_invitation_can_be_changed_on_its_way(here, field):
    tamper(Path("north.invitation"), field)
    code, said = refusal("init", "north.invitation", "elsewhere")
    assert code in (7, 8) and "fix:" in said
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize("field", ["kind", "key", "signature"])
def test_nor_what_stands_around_its_fields(here, field):
    path = Path("north.invitation")
    whole = json.loads(path.read_bytes())
    whole[field] = changed(whole[field])
    path.write_text(json.dumps(whole))
    assert refusal("init", path, "elsewhere")[0] in (7, 8)


def test_whoever_swaps_the_centres_key_must_change_the_fingerprint(here, tmp_path):
    """The certificate names the key: one fingerprint over the telephone covers both."""
    own = create_signing_key(tmp_path / "own.key")
    path = Path("north.invitation")
    body = json.loads(path.read_bytes())["body"] | {"centre_key": public_text(own)}
    sign_anew(path, Invitation.kind, body, own)
    code, said = refusal("init", path, "elsewhere")
    assert code == 7 and "do not belong together" in said


def test_a_file_that_names_the_centre_is_signed_by_it(here, tmp_path):
    """Or else whoever carries an invitation could send the site to another address."""
    own = create_signing_key(tmp_path / "own.key")
    path = Path("north.invitation")
    body = json.loads(path.read_bytes())["body"] | {"address": "127.0.0.1:6666"}
    sign_anew(path, Invitation.kind, body, own)
    code, said = refusal("init", path, "elsewhere")
    assert code == 7 and "not signed by the centre it names" in said
    assert not Path("elsewhere").exists()


def test_a_second_ca_cannot_hide_behind_the_first(here, centre):
    path = Path("north.invitation")
    body = json.loads(path.read_bytes())["body"]
    body["certificate"] += CentreFolder(here / "other").key("ca.crt").read_text()
    sign_anew(path, Invitation.kind, body, load_signing_key(centre.key("centre.key")))
    code, said = refusal("init", path, "elsewhere")
    assert code == 8 and "more than one" in said


@pytest.mark.parametrize(
    "name", ["north.welcome", "north/north.request", "north/site.toml", "north/keys/node.key", "nothing"]
)
def test_what_is_no_invitation_is_refused(here, name):
    assert refusal("init", name, "elsewhere")[0] == 8
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize("field", WELCOME)
def test_no_field_of_a_welcome_can_be_changed_on_its_way(north, field):
    tamper(Path("north.welcome"), field)
    code, said = refusal("join", "north.welcome", "north")
    assert code in (7, 8) and "fix:" in said
    not_joined(north)


@pytest.mark.parametrize("field", ["kind", "key", "signature"])
def test_nor_what_stands_around_the_fields_of_a_welcome(north, field):
    path = Path("north.welcome")
    whole = json.loads(path.read_bytes())
    whole[field] = changed(whole[field])
    path.write_text(json.dumps(whole))
    assert refusal("join", path, "north")[0] in (7, 8)
    not_joined(north)


@pytest.mark.parametrize("field", ["certificate", "bundle", "bundle_sha256", "keys_fingerprint", "site"])
def test_even_the_centre_cannot_change_what_was_agreed(centre, north, field):
    path = Path("north.welcome")
    body = json.loads(path.read_bytes())["body"]
    body[field] = "south" if field == "site" else changed(body[field])
    sign_anew(path, WelcomeFile.kind, body, load_signing_key(centre.key("centre.key")))
    code, _ = refusal("join", path, "north")
    assert code in (7, 8)
    not_joined(north)


def test_the_ca_stays_the_one_that_was_compared(centre, north):
    """Even one that vouches for the same centre's key: it stands in no fingerprint a person has seen."""
    key = load_signing_key(centre.key("centre.key"))
    path = Path("north.welcome")
    body = json.loads(path.read_bytes())["body"]
    body["certificate"] = create_authority("uni", ["127.0.0.1"], public_text(key)).certificate.decode()
    sign_anew(path, WelcomeFile.kind, body, key)
    code, said = refusal("join", path, "north")
    assert code == 8 and "another CA certificate" in said
    not_joined(north)


def test_the_welcome_of_another_site_is_refused(north):
    code, said = refusal("join", "south.welcome", "north")
    assert code == 8 and "another site" in said and "south, not" in said
    not_joined(north)


def test_the_welcome_of_another_centre_is_refused(here, north):
    other = CentreFolder(here / "other")
    invite_site(other, "north", Path("other.invitation"))
    elsewhere = prepare_site(Path("other.invitation"), Path("elsewhere"))
    admit_site(other, elsewhere.request, Path("other.welcome"))
    code, said = refusal("join", "other.welcome", "north")
    assert code == 7 and "somebody else" in said
    not_joined(north)


def test_a_welcome_for_other_keys_is_refused(centre, north):
    invite_site(centre, "north", Path("again.invitation"))
    elsewhere = prepare_site(Path("again.invitation"), Path("elsewhere"))
    admit_site(centre, elsewhere.request, Path("again.welcome"))
    code, said = refusal("join", "again.welcome", "north")
    assert code == 8 and "other keys" in said
    not_joined(north)


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


def test_a_cut_welcome_is_refused_at_any_length(north):
    whole = Path("north.welcome").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 3):
        Path("cut.welcome").write_bytes(whole[:length])
        with pytest.raises((CredentialError, SignatureError)):
            accept_welcome(Path("cut.welcome"), north)
    not_joined(north)


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(["n", "r", "w"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_noticed_or_changes_nothing(begun, tmp_path, at, bit, name):
    kind, file = {
        "n": (Invitation, "north.invitation"),
        "r": (Request, "north/north.request"),
        "w": (WelcomeFile, "north.welcome"),
    }[name]
    data = bytearray((begun / file).read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    path = tmp_path / "flipped"
    path.write_bytes(data)
    try:
        read = kind.read(path)
    except (CredentialError, SignatureError):
        return
    assert read == kind.read(begun / file)


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["kind", "body", "key", "signature", "site"]), inner, max_size=5),
).map(lambda tree: json.dumps(tree).encode()))  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_at_all_is_refused_clearly(tmp_path, data):
    path = tmp_path / "any"
    path.write_bytes(data)
    for kind in (Invitation, Request, WelcomeFile):
        with pytest.raises((CredentialError, SignatureError)):
            kind.read(path)


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


def changed(text: str) -> str:
    """Change one character in the middle."""
    at = len(text) // 2
    return text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]


def tamper(path: Path, field: str) -> None:
    """Change one character or the last digits of one field of a signed file."""
    whole = json.loads(path.read_bytes())
    value = whole["body"][field]
    whole["body"][field] = value + 1 if isinstance(value, float) else changed(value)
    path.write_text(json.dumps(whole))


def sign_anew(path: Path, kind: str, body: dict[str, object], key) -> None:
    """Write a signed file, whatever it says."""
    covered = json.dumps([kind, body], sort_keys=True).encode()
    whole = {"kind": kind, "body": body, "key": public_text(key), "signature": sign(key, covered)}
    path.write_text(json.dumps(whole))


def not_joined(site: SiteFolder) -> None:
    assert not any(path.exists() for path in (site.welcome, site.centre_certificate, site.bundle))
