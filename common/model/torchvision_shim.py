"""Let torchvision import beside a CPU-only torch; import this before timm, transformers or peft.

The registry's torchvision is built for CUDA. Beside a CPU torch its extension does not load, and
its import then fails on a missing operator schema. Declaring the two schemas it looks up is enough
for what timm, transformers and peft use of it. Where the extension loads, nothing is declared.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    folder = Path(spec.origin).parent
    extensions = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
    try:
        for extension in extensions:
            ctypes.CDLL(str(extension))
    except OSError:
        return False
    return bool(extensions)


def declare_missing_operators() -> None:
    """Declare torchvision's ``nms`` and ``qnms`` if, and only if, its own extension cannot load."""
    global _library
    if _library is not None or _extension_loads():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)


declare_missing_operators()
