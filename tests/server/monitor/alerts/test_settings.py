"""What [alerts] may say, and how a mistake is named."""

from __future__ import annotations

import tomllib

import pytest

from common.errors import ConfigError
from server.monitor.alerts.settings import AlertSettings, alert_settings

LOGIN = {"user": "a", "password_file": "b"}
MAIL = {"server": "mail.example.org", "sender": "a@b.example", "recipients": ["c@d.example"]}


def test_the_defaults_name_nobody_to_tell():
    assert alert_settings({}) == AlertSettings()
    assert AlertSettings().webhook is None
    assert AlertSettings().email is None


def test_every_field_says_what_it_is():
    for kind in (
        AlertSettings,
        *(AlertSettings.model_fields[n].annotation.__args__[0] for n in ("webhook", "email")),
    ):
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"


def test_the_example_of_the_guide_is_read(repository):
    guide = (repository / "docs" / "monitor-alerts.md").read_text()
    example = guide.split("```toml\n")[1].split("```")[0]
    settings = alert_settings(tomllib.loads(example)["alerts"])
    assert settings.webhook is not None and settings.email is not None
    for name in AlertSettings.model_fields:
        assert f"`{name}`" in guide or name in ("webhook", "email"), name


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"site_silnt": 3}, r"alerts\.site_silnt"),
        ({"site_silent": -1}, r"alerts\.site_silent"),
        ({"site_silent": "300"}, r"alerts\.site_silent"),
        ({"loss_factor": float("nan")}, r"alerts\.loss_factor"),
        ({"run_ended": ["won"]}, r"alerts\.run_ended.*'won'"),
        ({"webhook": {}}, "either url or url_file"),
        ({"webhook": {"url": "https://a.example/x", "url_file": "y"}}, "either url or url_file"),
        ({"webhook": {"url": "http://chat.example.org/T/secret-path"}}, "must begin with https"),
        ({"webhook": {"url": "https://me:secret-path@chat.example.org/"}}, "leave user and password out"),
        ({"webhook": {"url": "ftp://chat.example.org/secret-path"}}, "must begin with https"),
        ({"webhook": {"url": "https://[::1/secret-path"}}, "no web address"),
        ({"webhook": {"url": "https://chat.example.org:99999/secret-path"}}, "no web address"),
        ({"webhook": {"url": "https://chat.example.org/secret-path\nHost: x"}}, "no web address"),
        ({"webhook": {"url": "http://127.0.0.1.evil.example/secret-path"}}, "must begin with https"),
        ({"email": {**MAIL, "recipients": []}}, r"alerts\.email\.recipients"),
        ({"email": {**MAIL, "recipients": ["a@b.example\nBcc: x@y.example"]}}, r"alerts\.email\.recipients"),
        ({"email": {**MAIL, "security": "none"}}, "only for a mail server on this machine"),
        ({"email": {**MAIL, "server": "localhost", "security": "none", **LOGIN}}, "without a login"),
        ({"email": {**MAIL, "user": "a"}}, "go together"),
        ({"email": {**MAIL, "password": "hidden"}}, r"alerts\.email\.password"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_key_and_secrets_are_not_quoted(table, problem):
    with pytest.raises(ConfigError, match=problem) as raised:
        alert_settings(table)
    assert "secret-path" not in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_a_misspelt_key_is_answered_with_the_right_one():
    with pytest.raises(ConfigError) as raised:
        alert_settings({"site_silnt": 3})
    assert "site_silent" in raised.value.fix
    with pytest.raises(ConfigError) as raised:
        alert_settings({"webhook": {"url": "https://a.example", "secretfile": "x"}})
    assert "secret_file" in raised.value.fix


@pytest.mark.parametrize(
    "url", ["http://localhost:8080/x", "http://127.0.0.1/x", "http://[::1]:80/x", "https://a.example/x"]
)
def test_http_is_for_this_machine(url):
    settings = alert_settings({"webhook": {"url": url}})
    assert settings.webhook is not None and settings.webhook.url == url
