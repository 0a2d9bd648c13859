"""What a target of the export is: how its files are made, and how they are run here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.classifier import Classifier

Precision = Literal["float32", "int8"]

Runner: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Maps uint8 pixels [batch, channels, height, width] to float32 logits [batch, num_classes]."""


@dataclass(frozen=True)
class ExportJob:
    """What a target's files are made from."""

    checkpoint: ModelCheckpoint
    input_shape: tuple[int, int, int]
    """Channels, height and width of the uint8 pixels that a file takes: the images' own."""
    calibration: Tensor
    """uint8 [num_rows, *input_shape], images of the transfer set for the ranges of activations."""
    folder: Path
    """An existing folder that the files go to."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Class names, shapes and provenance, for files that can hold them."""

    def build(self) -> Classifier:
        """The classifier, in eval mode, and in a layout that exporters take without strides."""
        classifier = build_classifier(self.checkpoint)
        classifier.layout = torch.contiguous_format
        classifier.network.to(memory_format=torch.contiguous_format)
        return classifier


@dataclass(frozen=True)
class ExportedFile:
    """One file that runs on a device."""

    target: str
    precision: Precision
    path: Path
    sizes: Mapping[str, int]
    """`size_bytes` of what ships, and where a target knows them `flash_bytes` and `ram_bytes`."""


@dataclass(frozen=True)
class Target:
    """A format of files: one record per format, in `kd_pipeline.export.targets`."""

    files: Mapping[Precision, str]
    """Name of the file for each precision that the format has."""
    export: Callable[[ExportJob], list[ExportedFile]]
    """Write the files of all precisions into the job's folder.

    Raises `ExportError`, which names the operator, where the format cannot hold the model.
    """
    open: Callable[[Path, int], Runner]
    """Open a file to run it on this machine's CPU with so many threads."""
    packages: tuple[str, ...] = ()
    """Packages that must be installed."""
    extra: str = ""
    """The extra of this project that installs them."""
    one_thread: bool = False
    """Whether its files run on one thread whatever they are asked for."""
    programs: tuple[str, ...] = ()
    """Programs that must be on the PATH, such as a C compiler."""
