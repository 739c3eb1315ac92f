"""Which plans can be trained in one pass."""

from __future__ import annotations

from common.config import RunConfig
from common.errors import ConfigError


def check_stack(config: RunConfig) -> None:
    """Refuse a plan whose sites cannot be trained in one pass.

    Raises:
        ConfigError: naming the key.
    """
    cannot = {
        "pet.method = 'full'": config.pet.method == "full",
        f"lora.dropout = {config.lora.dropout}": config.lora.dropout > 0,
        f"model.drop_path = {config.model.drop_path}": config.model.drop_path > 0,
        "data.text = true": config.data.text,
        "train.select = 'best-validation'": config.train.select == "best-validation",
    }
    if key := next((key for key, there in cannot.items() if there), ""):
        raise ConfigError(
            "stack: sites of this plan cannot be trained in one pass",
            found=key,
            fix="set stack = 0, which trains them one by one, or leave that key at its default",
        )
