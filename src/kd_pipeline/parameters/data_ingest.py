"""The block `data_ingest`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from kd_pipeline.parameters.base import Fraction, Params, PositiveInt


class DigitsSource(Params):
    """scikit-learn's packaged digits: 1,797 grey images of 8 by 8 pixels, no download."""

    kind: Literal["digits"]


class TorchvisionSource(Params):
    """Any classification data set of torchvision, by its class name."""

    kind: Literal["torchvision"]
    name: str
    root: str
    download: bool = False
    arguments: dict[str, Any] = Field(default_factory=dict)


class ImageFolderSource(Params):
    """`root/train/<class>/*.jpg` with `root/test/` or `root/val/`, or one tree to be split."""

    kind: Literal["image_folder"]
    root: str
    labels_file: str | None = None
    """CSV with columns `path` and `label`, checked against the folders."""


class DataIngestParams(Params):
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
