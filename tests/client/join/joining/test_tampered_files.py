"""Every way to tamper with what travels between a centre and a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.join.joining import accept_welcome, prepare_site
from common.credentials import Invitation, Request, WelcomeFile
from common.errors import CredentialError, SignatureError
from common.signing import create_signing_key, load_signing_key, public_text
from server.centre.certificates import create_authority
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, invite_site
from tests.client.join.joining.ladder import not_joined, refusal
from tests.signed_file import changed, sign_anew, tamper, tamper_around

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
    tamper_around(Path("north.invitation"), field)
    assert refusal("init", "north.invitation", "elsewhere")[0] in (7, 8)


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
    tamper_around(Path("north.welcome"), field)
    assert refusal("join", "north.welcome", "north")[0] in (7, 8)
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
