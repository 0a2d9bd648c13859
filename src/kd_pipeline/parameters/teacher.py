"""The block `teacher`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from kd_pipeline.parameters.base import Params, PositiveInt, Seed
from kd_pipeline.parameters.given import Given
from kd_pipeline.parameters.training import Model, Training
from kd_pipeline.parameters.views import Transform


class Pretrained(Params):
    """Weights to start from: a torchvision enum name or a local file; exactly one."""

    weights: str | None = None
    file: str | None = None
    trainable_layers: PositiveInt | None = None
    """Fine-tune only this many of the last layers that have weights; null tunes all."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.weights is None) == (self.file is None):
            raise ValueError("give exactly one of `weights` and `file`")
        return self


class TeacherParams(Params):
    """`teacher`: trained from scratch, fine-tuned from pretrained weights, or given."""

    seed: Seed = 0
    num_members: Annotated[int, Field(ge=1, le=32767)] = 1
    given: tuple[Given, ...] = ()
    """Teachers used as they are, one per member; no training then."""
    model: Model | None = None
    pretrained: Pretrained | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    transforms: tuple[Transform, ...] = ()
    """Augmentation while training, a fresh view every epoch."""
    training: Training | None = None

    @model_validator(mode="after")
    def _given_or_trained(self) -> Self:
        if self.given:
            if len(self.given) != self.num_members:
                raise ValueError(
                    f"`num_members` must be the number of `given` teachers "
                    f"({len(self.given)}), got {self.num_members}"
                )
        elif self.model is None or self.training is None:
            raise ValueError("give `model` and `training`, or `given`")
        return self
