"""Webhooks as a real server on loopback gets them: what is sent, what is signed, what is not followed."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time

import pytest

from common.errors import ConfigError
from server.monitor.alerts import channels
from server.monitor.alerts.channels import Failure, Webhook
from server.monitor.alerts.messages import Sender
from server.monitor.alerts.settings import WebhookSettings

SECRET = "a secret of more than sixteen"


@pytest.fixture
def webhook(tmp_path):
    def make(url, page="", **settings):
        chosen = WebhookSettings(url=url, **settings)
        return Webhook(chosen, Sender("centre-a", page), tmp_path)

    return make


def test_the_payload_is_what_the_guide_says(webhook, make_receiver, notice):
    receiver = make_receiver()
    assert webhook(receiver.url, page="https://watch.example.org/").send(notice()) is None
    (got,) = receiver.received
    assert got.path == "/hook/secret-path"
    assert got.headers["Content-Type"] == "application/json; charset=utf-8"
    assert "X-Fedcxr-Signature" not in got.headers
    assert json.loads(got.body) == {
        "schema": 1,
        "id": "0123456789abcdef",
        "status": "open",
        "time": "1970-01-12T13:46:40Z",
        "since": "1970-01-12T13:41:40Z",
        "centre": "centre-a",
        "run": "pilot",
        "rule": "site-silent",
        "site": "north",
        "severity": "warning",
        "sentence": "north has not been heard of for 5 min",
        "link": "https://watch.example.org/runs/pilot",
        "text": "Run pilot: north has not been heard of for 5 min https://watch.example.org/runs/pilot",
    }


def test_the_signature_is_the_hmac_of_the_body(webhook, make_receiver, notice, secret_file):
    receiver = make_receiver()
    assert webhook(receiver.url, secret_file=secret_file(SECRET)).send(notice()) is None
    (got,) = receiver.received
    expected = hmac.new(SECRET.encode(), got.body, hashlib.sha256).hexdigest()
    assert got.headers["X-Fedcxr-Signature"] == f"sha256={expected}"
    assert SECRET.encode() not in got.body


def test_what_a_chat_would_take_for_marks_is_text(webhook, make_receiver, notice):
    receiver = make_receiver()
    webhook(receiver.url).send(notice(sentence="<!channel> <http://evil|here> & more"))
    told = json.loads(receiver.received[0].body)
    assert told["text"] == "Run pilot: &lt;!channel&gt; &lt;http://evil|here&gt; &amp; more"
    assert told["sentence"] == "<!channel> <http://evil|here> & more"


def test_tls_is_verified(webhook, make_receiver, notice, loopback_tls):
    receiver = make_receiver(tls=loopback_tls.server)
    url = f"https://localhost:{receiver.port}/hook"
    failure = webhook(url).send(notice())
    assert failure is not None and failure.why.startswith("its certificate is not trusted")
    assert not receiver.received
    assert webhook(url, ca_file=str(loopback_tls.authority)).send(notice()) is None
    assert len(receiver.received) == 1


def test_a_certificate_of_another_host_is_refused(webhook, make_receiver, notice, loopback_tls):
    receiver = make_receiver(tls=loopback_tls.server)
    other = webhook(f"https://127.0.0.2:{receiver.port}/hook", ca_file=str(loopback_tls.authority))
    assert other.send(notice()) is not None
    assert not receiver.received


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(webhook, make_receiver, notice, status):
    elsewhere = make_receiver()
    receiver = make_receiver(answer=lambda count: status, redirect_to=elsewhere.url)
    assert webhook(receiver.url).send(notice()) == Failure(f"it answered {status}")
    assert len(receiver.received) == 1
    assert not elsewhere.received


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (401, False), (403, False), (404, False), (413, True), (429, False), (503, False)],
)
def test_only_what_will_never_be_taken_is_given_up(webhook, make_receiver, notice, status, final):
    receiver = make_receiver(answer=lambda count: status)
    assert webhook(receiver.url).send(notice()) == Failure(f"it answered {status}", final)


def test_a_receiver_that_hangs_costs_its_timeout(webhook, make_receiver, notice, monkeypatch):
    monkeypatch.setattr(channels, "TIMEOUT", 0.3)
    receiver = make_receiver(answer=lambda count: None)
    began = time.monotonic()
    assert webhook(receiver.url).send(notice()) == Failure("it did not answer in time")
    assert time.monotonic() - began < 3.0


def test_nobody_there_and_no_such_host_are_failures_that_hold_no_address(webhook, make_receiver, notice):
    receiver = make_receiver()
    url = receiver.url
    receiver.close()
    assert webhook(url).send(notice()) == Failure("nobody listens there")
    failure = webhook("https://no-such-host.invalid/T0/secret-path").send(notice())
    assert failure is not None and "secret-path" not in failure.why and not failure.final


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    webhook, make_receiver, notice, monkeypatch
):
    proxy, receiver = make_receiver(), make_receiver()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    assert webhook(receiver.url).send(notice()) is None
    assert not proxy.received


def test_nothing_logs_the_address(webhook, make_receiver, notice, caplog):
    caplog.set_level(logging.DEBUG)
    webhook(make_receiver().url).send(notice())
    assert "secret-path" not in caplog.text


def test_the_address_may_lie_in_a_file(webhook, make_receiver, notice, secret_file):
    receiver = make_receiver()
    assert webhook("", url_file=secret_file(receiver.url)).send(notice()) is None
    assert len(receiver.received) == 1
    with pytest.raises(ConfigError, match="must begin with https") as raised:
        webhook("", url_file=secret_file("http://chat.example.org/T0/secret-path"))
    assert "secret-path" not in str(raised.value)


def test_files_of_secrets_are_checked(webhook, tmp_path, secret_file):
    url = "https://chat.example.org/hook"
    with pytest.raises(ConfigError, match="cannot be read"):
        webhook(url, secret_file="absent")
    with pytest.raises(ConfigError, match="at least 16"):
        webhook(url, secret_file=secret_file("short"))
    name = secret_file(SECRET)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(ConfigError, match="other accounts can read") as raised:
        webhook(url, secret_file=name)
    assert SECRET not in str(raised.value)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="not a PEM file"):
        webhook(url, ca_file="ca.pem")
