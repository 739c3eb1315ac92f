"""[monitor] of a centre.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.centre.folder import CentreFolder
from server.monitor.settings import MonitorSettings, read_settings, split_listen

CENTRE = 'name = "c"\naddress = "h:1"\nlisten = "h:1"\nadmin = "h:2"\n'


def test_without_a_file_everything_is_as_usual() -> None:
    assert read_settings(None) == (MonitorSettings(), {})


def test_a_centre_toml_is_read_by_centre_and_monitor_alike(tmp_path: Path) -> None:
    file = tmp_path / "centre.toml"
    file.write_text(
        CENTRE + '[monitor]\nlisten = "[::1]:9480"\nlate = 5.0\nsilent = 9.5\nnames = ["page.example.org"]\n'
        "[alerts]\nsite_silent = 30.0\n"
    )
    settings, alerts = read_settings(file)
    assert (settings.listen, settings.late, settings.silent) == ("[::1]:9480", 5.0, 9.5)
    assert settings.names == ("page.example.org",) and alerts == {"site_silent": 30.0}
    assert CentreFolder(tmp_path).config().monitor["late"] == 5.0


def test_a_mistake_stops_the_monitor_and_not_the_centre(tmp_path: Path) -> None:
    (tmp_path / "centre.toml").write_text(CENTRE + '[monitor]\nlisten = "nowhere"\n')
    assert CentreFolder(tmp_path).config().name == "c"
    with pytest.raises(ConfigError, match=r"monitor\.listen"):
        read_settings(tmp_path / "centre.toml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lsten = '127.0.0.1:1'", "did you mean 'listen'"),
        ("late = 0.0", "monitor.late"),
        ("login = 1", "monitor.login"),
        ("late = 100.0", "shorter than monitor.late"),
        ("health = '1.2.3.4'", "monitor.health"),
        ("listen = '127.0.0.1:70000'", "monitor.listen"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(f"[monitor]\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        read_settings(file)
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "::1:80", "h:-1", "h:1:2"])
def test_an_address_is_host_and_port(text: str) -> None:
    with pytest.raises(ConfigError):
        split_listen(text)


def test_a_table_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("monitor = 3\n")
    with pytest.raises(ConfigError, match="not a table"):
        read_settings(tmp_path / "m.toml")
