"""The typed parameters: one frozen pydantic model per block of `conf/*/parameters_*.yml`.

Kedro validates every `params:` argument annotated with one of these before any node runs. Below
the nodes only plain keyword arguments travel.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


# --- data_ingest -----------------------------------------------------------------------------


class DigitsSource(_Params):
    """scikit-learn's packaged digits: 1,797 grey images of 8 by 8 pixels, no download."""

    kind: Literal["digits"]


class TorchvisionSource(_Params):
    """Any classification data set of torchvision, by its class name."""

    kind: Literal["torchvision"]
    name: str
    root: str
    download: bool = False
    arguments: dict[str, Any] = Field(default_factory=dict)


class ImageFolderSource(_Params):
    """`root/train/<class>/*.jpg` with `root/test/` or `root/val/`, or one tree to be split."""

    kind: Literal["image_folder"]
    root: str
    labels_file: str | None = None
    """CSV with columns `path` and `label`, checked against the folders."""


class DataIngestParams(_Params):
    """`data_ingest`: where the images come from and what is done with bad ones."""

    source: Annotated[
        DigitsSource | TorchvisionSource | ImageFolderSource, Field(discriminator="kind")
    ]
    image_size: PositiveInt | None = None
    """Side in pixels; null keeps the images' own size, which must then be the same for all."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    max_rejected_share: Fraction = 0.01
    max_pixels_per_image: PositiveInt = 178_956_970
    """An image with more pixels is rejected unread (Pillow's own bound is the default)."""
    memory_budget_mb: PositiveInt = 4096
    """More uint8 pixels than this are decoded into a memory-mapped file."""


# --- transfer_split --------------------------------------------------------------------------


class TeacherShare(_Params):
    """Which labelled examples train the teacher: a number per class or a share of the pool."""

    labels_per_class: PositiveInt | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.labels_per_class is None) == (self.fraction is None):
            raise ValueError("give exactly one of `labels_per_class` and `fraction`")
        return self


class TransferShare(_Params):
    """Which examples the student learns from."""

    relation: Literal["equal", "overlapping", "disjoint"] = "overlapping"
    """equal: the teacher's examples; overlapping: drawn from the whole pool; disjoint: from the
    pool without the teacher's examples."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    labelled: bool = False
    """Whether the students may use the labels of transfer examples that the teacher did not
    train on. The teacher's own labels are always open to them: the baseline gets every label
    that the teacher had."""
    excluded_classes: tuple[str, ...] = ()


class TransferSplitParams(_Params):
    """`transfer_split`: who sees which example, by seed and example id."""

    seed: Seed = 0
    test_fraction: OpenFraction = 0.2
    """Share of the images taken as the test set where the source brings none."""
    validation_fraction: OpenFraction = 0.1
    """Share of the remaining images."""
    teacher: TeacherShare
    transfer: TransferShare = TransferShare()


# --- views -----------------------------------------------------------------------------------


class Shift(_Params):
    """Shift by whole pixels, padded: crop with padding is this."""

    name: Literal["shift"]
    max_pixels: PositiveInt
    padding: Literal["zeros", "reflect"] = "zeros"


class HorizontalFlip(_Params):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    probability: Fraction = 0.5


class Affine(_Params):
    """Rotate, scale and shift by parts of pixels, bilinear, zeros outside."""

    name: Literal["affine"]
    max_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    max_shift_pixels: Annotated[float, Field(ge=0.0)] = 0.0
    max_scale: Annotated[float, Field(ge=1.0)] = 1.0
    """Drawn log-uniformly between 1 / max_scale and max_scale."""


Transform = Annotated[Shift | HorizontalFlip | Affine, Field(discriminator="name")]


class ViewsParams(_Params):
    """`views`: what the teacher labels and every student arm sees, named once for all."""

    seed: Seed = 0
    num_views: Annotated[int, Field(ge=1, le=32767)] = 1
    transforms: tuple[Transform, ...] = ()
    """Applied in this order; none is the clean image."""

    def policy_arguments(self) -> dict[str, Any]:
        """What `ViewPolicy` takes: one way for all who draw, cache or check these views."""
        transforms = self.model_dump(mode="json")["transforms"]
        return {"seed": self.seed, "transforms": tuple(transforms)}

    @model_validator(mode="after")
    def _clean_views_are_all_alike(self) -> Self:
        if self.num_views > 1 and not self.transforms:
            raise ValueError(
                f"`num_views` must be 1 where `transforms` is empty, got {self.num_views}"
            )
        return self


# --- training --------------------------------------------------------------------------------


class Model(_Params):
    """An architecture by name, with its own arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Optimiser(_Params):
    """An optimiser of torch.optim by name, with its own arguments."""

    name: str = "AdamW"
    arguments: dict[str, Any] = Field(default_factory=dict)


class Schedule(_Params):
    """A learning-rate schedule: `constant`, `cosine`, or one of torch.optim.lr_scheduler."""

    name: str = "cosine"
    arguments: dict[str, Any] = Field(default_factory=dict)
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which the learning rate rises linearly from near 0."""


class EarlyStopping(_Params):
    """Stop when validation no longer improves, and keep its best epoch."""

    metric: Literal["validation/loss", "validation/accuracy"] = "validation/loss"
    patience: PositiveInt = 10


class Training(_Params):
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


class Pretrained(_Params):
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


class TeacherParams(_Params):
    """`teacher`: trained from scratch, fine-tuned from pretrained weights, or given."""

    seed: Seed = 0
    num_members: Annotated[int, Field(ge=1, le=32767)] = 1
    checkpoints: tuple[str, ...] = ()
    """Folders of given checkpoints, one per member, used as they are; no training then."""
    model: Model | None = None
    pretrained: Pretrained | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    transforms: tuple[Transform, ...] = ()
    """Augmentation while training, a fresh view every epoch."""
    training: Training | None = None

    @model_validator(mode="after")
    def _given_or_trained(self) -> Self:
        if self.checkpoints:
            if len(self.checkpoints) != self.num_members:
                raise ValueError(
                    f"`num_members` must be the number of `checkpoints` "
                    f"({len(self.checkpoints)}), got {self.num_members}"
                )
        elif self.model is None or self.training is None:
            raise ValueError("give `model` and `training`, or `checkpoints`")
        return self


class SoftTargetCachingParams(_Params):
    """`soft_target_caching`: how the teacher labels the transfer set."""

    batch_size: PositiveInt = 512
    device: Device = "auto"
    precision: Precision = "float32"


class StudentParams(_Params):
    """`student`: what all arms share by construction."""

    seed: Seed = 0
    num_replicates: PositiveInt = 5
    model: Model
    training: Training


class ArmParams(_Params):
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


# --- evaluation ------------------------------------------------------------------------------


class EvaluationParams(_Params):
    """`evaluation`: how the test set is read and the comparison drawn."""

    seed: Seed = 0
    batch_size: PositiveInt = 1024
    device: Device = "auto"
    precision: Precision = "float32"
    num_bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    confidence_level: OpenFraction = 0.95
    num_calibration_bins: PositiveInt = 15
