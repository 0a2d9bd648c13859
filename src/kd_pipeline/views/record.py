"""The record of a transform: its settings, how it is drawn, and how it is rendered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from kd_pipeline.views.settings import TransformParams
from kd_pipeline.views.stream import Stream

Drawn = Mapping[str, Tensor]
"""What was drawn for one transform: tensors [rows, ...], one row per image."""
Settings = TypeVar("Settings", bound=TransformParams)


@dataclass(frozen=True)
class Transform(Generic[Settings]):
    """A transform of single images."""

    settings: type[Settings]
    draw: Callable[[Stream, Settings], Drawn]
    render: Callable[[Tensor, Drawn, Settings], Tensor]
    """Maps pixels [batch, channels, height, width], uint8 or float32 in [0, 1], to the same shape,
    each image by itself, without changing its argument."""


@dataclass(frozen=True)
class MixingTransform(Generic[Settings]):
    """A transform that mixes each image with a partner."""

    settings: type[Settings]
    draw: Callable[[Stream, Settings], Drawn]
    mix: Callable[[Tensor, Tensor, Drawn], Tensor]
    """Maps the pixels of images and of their partners to the mixed images."""
    image_weight: Callable[[Drawn, tuple[int, int]], Tensor]
    """Maps draws and (height, width) to the exact weight of each image, float32 [rows]."""


Table = dict[str, Transform[Any] | MixingTransform[Any]]
"""From a transform's name in YAML to its record."""
