"""The model of a plan, once it is known that the plan's parts go together."""

from __future__ import annotations

from common.config import RunConfig
from common.model.build import CxrModel, build_model
from common.model.pretext import check_pretraining
from server.downlink import check_downlink
from server.personalise_stage import check_personalise
from server.strategies.strategy import check_strategy


def model_of(config: RunConfig) -> CxrModel:
    """Build the model a plan describes.

    Raises:
        ConfigError: if strategy, downlink and PET method do not go together.
        ModelError, WeightsError, TargetError: if the model cannot be built, or cannot be pretrained or
            personalised as the plan says.
    """
    check_strategy(config)
    check_downlink(config)
    model = build_model(config)
    check_pretraining(model)
    check_personalise(model)
    return model
