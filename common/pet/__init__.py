"""Parameter-efficient tuning: one file per method, one registry line each."""

import common.model.torchvision_shim  # noqa: F401  (before any module here imports peft)
