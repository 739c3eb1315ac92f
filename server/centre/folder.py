"""A centre's folder: where its settings, keys, registry and runs lie."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from common.errors import ConfigError
from common.overrides import read_toml
from common.sections import Section

CENTRE = "FEDCXR_CENTRE"
"""Environment variable: the centre's folder, where ``--centre`` is not given."""

_ADDRESS = r"^[^\s/:]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$"
RUN_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,47}$")


class CentreConfig(Section):
    """``centre.toml``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """The centre's name in messages and logs."""
    address: Annotated[str, Field(pattern=_ADDRESS)]
    """HOST:PORT that sites dial; HOST must stand in the server certificate."""
    listen: Annotated[str, Field(pattern=_ADDRESS)]
    """HOST:PORT the gateway binds, for example 0.0.0.0:9443."""
    admin: Annotated[str, Field(pattern=_ADDRESS)]
    """HOST:PORT for the centre's own commands and processes; loopback."""
    max_body: Annotated[int, Field(ge=1_000_000, le=1_000_000_000)] = 16_000_000
    """Bytes of the largest request a site may send."""
    min_free_disk: Annotated[int, Field(ge=0)] = 500_000_000
    """Bytes that must be free on the centre's disk, else sites are asked to wait."""
    monitor: dict[str, Any] = Field(default_factory=dict)
    """What the monitor is told; it checks its settings itself, so that a mistake there stops nobody else."""
    alerts: dict[str, Any] = Field(default_factory=dict)
    """Which alerts the monitor sends, and where to."""


@dataclass(frozen=True)
class CentreFolder:
    """Every path of a centre."""

    root: Path

    @classmethod
    def find(cls, given: Path | None) -> CentreFolder:
        """Return the folder given, or that of FEDCXR_CENTRE, or the working folder.

        Raises:
            ConfigError: if no ``centre.toml`` is there.
        """
        root = given or Path(os.environ.get(CENTRE) or ".")
        if not (root / "centre.toml").is_file():
            raise ConfigError(
                f"{root} holds no centre.toml", fix="name the folder with --centre, or: fedcxr-server init"
            )
        return cls(root.resolve())

    def config(self) -> CentreConfig:
        """Read ``centre.toml``.

        Raises:
            ConfigError: if a key is unknown, missing or out of range.
        """
        tree = read_toml(self.root / "centre.toml")
        try:
            return CentreConfig(**tree)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"centre.toml: {key}: {first['msg']}", found=repr(first["input"])[:80]
            ) from None

    def key(self, name: str) -> Path:
        """Return a file under ``keys/``: ca.*, server.*, centre.key, admin.token, superexec.secret."""
        return self.root / "keys" / name

    @property
    def registry(self) -> Path:
        """SQLite: invited, admitted and revoked sites."""
        return self.root / "registry.sqlite"

    @property
    def database(self) -> Path:
        """SuperLink's own database."""
        return self.root / "superlink.sqlite"

    @property
    def bundle(self) -> Path:
        """The Flower App Bundle this centre runs and offers."""
        return self.root / "app.fab"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of the centre's Flower processes."""
        return self.root / "flower"

    @property
    def logs(self) -> Path:
        """Logs of the centre's processes."""
        return self.root / "logs"

    @property
    def runs(self) -> Path:
        """One folder per run, by name."""
        return self.root / "runs"

    def run(self, name: str) -> Path:
        """Return a run's folder.

        Raises:
            ConfigError: if the name is not one a folder can have.
        """
        if not RUN_NAME.match(name):
            raise ConfigError("a run's name is small letters, digits, - and _", found=repr(name)[:60])
        return self.runs / name
