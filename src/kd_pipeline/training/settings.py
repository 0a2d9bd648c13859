"""Settings of training: how any model is trained, the teacher, and the students."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializationInfo,
    model_serializer,
    model_validator,
)

from kd_pipeline.config import (
    AS_IN_YAML,
    BatchSize,
    Device,
    NumModels,
    Params,
    PositiveFloat,
    PositiveInt,
    Precision,
    Seed,
    as_block,
)
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.models.settings import Given, GivenLogits, Model, Pretrained
from kd_pipeline.views.settings import Transforms


class Optimiser(Params):
    """An optimiser of torch.optim, or of timm.optim as `timm:<name>`, with its own arguments."""

    name: str = "AdamW"
    arguments: dict[str, Any] = Field(default_factory=dict)


class Schedule(Params):
    """A learning-rate schedule: `constant`, `cosine`, or one of torch.optim.lr_scheduler.

    ReduceLROnPlateau counts measurements on the validation set: of the loss, or of the accuracy
    where its `mode` is max.
    """

    name: str = "cosine"
    arguments: dict[str, Any] = Field(default_factory=dict)
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which the learning rate rises linearly from near 0."""


class EarlyStopping(Params):
    """Stop when validation no longer improves, and keep its best epoch."""

    metric: Literal["validation/loss", "validation/accuracy"] = "validation/loss"
    patience: PositiveInt = 10


OF_PLACING = ("stack_replicates", "side_by_side", "placement")
"""Settings of a training that are no part of its identity; that it was stacked is."""


class Training(Params):
    """How a model is trained, whatever it learns from."""

    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    num_epochs: PositiveInt
    batch_size: BatchSize = 64
    max_gradient_norm: PositiveFloat | None = None
    max_weight_norm: PositiveFloat | None = None
    """Bound on the norm of each unit's incoming weights, also the head's (Srivastava 2014), in
    linear layers that train."""
    early_stopping: EarlyStopping | None = None
    checkpoint_every: PositiveInt = 10
    """Epochs between two states on disk from which a killed run resumes exactly."""
    evaluate_every: PositiveInt = 1
    """Epochs between two measurements on the validation set."""
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the hardware has it, float32 elsewhere."""
    stack_replicates: Literal["auto", "never"] = "auto"
    """auto: replicates of a network that is small enough train as one."""
    side_by_side: Literal["auto", "never"] = "auto"
    """auto: on CPUs, replicates that are not stacked train in as many processes as there are
    threads, if a step is small enough."""
    placement: Literal["data_parallel", "replicas"] = "data_parallel"
    """Under torchrun: all processes train each model together, on slices of its batches, or each
    process trains other replicates (or members of a teacher) alone."""

    @model_serializer(mode="wrap")
    def _identity(self, serialise: Any, info: SerializationInfo) -> dict[str, Any]:
        """What a training is, without where its models are placed, unless `AS_IN_YAML` asks."""
        values: dict[str, Any] = serialise(self)
        left_out = () if info.context == AS_IN_YAML else OF_PLACING
        return {name: value for name, value in values.items() if name not in left_out}


class TeacherParams(Params):
    """`teacher`: trained from scratch, fine-tuned from pretrained weights, or given."""

    seed: Seed = 0
    num_members: NumModels = 1
    given: tuple[Given, ...] = ()
    """Teachers used as they are, one per member; no training then."""
    model: Model | None = None
    pretrained: Pretrained | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    transforms: Transforms = ()
    """Augmentation while training, a fresh view every epoch."""
    training: Training | None = None

    @property
    def given_logits(self) -> tuple[GivenLogits, ...]:
        """The given members of which there are logits and no model."""
        return tuple(given for given in self.given if isinstance(given, GivenLogits))

    @model_validator(mode="after")
    def _given_or_trained(self) -> Self:
        if self.given:
            if len(self.given) != self.num_members:
                raise ValueError(
                    f"`num_members` must be the number of `given` teachers "
                    f"({len(self.given)}), got {self.num_members}"
                )
            if self.given_logits and len(self.given_logits) != len(self.given):
                raise ValueError("`given` must hold logits alone or models alone, got both")
        elif self.model is None or self.training is None:
            raise ValueError("give `model` and `training`, or `given`")
        return self


class Quantisation(Params):
    """Fine-tuning while int8 is simulated, after the training in float; its schedule is cosine."""

    name: Literal["int8"]
    num_epochs: PositiveInt = 5
    lr_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Of the learning rate in `training.optimiser`."""


class StudentParams(Params):
    """`student`: what all students that are compared share by construction."""

    seed: Seed = 0
    num_replicates: NumModels = 5
    model: Model
    pretrained: Pretrained | None = None
    """Where every replicate of every arm starts from, as `teacher.pretrained`."""
    training: Training
    quantisation: Annotated[Quantisation | None, BeforeValidator(as_block)] = None
    """`int8`, or {name: int8, ...}; the weights in float stay beside the fine-tuned ones."""

    @model_validator(mode="after")
    def _no_bound_is_ignored(self) -> Self:
        if self.quantisation is not None and self.training.max_weight_norm is not None:
            raise ValueError(
                "`training.max_weight_norm` must be null with `quantisation`, whose scaled weights "
                f"it would not bound, got {self.training.max_weight_norm}"
            )
        return self

    def for_arm(self, arm: "ArmParams") -> "StudentParams":
        """These settings with what a student of another size sets by itself."""
        own = {name: getattr(arm, name) for name in arm.own_settings}
        if arm.model is not None:  # Another model's weights would not fit it.
            own["pretrained"] = arm.pretrained
        return self.model_copy(update=own)

    def longer(self, extra_epochs: int) -> "StudentParams":
        """These settings with further epochs, over which the schedule extends."""
        epochs = self.training.num_epochs + extra_epochs
        training = self.training.model_copy(update={"num_epochs": epochs})
        return self.model_copy(update={"training": training})


OF_TEACHING_STUDENTS = ("model", "pretrained", "training", "num_replicates")
"""What only a student that teaches others may set in its own block."""


class ArmParams(ObjectiveParams):
    """A student's own block: what its loss is made of.

    Only a student that teaches another one (a teacher assistant, for instance) may be of another
    size than `student`, which all students that are compared with each other share.
    """

    model: Model | None = None
    pretrained: Pretrained | None = None
    training: Training | None = None
    num_replicates: NumModels | None = None
    """Of a student that teaches: its replicates are one ensemble to the students it teaches."""

    @property
    def own_settings(self) -> tuple[str, ...]:
        """Names of the settings of `student` that this block replaces."""
        return tuple(name for name in OF_TEACHING_STUDENTS if getattr(self, name) is not None)
