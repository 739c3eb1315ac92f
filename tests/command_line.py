"""Some of our commands, run as a person runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.testing import CliRunner


class CommandLine:
    """An app of these commands, by their names."""

    def __init__(self, **commands: Callable[..., Any]) -> None:
        self.app = typer.Typer(pretty_exceptions_enable=False)
        for name, run in commands.items():
            self.app.command(name)(run)

    def command(self, *words: object) -> str:
        """Run a command that must work, and return what it printed."""
        result = CliRunner().invoke(self.app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    def refusal(self, *words: object) -> tuple[int, str]:
        """Run a command that must not, and return its exit code and what it printed."""
        result = CliRunner().invoke(self.app, [str(word) for word in words])
        assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)
        return result.exit_code, result.output
