"""A centre's folder: made, read by people, renewed, and what is said of one that is damaged."""

from __future__ import annotations

import shutil
import stat
import tomllib
from typing import Any

import pytest

from common.certificate import centre_key_in, fingerprint
from common.errors import ConfigError
from common.signing import create_signing_key, load_signing_key, public_text
from server.centre.certificates import hosts_in
from server.centre.folder import CentreFolder
from server.centre.provision import init_centre, invite_site, open_registry, renew_server
from tests.server.centre.provision.provisioning import ADDRESS, KEYS, command, refusal


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
