"""Make the embedded backbone: ``python -m simulations.pretrain FILE``.

First masked-image, then image-report pretraining, on phantoms whose seeds no experiment uses. No
label is used; the reports are the generator's own.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm)
import timm

from common.files import write_atomic
from common.model.base import embedded_architecture
from simulations.pretrain.masked import pretrain_masked
from simulations.pretrain.radiographs import SIZE, draw_radiographs
from simulations.pretrain.reports import pretrain_reports

logger = logging.getLogger(__name__)


def build(seed: int) -> nn.Module:
    """Build the embedded architecture with random weights."""
    torch.manual_seed(seed)
    arguments = embedded_architecture()
    return timm.create_model(arguments.pop("model_name"), img_size=SIZE, num_classes=0, **arguments)


def main() -> None:
    """Draw, pretrain, write half-precision safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--start", type=Path, help="go on from these weights")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--masked-steps", type=int, default=2_500)
    parser.add_argument("--report-steps", type=int, default=1_400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data = draw_radiographs(options.images)
    logger.info("%d radiographs drawn", len(data.pixels))
    net = build(options.seed)
    if options.start:
        net.load_state_dict({n: t.float() for n, t in load_file(options.start).items()})
    pretrain_masked(net, data, options.masked_steps, options.batch, options.seed)
    pretrain_reports(net, data, options.report_steps, options.batch, options.seed)
    write_atomic(options.file, save({n: t.half().contiguous() for n, t in net.state_dict().items()}))


if __name__ == "__main__":
    main()
