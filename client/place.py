"""A site's folder: where its settings, keys, approvals and records lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError


@dataclass(frozen=True)
class SiteFolder:
    """Every path of a deployed site, from the folder that holds ``site.toml``."""

    root: Path

    @classmethod
    def of(cls, place: Path) -> SiteFolder:
        """Return the folder of a ``site.toml``, or of the folder that holds it.

        Raises:
            ConfigError: if there is no such file or folder.
        """
        folder = place if place.is_dir() else place.parent
        if not (place.is_dir() or place.is_file()):
            raise ConfigError(f"there is no site at {place}", fix="name the folder that holds site.toml")
        return cls(folder.resolve())

    @property
    def settings(self) -> Path:
        """``site.toml``: data, device, name."""
        return self.root / "site.toml"

    @property
    def policy(self) -> Path:
        """``policy.toml``: what this site allows."""
        return self.root / "policy.toml"

    @property
    def node_key(self) -> Path:
        """EC P-384 private key Flower's node authentication uses (OpenSSH format, mode 600)."""
        return self.root / "keys" / "node.key"

    @property
    def signing_key(self) -> Path:
        """Ed25519 private key that signs requests, approvals and the head of the audit."""
        return self.root / "keys" / "site.key"

    @property
    def invitation(self) -> Path:
        """The centre's invitation, kept until the welcome is here."""
        return self.root / "centre" / "invitation.json"

    @property
    def welcome(self) -> Path:
        """What the centre answered to this site's request: a signed file."""
        return self.root / "centre" / "welcome.json"

    @property
    def centre_certificate(self) -> Path:
        """The centre's CA certificate, PEM."""
        return self.root / "centre" / "ca.crt"

    @property
    def bundle(self) -> Path:
        """The Flower App Bundle the centre offers, to be approved."""
        return self.root / "centre" / "app.fab"

    @property
    def approvals(self) -> Path:
        """Signed approvals, one file each."""
        return self.root / "approvals"

    @property
    def audit(self) -> Path:
        """The hash-chained record of what was asked and what left."""
        return self.root / "node" / "audit.jsonl"

    @property
    def outbox(self) -> Path:
        """Instructions taken and answers not yet acknowledged."""
        return self.root / "node" / "outbox"

    @property
    def seen(self) -> Path:
        """Numbers of the instructions already taken."""
        return self.root / "node" / "seen.json"

    @property
    def worker_socket(self) -> Path:
        """Where the worker process listens."""
        return self.root / "node" / "worker.sock"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of this site's Flower processes."""
        return self.root / "node" / "flower"

    @property
    def logs(self) -> Path:
        """Logs of this site's processes; they stay here."""
        return self.root / "node" / "logs"
