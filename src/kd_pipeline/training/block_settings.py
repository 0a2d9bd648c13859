"""Settings of training: how a model is trained, the teacher, the students and their arms."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.config import Device, Fraction, Params, PositiveFloat, PositiveInt, Precision, Seed
from kd_pipeline.models.settings import Given, Model, Pretrained
from kd_pipeline.views.settings import Transform


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


LABELS_ALONE = "chain_labels_alone"
"""The last hop's twin that has no teacher."""
DIRECT = "chain_direct"
"""The last hop's twin that learns from the first teacher, without the hops between."""
FIRST_TEACHER = "teacher"
_TAKEN = (
    *(FIRST_TEACHER, "student", "comparison"),
    *("images", "examples", "splits", "params", "chain", "reading", "soft_targets"),
)
"""Blocks, roles, a folder, and what the node that measures all hops calls its other inputs."""
_TAKEN_BEGINNINGS = ("student_", "chain_")


class ChainHop(ArmParams):
    """One hop: a model that learns from the hop before it, and what its loss is made of."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Names the namespace, the folders and the runs in MLflow."""
    model: Model
    training: Training | None = None
    """Null is `student.training`."""
    soft_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    num_members: Annotated[int, Field(ge=1, le=32767)] = 1
    """More than one, each with a seed of its own, teach the next hop as an ensemble."""

    @model_validator(mode="after")
    def _own_name(self) -> Self:
        if self.name in _TAKEN or self.name.startswith(_TAKEN_BEGINNINGS):
            taken = ", ".join([*_TAKEN, *(f"{beginning}..." for beginning in _TAKEN_BEGINNINGS)])
            raise ValueError(f"`name` must be none of {taken}, got {self.name!r}")
        return self


class ChainParams(Params):
    """`chain`: who learns from whom, from the teacher on."""

    seed: Seed = 0
    num_replicates: PositiveInt = 3
    """Students of the last hop, and of each of its twins."""
    hops: Annotated[tuple[ChainHop, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _a_chain(self) -> Self:
        names = [hop.name for hop in self.hops]
        if len(set(names)) < len(names):
            raise ValueError(f"`hops` must have names of their own, got {names}")
        if (last := self.hops[-1]).num_members != 1:
            raise ValueError(
                f"`num_members` of the last hop, {last.name}, must be 1: nobody learns from it "
                f"(`num_replicates` repeats it), got {last.num_members}"
            )
        return self

    @property
    def twins(self) -> dict[str, Literal["labels", "teacher"]]:
        """What else the last hop's architecture learns from, to see what the hops are worth."""
        return twins_of(len(self.hops))

    @property
    def learnt_from(self) -> dict[str, str]:
        """The role that each role is compared with: its teacher, or the first where it has none."""
        names = [hop.name for hop in self.hops]
        before = dict(zip(names, [FIRST_TEACHER, *names], strict=False))
        return before | dict.fromkeys(self.twins, FIRST_TEACHER)

    def hop(self, role: str) -> ChainHop:
        """The hop of that name; a twin's is the last."""
        return next((hop for hop in self.hops if hop.name == role), self.hops[-1])


def twins_of(num_hops: int) -> dict[str, Literal["labels", "teacher"]]:
    """The twins of the last of so many hops, and what each learns from.

    A single hop learns from the first teacher as it is.
    """
    direct: dict[str, Literal["labels", "teacher"]] = {DIRECT: "teacher"} if num_hops > 1 else {}
    return {LABELS_ALONE: "labels", **direct}
