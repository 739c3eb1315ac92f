"""Doctor against a running centre: one thing wrong at a time, each named with its fix."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from client.gate.approval import approve
from tests.ports import free_port

Scene = Any
"""A site to spoil and what to spoil it with; see conftest.py."""


def test_a_healthy_site_has_nothing_to_mend(scene: Scene) -> None:
    found = scene.examine()
    assert found.healthy
    assert not found.of("warning")
    told = {outcome.check for outcome in found.of("ok")}
    assert {"packages", "memory", "keys", "admitted keys", "welcome", "approval", "bundle", "code"} <= told
    assert {"port", "certificate", "clock", "centre", "admission", "studies", "images", "node"} <= told
    assert found.seconds < 10


# ---------------------------------------------------------------------- misconfigurations


def clock_ahead(s: Scene) -> None:
    s.now = lambda: time.time() + 400


def clock_behind(s: Scene) -> None:
    s.now = lambda: time.time() - 400


def clock_a_little_ahead(s: Scene) -> None:
    s.now = lambda: time.time() + 8


def certificate_expired(s: Scene) -> None:
    s.serve(s.deployment.certificate(("localhost",), -100, -1))


def certificate_of_tomorrow(s: Scene) -> None:
    s.serve(s.deployment.certificate(("localhost",), 1, 100))


def certificate_without_the_name(s: Scene) -> None:
    s.serve(s.deployment.certificate(("other.localhost",)))


def certificate_of_another_ca(s: Scene) -> None:
    s.serve(s.fixture("foreign_certificate"))


def proxy_intercepts(s: Scene) -> None:
    onward = s.fixture("serve_tls")(*s.fixture("foreign_certificate"))
    s.environment["HTTPS_PROXY"] = f"http://127.0.0.1:{s.fixture('serve_proxy')(onward)}"


def proxy_to_nowhere(s: Scene) -> None:
    s.environment["https_proxy"] = f"http://127.0.0.1:{free_port()}"


def proxy_says_no(s: Scene) -> None:
    s.environment["HTTPS_PROXY"] = f"127.0.0.1:{s.fixture('serve_proxy')(None)}"


def port_closed(s: Scene) -> None:
    s.dial(f"localhost:{free_port()}")


def port_filtered(s: Scene) -> None:
    s.dial(f"127.0.0.1:{s.fixture('dropped_port')}")


def port_of_another_service(s: Scene) -> None:
    s.dial(f"localhost:{s.fixture('plain_port')}")


def port_of_the_administration(s: Scene) -> None:
    s.dial(f"localhost:{s.deployment.admin_port}")


def host_misspelt(s: Scene) -> None:
    s.dial(f"centre.invalid:{s.deployment.port}")


def revoked(s: Scene) -> None:
    s.deployment.revoke("south")
    shutil.rmtree(s.site.root)
    shutil.copytree(s.sites["south"].root, s.site.root)
    time.sleep(1)


def key_readable_by_all(s: Scene) -> None:
    s.site.node_key.chmod(0o644)


def key_of_another_site(s: Scene) -> None:
    shutil.copy(s.sites["south"].node_key, s.site.node_key)


def key_missing(s: Scene) -> None:
    s.site.signing_key.unlink()


def key_of_another_kind(s: Scene) -> None:
    shutil.copy(s.site.signing_key, s.site.node_key)


def keys_folder_open(s: Scene) -> None:
    s.site.node_key.parent.chmod(0o777)


def welcome_damaged(s: Scene) -> None:
    s.edit(s.site.welcome, '"site": "north"', '"site": "nortj"')


def welcome_of_another_centre(s: Scene) -> None:
    from server.centre.provision import init_centre

    elsewhere = s.site.root.parent
    other = type(s.deployment)(init_centre(elsewhere / "other", "hub2", "localhost:9443"), elsewhere)
    stranger = other.join(elsewhere / "second" / "north")
    shutil.copy(stranger.welcome, s.site.welcome)


def centre_certificate_missing(s: Scene) -> None:
    s.site.centre_certificate.unlink()


def centre_certificate_too_old(s: Scene) -> None:
    s.now = lambda: time.time() + 11 * 365 * 86400


def no_centre_at_all(s: Scene) -> None:
    shutil.rmtree(s.site.welcome.parent)


def name_differs(s: Scene) -> None:
    s.edit(s.site.settings, 'name = "north"', 'name = "nord"')


def settings_broken(s: Scene) -> None:
    s.edit(s.site.settings, "[data]", "[data")


def policy_unknown_key(s: Scene) -> None:
    s.edit(s.site.policy, "max_rank", "max_rang")


def policy_changed_since(s: Scene) -> None:
    s.edit(s.site.policy, "max_epochs = 10", "max_epochs = 9")


def policy_open_to_others(s: Scene) -> None:
    s.site.policy.chmod(0o666)


def policy_median(s: Scene) -> None:
    s.edit(s.site.policy, 'means = ["weighted", "trimmed"]', 'means = ["median"]')
    approve(s.site, s.site.bundle.read_bytes(), ["ab" * 32], "Dr Reviewer")


def policy_wide(s: Scene) -> None:
    s.edit(s.site.policy, "min_sites = 2", "min_sites = 1")
    approve(s.site, s.site.bundle.read_bytes(), ["ab" * 32], "Dr Reviewer")


def policy_against_settings(s: Scene) -> None:
    with s.site.settings.open("a") as file:
        file.write("\n[evaluate]\nmin_cell = 2\n")


def nothing_approved(s: Scene) -> None:
    shutil.rmtree(s.site.approvals)


def bundle_changed(s: Scene) -> None:
    data = bytearray(s.site.bundle.read_bytes())
    data[len(data) // 2] ^= 1
    s.site.bundle.write_bytes(data)


def bundle_of_other_code(s: Scene) -> None:
    s.deployment.rewrite_welcome(s.site, code_digest=hashlib.sha256(b"other").hexdigest())


def audit_edited(s: Scene) -> None:
    s.edit(s.site.audit, "Dr Reviewer", "Dr Rewriter")


def memory_short(s: Scene) -> None:
    s.memory = 300_000_000


def disk_full(s: Scene) -> None:
    s.fixture("tiny_disk")(s.site.root / "state")


def table_missing(s: Scene) -> None:
    (s.site.root / "studies.csv").unlink()


def label_column_missing(s: Scene) -> None:
    s.edit(s.site.settings, 'edema = "edema"', 'edema = "Oedema"')


def images_unreadable(s: Scene) -> None:
    for image in (s.site.root / "images").iterdir():
        image.write_bytes(image.read_bytes()[:200])


def images_gone(s: Scene) -> None:
    shutil.rmtree(s.site.root / "images")


def cuda_absent(s: Scene) -> None:
    with s.site.settings.open("a") as file:
        file.write('\n[device]\nname = "cuda:99"\n')


def more_threads_than_cores(s: Scene) -> None:
    with s.site.settings.open("a") as file:
        file.write("\n[device]\nthreads = 1000\n")


def state_is_a_file(s: Scene) -> None:
    (s.site.root / "state").write_text("")


def node_runs_already(s: Scene) -> None:
    s.fixture("held_lock")(s.site.outbox.with_name("lock"))


def flower_home_set(s: Scene) -> None:
    s.environment["FLWR_HOME"] = "/srv/elsewhere"


def tls_keys_written_down(s: Scene) -> None:
    s.environment["SSLKEYLOGFILE"] = "/srv/keys.log"


def proxy_in_our_own_way(s: Scene) -> None:
    s.environment["http_proxy"] = "http://127.0.0.1:3128"


WRONG = [
    (clock_ahead, "clock", "failure", r"(399|40[01]) s ahead"),
    (clock_behind, "clock", "failure", r"(399|40[01]) s behind"),
    (clock_a_little_ahead, "clock", "failure", r"[789] s ahead"),
    (certificate_expired, "certificate", "failure", "has expired"),
    (certificate_of_tomorrow, "certificate", "failure", "not valid yet"),
    (certificate_without_the_name, "certificate", "failure", "does not name localhost"),
    (certificate_of_another_ca, "certificate", "failure", "intercepts TLS"),
    (proxy_intercepts, "certificate", "failure", "the proxy 127.0.0.1"),
    (proxy_to_nowhere, "proxy", "failure", "https_proxy refuses connections"),
    (proxy_says_no, "proxy", "failure", "answers 403"),
    (port_closed, "port", "failure", "refuses connections"),
    (port_filtered, "port", "failure", "firewall"),
    (port_of_another_service, "certificate", "failure", "does not speak TLS"),
    (port_of_the_administration, "admission", "failure", "has no door for sites"),
    (host_misspelt, "name", "failure", "centre.invalid has no address"),
    (revoked, "admission", "failure", "does not take requests signed with this site's node key"),
    (key_readable_by_all, "node key", "failure", "mode 644"),
    (key_of_another_site, "admitted keys", "failure", "not those the centre admitted"),
    (key_missing, "signing key", "failure", "site.key is missing"),
    (key_of_another_kind, "node key", "failure", "not an EC P-384"),
    (keys_folder_open, "keys folder", "failure", "other accounts can put files"),
    (welcome_damaged, "welcome", "failure", "signature"),
    (welcome_of_another_centre, "CA certificate", "failure", "another centre"),
    (centre_certificate_missing, "CA certificate", "failure", "missing"),
    (centre_certificate_too_old, "CA certificate", "failure", "has expired"),
    (no_centre_at_all, "welcome", "failure", "knows no centre"),
    (name_differs, "site.toml", "failure", 'knows this site as "north"'),
    (settings_broken, "site.toml", "failure", "not valid TOML"),
    (policy_unknown_key, "policy.toml", "failure", "unknown key training.max_rang"),
    (policy_changed_since, "approval", "failure", "policy.toml has changed"),
    (policy_open_to_others, "policy.toml", "failure", "other accounts can change"),
    (policy_wide, "policy.toml", "warning", "federation.min_sites = 1"),
    (policy_median, "policy.toml", "warning", "median"),
    (policy_against_settings, "policy.toml", "failure", "every instruction would be refused"),
    (nothing_approved, "approval", "failure", "nobody at this site has approved"),
    (bundle_changed, "bundle", "failure", "was changed"),
    (bundle_of_other_code, "code", "failure", "the centre runs"),
    (audit_edited, "audit", "failure", "was changed after it was written"),
    (memory_short, "memory", "failure", "300.0 MB of memory free"),
    (disk_full, "state folder", "failure", "full"),
    (table_missing, "studies", "failure", "there is no table studies.csv"),
    (label_column_missing, "studies", "failure", "'Oedema' is not in"),
    (images_unreadable, "images", "failure", "12 truncated"),
    (images_gone, "images", "failure", "12 missing"),
    (cuda_absent, "device", "failure", "cuda:99"),
    (more_threads_than_cores, "processor", "warning", "threads = 1000"),
    (state_is_a_file, "state folder", "failure", "is a file, not a folder"),
    (node_runs_already, "node", "warning", r"running here already \(process \d+\)"),
    (flower_home_set, "environment", "warning", "FLWR_HOME"),
    (proxy_in_our_own_way, "environment", "failure", "http_proxy would take"),
    (tls_keys_written_down, "environment", "failure", "SSLKEYLOGFILE"),
]


@pytest.mark.parametrize(
    ("spoil", "check", "level", "word"), WRONG, ids=lambda part: getattr(part, "__name__", "")
)
def test_doctor_names_what_is_wrong_and_how_to_mend_it(
    scene: Scene, spoil: Callable[[Scene], None], check: str, level: str, word: str
) -> None:
    spoil(scene)
    found = scene.examine()
    named = [outcome for outcome in found.of(level) if outcome.check == check]  # type: ignore[arg-type]
    assert named, found.of("failure") + found.of("warning")
    assert any(re.search(word, outcome.found) for outcome in named), named
    assert all(outcome.fix for outcome in found.of("failure") + found.of("warning"))
    assert found.seconds < 10
    assert found.healthy == (level == "warning")
