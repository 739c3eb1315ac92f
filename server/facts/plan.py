"""What a run does, and what it is made of."""

from __future__ import annotations

from pathlib import PurePath

from common.config import RunConfig
from common.errors import ConfigError
from common.overrides import read_toml
from server.facts.records import PlanFacts
from server.facts.view import LedgerView

_DIGESTS = ("plan", "base", "code")


def plan_facts(view: LedgerView) -> PlanFacts | None:
    """Return a run's settings, digests and versions; before it has begun, from its ``plan.toml``."""
    with view.still():
        settings, versions = view.get("config"), view.get("versions") or {}
        digests = {name: view.get(f"{name}_digest") for name in _DIGESTS}
        released = view.get("released") or {}
        trained, base = view.get("trained_parameters"), view.get("base_parameters")
    if settings is None:
        try:
            plan = read_toml(view.path.with_name("plan.toml"))
        except ConfigError:
            return None
        settings = plan.get("config", {})
        digests, versions = dict(plan.get("digests", {})), plan.get("versions", {})
    digests["adapter"] = released.get("sha256")
    usual = RunConfig().to_flat()
    return PlanFacts(
        digests={name: str(digest) for name, digest in digests.items() if digest},
        versions=dict(versions),
        settings={key: _shown(key, value) for key, value in settings.items()},
        changed=tuple(key for key, value in settings.items() if usual.get(key) != value),
        trained_parameters=trained,
        base_parameters=base,
    )


def _shown(key: str, value: str | int | float | bool) -> str | int | float | bool:
    """Leave out where on this machine a file of weights lies."""
    return PurePath(value).name if key == "model.weights" and isinstance(value, str) else value
