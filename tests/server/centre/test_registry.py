"""The registry: an invitation is used once, a node key never comes back, other processes notice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.errors import CredentialError, DeploymentError
from server.centre import registry as registry_module
from server.centre.registry import INVITATION_LASTS, Registry

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(tmp_path, clock):
    with Registry(tmp_path / "registry.sqlite", clock) as registry:
        yield registry


def test_a_site_is_invited_admitted_numbered_and_revoked(registry, clock):
    secret = registry.invite("north")
    (site,) = registry.sites()
    assert (site.state, site.node_key, site.invitation_expires) == ("invited", b"", clock.now + 14 * DAY)
    assert registry.names() == {}
    clock.now += DAY
    registry.admit("north", b"key", "ed25519:a", secret)
    (site,) = registry.sites()
    assert (site.state, site.node_key, site.signing_key) == ("admitted", b"key", "ed25519:a")
    assert (site.node_id, site.admitted_at, site.invitation_expires) == (None, clock.now, None)
    registry.set_node_id("north", 2**64 - 1)
    assert registry.names() == {2**64 - 1: "north"}
    assert registry.by_node_key(b"key") == registry.site("north")
    assert registry.by_node_key(b"other") is registry.by_node_key(b"") is None
    assert registry.revoke("north") and not registry.revoke("north")
    assert registry.names() == {}
    assert registry.by_node_key(b"key").state == "revoked"


def test_a_secret_is_not_on_the_disk(registry, tmp_path):
    secret = registry.invite("north").encode()
    registry.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"north" in written and secret not in written


def test_only_the_owner_reads_the_file(registry, tmp_path):
    registry.invite("north")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_an_invitation_is_used_once(registry):
    secret = registry.invite("north")
    registry.check_invitation("north", secret)
    registry.admit("north", b"key", "ed25519:a", secret)
    with pytest.raises(CredentialError, match="used already"):
        registry.check_invitation("north", secret)
    with pytest.raises(CredentialError, match="used already"):
        registry.admit("north", b"other", "ed25519:b", secret)
    assert registry.site("north").node_key == b"key"


def test_an_invitation_expires(registry, clock):
    secret = registry.invite("north")
    clock.now += INVITATION_LASTS - 1
    registry.check_invitation("north", secret)
    clock.now += DAY + 2
    with pytest.raises(CredentialError, match="has expired") as caught:
        registry.admit("north", b"key", "ed25519:a", secret)
    assert caught.value.found == "1.0 days ago"
    assert "fedcxr-server invite north" in caught.value.fix


def test_a_later_invitation_and_a_revocation_make_an_earlier_one_void(registry):
    first, second = registry.invite("north"), registry.invite("north")
    with pytest.raises(CredentialError, match="void"):
        registry.check_invitation("north", first)
    registry.check_invitation("north", second)
    registry.revoke("north")
    with pytest.raises(CredentialError, match="void"):
        registry.admit("north", b"key", "ed25519:a", second)


def test_an_invitation_is_for_one_site(registry):
    secret = registry.invite("north")
    registry.invite("south")
    for name, given in (("south", secret), ("north", secret[:-1]), ("north", "")):
        with pytest.raises(CredentialError, match="did not write for it"):
            registry.check_invitation(name, given)


def test_a_site_without_an_invitation_is_not_admitted(registry):
    with pytest.raises(CredentialError, match="no site 'north'"):
        registry.admit("north", b"key", "ed25519:a")
    registry.invite("north")
    registry.revoke("north")
    with pytest.raises(CredentialError, match="no open invitation"):
        registry.admit("north", b"key", "ed25519:a")


@pytest.mark.parametrize("name", ["", "North", "../x", "a b", "-a", "a" * 33, "north\n", "nörd"])
def test_a_name_is_one_that_a_site_can_have(registry, name):
    with pytest.raises(CredentialError, match="small letters"):
        registry.invite(name)
    assert registry.sites() == []


def test_new_keys_replace_old_ones_which_never_come_back(registry):
    registry.admit("north", b"old", "ed25519:a", registry.invite("north"))
    registry.set_node_id("north", 7)
    registry.heard({"north": 5.0})
    secret = registry.invite("north")
    assert registry.names() == {7: "north"}, "the old key is good until the new one is here"
    assert registry.site("north").invitation_expires
    registry.admit("north", b"new", "ed25519:a", secret)
    assert registry.names() == {} and registry.site("north").heard_at is None
    with pytest.raises(CredentialError, match="revoked or replaced"):
        registry.admit("north", b"old", "ed25519:a", registry.invite("north"))
    registry.invite("south")
    with pytest.raises(CredentialError, match="revoked or replaced"):
        registry.admit("south", b"old", "ed25519:b")


def test_the_same_keys_again_keep_the_node(registry):
    registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    registry.set_node_id("north", 7)
    registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    assert registry.names() == {7: "north"}


def test_a_revoked_site_comes_back_with_new_keys_only(registry):
    registry.admit("north", b"old", "ed25519:a", registry.invite("north"))
    registry.revoke("north")
    secret = registry.invite("north")
    assert registry.site("north").state == "revoked"
    with pytest.raises(CredentialError, match="revoked or replaced"):
        registry.admit("north", b"old", "ed25519:a", secret)
    registry.admit("north", b"new", "ed25519:a", secret)
    assert (registry.site("north").state, registry.site("north").revoked_at) == ("admitted", None)


@pytest.mark.parametrize("keys", [(b"key", "ed25519:b"), (b"other", "ed25519:a")])
def test_two_sites_do_not_share_a_key(registry, keys):
    registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    with pytest.raises(CredentialError, match="with a key of site north"):
        registry.admit("south", *keys, registry.invite("south"))
    assert registry.site("south").state == "invited"


def test_two_sites_do_not_share_a_node(registry):
    for name in ("north", "south"):
        registry.admit(name, name.encode(), f"ed25519:{name}", registry.invite(name))
    registry.set_node_id("north", 7)
    with pytest.raises(CredentialError, match="another site"):
        registry.set_node_id("south", 7)


@pytest.mark.parametrize("call", [lambda r: r.revoke("nroth"), lambda r: r.set_node_id("nroth", 1)])
def test_an_unknown_site_is_named_with_the_nearest(registry, call):
    registry.invite("north")
    with pytest.raises(CredentialError, match="did you mean 'north'"):
        call(registry)


def test_last_heard_is_kept_and_is_no_edit(registry):
    registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    before = registry.version()
    registry.heard({"north": 5.0, "unknown": 6.0})
    registry.heard({"north": 4.0})
    registry.heard({})
    assert registry.site("north").heard_at == 5.0
    assert registry.version() == before


def test_every_edit_is_seen_by_another_process(registry, tmp_path):
    code = "import sys; from pathlib import Path; from server.centre.registry import Registry\n"
    code += "r = Registry(Path(sys.argv[1])); print(r.version(), r.revoke('north'), r.version())"
    registry.admit("north", b"key", "ed25519:a", registry.invite("north"))
    before = registry.version()
    command = [sys.executable, "-c", code, str(tmp_path / "registry.sqlite")]
    repository = Path(__file__).parents[3]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(before), "True", str(before + 1)]
    assert registry.version() == before + 1
    assert registry.site("north").state == "revoked"


def test_of_two_requests_at_once_one_is_refused(registry, tmp_path):
    secret = registry.invite("north")
    ready = threading.Barrier(8)

    def answer(number: int) -> bool:
        with Registry(tmp_path / "registry.sqlite", registry._clock) as mine:
            ready.wait()
            try:
                mine.admit("north", b"key%d" % number, f"ed25519:{number}", secret)
            except CredentialError:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(answer, range(8))) == 1


def test_many_may_open_a_new_file_at_once(tmp_path):
    def work(number: int) -> None:
        with Registry(tmp_path / "new.sqlite") as registry:
            registry.invite(f"site{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    with Registry(tmp_path / "new.sqlite") as registry:
        assert len(registry.sites()) == registry.version() == 8


def test_one_registry_serves_several_threads(registry):
    def work(number: int) -> None:
        name = f"site{number}"
        registry.admit(name, name.encode(), f"ed25519:{name}", registry.invite(name))
        registry.set_node_id(name, number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert registry.names() == {number: f"site{number}" for number in range(24)}


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "registry.sqlite").write_bytes(content)
    with pytest.raises(CredentialError, match="not a registry"):
        Registry(tmp_path / "registry.sqlite")


def test_a_later_schema_is_not_touched(registry, tmp_path):
    registry.invite("north")
    registry.close()
    with sqlite3.connect(tmp_path / "registry.sqlite") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(CredentialError, match="schema 9"):
        Registry(tmp_path / "registry.sqlite")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "registry.sqlite").mkdir()
    with pytest.raises(DeploymentError, match="cannot be opened"):
        Registry(tmp_path / "registry.sqlite")


def test_a_failed_edit_leaves_nothing_and_no_lock(registry):
    registry.invite("north")
    before = registry.version()
    registry._db.execute("PRAGMA query_only=1")
    with pytest.raises(DeploymentError, match="cannot be written"):
        registry.revoke("north")
    registry._db.execute("PRAGMA query_only=0")
    assert registry.version() == before and registry.site("north").state == "invited"
    assert registry.revoke("north")


NAMES = st.sampled_from(["a", "b", "c"])
KEYS = st.integers(0, 5)


class AnyOrder(RuleBasedStateMachine):
    """Whatever is done in whatever order: one key, one site; what was shut out stays out."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.folder = TemporaryDirectory()
        self.registry = Registry(Path(self.folder.name) / "registry.sqlite", self.clock)
        self.secrets: dict[str, str] = {}
        self.used: set[str] = set()
        self.dead: set[bytes] = set()
        self.version = 0

    @rule(name=NAMES)
    def invite(self, name: str) -> None:
        self.secrets[name] = self.registry.invite(name)

    @rule(name=NAMES, number=KEYS)
    def admit(self, name: str, number: int) -> None:
        key, secret = b"key%d" % number, self.secrets.get(name, "")
        before = {site.name: site.node_key for site in self.registry.sites()}
        try:
            self.registry.admit(name, key, f"ed25519:{name}", secret)
        except CredentialError:
            return
        assert secret and secret not in self.used
        assert key not in self.dead
        assert all(other == name or theirs != key for other, theirs in before.items())
        self.used.add(secret)
        if before[name] != key:
            self.dead.add(before[name])

    @rule(name=NAMES)
    def revoke(self, name: str) -> None:
        try:
            site = self.registry.site(name)
        except CredentialError:
            return
        self.registry.revoke(name)
        self.dead.add(site.node_key)
        self.used.add(self.secrets[name])

    @rule(days=st.integers(1, 20))
    def wait(self, days: int) -> None:
        self.clock.now += days * DAY

    @rule(name=NAMES, node=st.integers(1, 4) | st.just(2**64 - 1))
    def number(self, name: str, node: int) -> None:
        theirs = {site.name: site.node_id for site in self.registry.sites()}
        try:
            self.registry.set_node_id(name, node)
        except CredentialError:
            assert name not in theirs or node in theirs.values()
        else:
            assert all(other == name or number != node for other, number in theirs.items())

    @invariant()
    def only_admitted_sites_have_names(self) -> None:
        admitted = {site.name for site in self.registry.sites() if site.state == "admitted"}
        assert set(self.registry.names().values()) <= admitted
        assert not {site.node_key for site in self.registry.sites() if site.name in admitted} & self.dead

    @invariant()
    def the_version_never_goes_back(self) -> None:
        assert self.registry.version() >= self.version
        self.version = self.registry.version()

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.registry.close()
            self.folder.cleanup()


AnyOrder.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_a_file_that_somebody_holds_is_not_called_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(registry_module, "_PATIENCE", 0.1)
    Registry(tmp_path / "held.sqlite").close()
    with closing(sqlite3.connect(tmp_path / "held.sqlite", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DeploymentError, match="is in use"):
            Registry(tmp_path / "held.sqlite")
