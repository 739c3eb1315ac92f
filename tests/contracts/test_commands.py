"""Commands exist, and every command line in the documentation and in the help parses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import typer

FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def commands(project: dict[str, Any]) -> dict[str, click.Command]:
    """Console script -> command, for every script of pyproject.toml that is there."""
    found = {}
    for name, target in project["project"]["scripts"].items():
        module, _, attribute = target.partition(":")
        if find_spec(module):
            found[name] = typer.main.get_command(getattr(import_module(module), attribute))
    return found


def test_every_console_script_is_a_command_with_help(
    commands: dict[str, click.Command], project: dict[str, Any]
) -> None:
    assert commands.keys() == project["project"]["scripts"].keys()
    for name, command in commands.items():
        assert command.help, f"{name} does not say what it does"
        for leaf in _leaves(command):
            assert leaf.help, f"{name} {leaf.name} does not say what it does"


def test_commands_in_the_documentation_parse(commands: dict[str, click.Command], repository: Path) -> None:
    pages = [*repository.glob("README.md"), *repository.glob("docs/**/*.md")]
    blocks = [(page.name, block) for page in pages for block in FENCE.findall(page.read_text("utf-8"))]
    wrong = [f"{page}: {why}" for page, block in blocks for why in _mistakes(block, commands)]
    assert not wrong, "\n".join(wrong)


def test_commands_of_the_services_and_scripts_parse(
    commands: dict[str, click.Command], repository: Path
) -> None:
    texts = {file: file.read_text("utf-8") for file in sorted((repository / "docs" / "deploy").iterdir())}
    demo = repository / "scripts" / "demo-deployment"
    texts[demo] = demo.read_text("utf-8")
    called = 0
    for file, text in texts.items():
        lines = re.findall(r"(?:ExecStart=\S*/|show |podman run .* fedcxr )(fedcxr-(?:[^\\\n]|\\\n)*)", text)
        called += len(lines)
        wrong = list(_mistakes("\n".join(line.replace("$", "") for line in lines), commands))
        assert not wrong, f"{file.name}: {wrong}"
    assert called >= 11


def test_commands_in_the_help_parse(commands: dict[str, click.Command]) -> None:
    for command in commands.values():
        for leaf in _leaves(command):
            assert not list(_mistakes(leaf.help or "", commands)), leaf.name


@pytest.mark.parametrize(
    "line", ["fedcxr-simulate fly", "fedcxr-simulate run --nonsense", "fedcxr-simulate run a b"]
)
def test_a_wrong_command_would_be_seen(commands: dict[str, click.Command], line: str) -> None:
    assert list(_mistakes(f"$ {line}", commands))


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _leaves(child)
    else:
        yield command


def _mistakes(block: str, commands: dict[str, click.Command]) -> Iterator[str]:
    """Parse every line of a block that calls one of our commands; yield what is wrong."""
    for line in block.replace("\\\n", " ").splitlines():
        text = re.sub(r"^\s*(\$ )?(\w+=\S+ )*", "", line)
        if text.partition(" ")[0] in commands:
            name, *words = shlex.split(text, comments=True)
            try:
                _parse(commands[name], words)
            except click.UsageError as error:
                yield f"`{text}`: {error.format_message()}"


def _parse(command: click.Command, words: list[str]) -> None:
    """Parse without running, opening files or asking for what is missing.

    Raises:
        click.UsageError: for a command, option or argument that does not exist.
    """
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            raise click.UsageError(f"no command {name!r}")
        command = command.commands[name]
    _, left, _ = command.make_parser(click.Context(command)).parse_args(args=words)
    if left:
        raise click.UsageError(f"unexpected {left}")
