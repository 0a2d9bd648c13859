"""The blocks `data_ingest` and `transfer_split`."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kd_pipeline.config import Fraction, OpenFraction, Params, PositiveInt, Seed

MAX_IMAGE_SIZE = 4096


class DigitsSource(Params):
    """scikit-learn's packaged digits: 1,797 grey images of 8 by 8 pixels, no download."""

    kind: Literal["digits"]


class TorchvisionSource(Params):
    """A classification data set of torchvision, by its class name."""

    kind: Literal["torchvision"]
    name: str
    root: str
    download: bool = False
    arguments: dict[str, Any] = Field(default_factory=dict)


class LabelsFile(Params):
    """A table with columns `path`, `label` and, if it has the splits too, `split`."""

    file: str
    """`.parquet`, or a text file of one line per image."""
    folder: str = ""
    """What its paths are relative to: a folder below the source's root, or the root itself."""
    columns: tuple[str, ...] | None = None
    """Names of the first columns of a text file without a header."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","


def _named_alone(given: Any) -> Any:
    return {"file": given} if isinstance(given, str) else given


class ImageFolderSource(Params):
    """`root/train/<class>/*.jpg` with `root/test/` or `root/val/`, or one tree to be split."""

    kind: Literal["image_folder"]
    root: str
    test_set: Literal["test", "val"] | None = None
    """null: `test` where there is one, else `val`."""
    labels_file: Annotated[LabelsFile | None, BeforeValidator(_named_alone)] = None
    """The source of the labels of every tree in which it names an image."""


def _one_or_more(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


def _below_the_root(pattern: str) -> str:
    if not pattern or pattern.startswith(("/", "\\")) or ".." in pattern.split("/"):
        raise ValueError(f"must be a pattern of paths below `root`, got {pattern!r}")
    return pattern


Patterns = Annotated[
    tuple[Annotated[str, AfterValidator(_below_the_root)], ...], BeforeValidator(_one_or_more)
]


class ShardedSource(Params):
    """Files that each hold many images: `train` with `test`, or `train` alone to be split."""

    root: str
    train: Annotated[Patterns, Field(min_length=1)]
    """Patterns relative to `root`: `*` within a name, `**/` for folders of any depth."""
    test: Patterns = ()
    class_names: tuple[str, ...] | str | None = None
    """Position = class number; a list, or a text file of one name a line."""


class WebDatasetSource(ShardedSource):
    """Tar files in which a key's members lie together: `<key>.jpg` with `<key>.cls`."""

    kind: Literal["webdataset"]
    label_field: str | None = None
    """The label's name in `<key>.json`; null: `<key>.cls` holds nothing but the label."""


class ParquetSource(ShardedSource):
    """Parquet files of encoded images, as Hugging Face exports data sets."""

    kind: Literal["parquet"]
    image_column: str = "image"
    label_column: str = "label"


def _of_a_classifier(image_size: int) -> int:
    if image_size > MAX_IMAGE_SIZE:
        raise ValueError(
            f"`image_size` must be at most {MAX_IMAGE_SIZE} (an image of 48 MiB; classifiers take "
            f"a few hundred pixels), got {image_size}"
        )
    return image_size


class DataIngestParams(Params):
    """`data_ingest`: where the images come from, and which are used."""

    source: Annotated[
        DigitsSource | TorchvisionSource | ImageFolderSource | WebDatasetSource | ParquetSource,
        Field(discriminator="kind"),
    ]
    image_size: Annotated[PositiveInt, AfterValidator(_of_a_classifier)] | None = None
    """Side in pixels; null keeps the images' own size, which must then be the same for all."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    max_rejected_share: Fraction = 0.01
    max_pixels_per_image: PositiveInt = 178_956_970
    """An image with more pixels is rejected unread (Pillow's own bound is the default)."""


class TeacherShare(Params):
    """Which labelled examples train the teacher: a number per class or a share of the pool."""

    labels_per_class: PositiveInt | Literal["all"] | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.labels_per_class is None) == (self.fraction is None):
            raise ValueError(
                "choose how many labels the teacher may use: exactly one of `labels_per_class` "
                "(all or a number) and `fraction`, as in "
                "--params=transfer_split.teacher.labels_per_class=all"
            )
        return self


class TransferShare(Params):
    """Which examples the student learns from."""

    relation: Literal["equal", "overlapping", "disjoint"] = "overlapping"
    """equal: the teacher's examples; overlapping: drawn from the whole pool; disjoint: from the
    pool without the teacher's examples."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    labelled: bool = False
    """Whether students may use labels of the transfer set beyond those that the teacher trains
    on, which are always open to them: the baseline gets every label that the teacher had."""
    excluded_classes: tuple[str, ...] = ()


class TransferSplitParams(Params):
    """`transfer_split`: which examples have which role, by seed and example id."""

    seed: Seed = 0
    test_fraction: OpenFraction = 0.2
    """Share of the images taken as the test set where the source brings none."""
    validation_fraction: OpenFraction = 0.1
    """Share of the remaining images."""
    teacher: TeacherShare
    transfer: TransferShare = TransferShare()
