"""The block `student` and the blocks of the arms."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.parameters.base import Fraction, Params, PositiveFloat, PositiveInt, Seed
from kd_pipeline.parameters.training import Model, Training


class StudentParams(Params):
    """`student`: what all arms share by construction."""

    seed: Seed = 0
    num_replicates: PositiveInt = 5
    model: Model
    training: Training


class ArmParams(Params):
    """One arm's own block: what its loss is made of, and nothing else."""

    soft_loss: Literal["kl", "cross_entropy", "logit_mse", "pseudo_label"] = "kl"
    """`pseudo_label` takes the teacher's argmax for a label: the control for softness."""
    temperature: PositiveFloat = 1.0
    soft_weight: Fraction = 0.0
    """Weight of the soft term; the hard term gets the rest."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _no_temperature_is_ignored(self) -> Self:
        if self.soft_loss in ("logit_mse", "pseudo_label") and self.temperature != 1:
            raise ValueError(
                f"`temperature` must be 1 for {self.soft_loss}, which has none, "
                f"got {self.temperature}"
            )
        return self
