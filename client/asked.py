"""What a site is asked, with everything here that it is about: plan, studies, model, files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.dataset import SiteData
from client.feedback import Owed, feedback_folder
from client.local import baseline_file
from client.personalise import personal_file
from client.prefix_cache import StudyInputs
from client.site import SiteConfig
from common.adapter import AdapterState
from common.config import RunConfig
from common.errors import SchemaError
from common.model.build import CxrModel
from common.phase import phase_of
from common.protocol import Instruction


def run_folder(site: SiteConfig, instruction: Instruction) -> Path:
    """Where a site keeps what it needs of a run from one round to the next."""
    return feedback_folder(site.data.state, instruction.plan_digest, instruction.lineage)


Slopes = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """One instruction at one site."""

    instruction: Instruction
    config: RunConfig
    site: SiteConfig
    data: SiteData
    model: CxrModel
    study_inputs: Callable[[], StudyInputs]
    """Makes what the model reads of the studies, or has it already."""

    @property
    def inputs(self) -> StudyInputs:
        """What the model reads of the studies."""
        return self.study_inputs()

    @property
    def plan(self) -> str:
        """Digest of the plan."""
        return self.instruction.plan_digest

    @property
    def min_cell(self) -> int:
        """Fewest studies with and without a finding behind a figure."""
        return self.site.evaluate.min_cell

    @property
    def local_file(self) -> Path:
        """Where the model this site trains alone lies."""
        return baseline_file(self.site.data.state, self.plan)

    @property
    def personal_file(self) -> Path:
        """Where what this site makes of the released adapter lies."""
        return personal_file(self.site.data.state, self.plan)

    def pretext_folder(self, alone: bool = False) -> Path:
        """Where the thrown-away part of a pretext task lies between rounds."""
        return self.site.data.state / f"pretext{'-alone' if alone else ''}-{self.plan[:16]}"

    def owed(self) -> Owed:
        """Where lies what earlier rounds of this run have not sent yet."""
        round_number = self.instruction.round
        return Owed(
            run_folder(self.site, self.instruction), round_number, phase_of(self.config, round_number).kind
        )

    def received(self) -> AdapterState:
        """Return the adapter of the instruction.

        Raises:
            SchemaError: if it carries none, or not one of this model.
        """
        instruction = self.instruction
        if instruction.adapter is None:
            raise SchemaError("the instruction carries no adapter")
        return AdapterState.join(self.model.schema.unpack(instruction.adapter), instruction.residual)

    def scaling(self) -> tuple[Slopes, Slopes]:
        """Return slopes and biases ``[F]`` of the instruction.

        Raises:
            SchemaError: if they are not there, or not finite, or to be measured by and no ranking's.
        """
        scaling, findings = self.instruction.scaling, len(self.model.findings)
        if scaling is None or scaling.shape != (2 * findings,) or scaling.dtype != np.float64:
            raise SchemaError("the instruction does not carry a slope and a bias for each finding")
        measuring = self.instruction.stage == "evaluate"
        if np.isinf(scaling).any() or (measuring and not (scaling[:findings] > 0).all()):
            raise SchemaError("the instruction carries slopes that keep no ranking")
        return scaling[:findings], scaling[findings:]
