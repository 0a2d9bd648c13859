"""The blocks inside others: a model and how it is trained."""

from typing import Annotated, Any, Literal

from pydantic import Field

from kd_pipeline.parameters.base import Device, Params, PositiveFloat, PositiveInt, Precision


class Model(Params):
    """An architecture by name, with its own arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    input_size: PositiveInt | None = None
    """Side of the square, in pixels, that views are resized to; null keeps the images' own size."""


class Optimiser(Params):
    """An optimiser of torch.optim by name, with its own arguments."""

    name: str = "AdamW"
    arguments: dict[str, Any] = Field(default_factory=dict)


class Schedule(Params):
    """A learning-rate schedule: `constant`, `cosine`, or one of torch.optim.lr_scheduler."""

    name: str = "cosine"
    arguments: dict[str, Any] = Field(default_factory=dict)
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which the learning rate rises linearly from near 0."""


class EarlyStopping(Params):
    """Stop when validation no longer improves, and keep its best epoch."""

    metric: Literal["validation/loss", "validation/accuracy"] = "validation/loss"
    patience: PositiveInt = 10


class Training(Params):
    """How a model is trained, whatever it learns from."""

    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    num_epochs: PositiveInt
    batch_size: PositiveInt = 64
    max_gradient_norm: PositiveFloat | None = None
    max_weight_norm: PositiveFloat | None = None
    """Bound on the norm of each unit's incoming weights, also the head's (Srivastava 2014)."""
    early_stopping: EarlyStopping | None = None
    checkpoint_every: PositiveInt = 10
    """Epochs between two states on disk from which a killed run resumes exactly."""
    evaluate_every: PositiveInt = 1
    """Epochs between two looks at the validation set."""
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the hardware has it, float32 elsewhere."""
    memory_budget_mb: PositiveInt = 4096
    """More MiB than this are read from disk, batch by batch. The bound is for each of training
    pixels, validation pixels, soft targets, and the pixels of mixing partners by itself."""
