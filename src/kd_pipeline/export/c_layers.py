"""Layers of an int8 network as the C target computes them: integers only, channels last."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import ExportError

Int8Array = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Activation:
    """An int8 tensor of one image: value = scale * (stored - zero_point)."""

    height: int
    width: int
    channels: int
    scale: float
    zero_point: int

    @property
    def size(self) -> int:
        """Number of elements, which is also that of bytes."""
        return self.height * self.width * self.channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the input."""

    height: int = 1
    width: int = 1
    stride_y: int = 1
    stride_x: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of this size."""
        rows = (height + self.top + self.bottom - self.height) // self.stride_y + 1
        columns = (width + self.left + self.right - self.width) // self.stride_x + 1
        return rows, columns


@dataclass(frozen=True)
class FixedPoint:
    """A positive factor as `multiplier` / 2 ** `shift`."""

    multiplier: int
    shift: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One call of a kernel; stored outputs are clamped to [low, high]."""

    inputs: tuple[Activation, ...]
    output: Activation
    low: int = -128
    high: int = 127


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelTable(Layer):
    """Preprocessing: what each pixel of each channel becomes."""

    table: Int8Array
    """[channels, 256]"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Layer):
    """A convolution, or a fully connected layer as one whose kernel covers the whole input."""

    window: Window
    groups: int
    weights: Int8Array
    """[out_channels, height, width, in_channels / groups]"""
    bias: NDArray[np.int32]
    """[out_channels], less what the input's zero point adds to the sums."""
    factors: tuple[FixedPoint, ...]
    """One for each output channel."""

    @property
    def patch_size(self) -> int:
        """Bytes that the input under one window is copied to; 0 where it lies in one piece."""
        window, source = self.window, self.inputs[0]
        is_whole = (window.height, window.width) == (source.height, source.width)
        is_pixel = window.height == window.width == 1
        is_padded = window.top or window.left or window.bottom or window.right
        if self.groups == 1 and (is_whole or is_pixel) and not is_padded:
            return 0
        return window.height * window.width * source.channels // self.groups


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Layer):
    """Maximum under each window; with a kernel of 1x1 it only skips rows and columns."""

    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Layer):
    """Mean under each window, padding counted as 0; with a kernel of 1x1 it only rescales."""

    window: Window
    factor: FixedPoint
    """For sums, not for means."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Addition(Layer):
    """Sum of two inputs; their factors have one shift, so that the sum is rounded once."""

    factors: tuple[FixedPoint, FixedPoint]


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelPadding(Layer):
    """The input with channels of 0 after its own."""


@dataclass(frozen=True)
class IntegerNetwork:
    """Layers in the order of their calls, from uint8 pixels to int8 logits."""

    layers: tuple[Layer, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pixels."""
        first = self.layers[0].output
        return first.channels, first.height, first.width

    @property
    def logits(self) -> Activation:
        """The last output."""
        return self.layers[-1].output


@dataclass(frozen=True)
class Unquantised:
    """A result whose scale comes with the QuantizeLinear that follows."""

    height: int
    width: int
    channels: int
    make: Callable[[Activation, int, int], Layer] = field(compare=False)
    """From output, low and high."""
    low: float = -math.inf
    high: float = math.inf


def fixed_points(factors: list[float], *, shared_shift: bool = False) -> tuple[FixedPoint, ...]:
    """Nearest multipliers of 31 bits; the greatest has all of them where the shift is shared.

    Raises:
        ExportError: If a factor is not positive, or 2 ** 30 or more.
    """
    if not all(0 < factor < 2**30 for factor in factors):
        raise ExportError(f"scales must have ratios above 0 and below 2 ** 30, got {factors}")
    exponents = [math.frexp(factor)[1] for factor in factors]
    if shared_shift:
        exponents = [max(exponents)] * len(exponents)
    return tuple(map(_fixed_point, factors, exponents))


def _fixed_point(factor: float, exponent: int) -> FixedPoint:
    # 64-bit products of 32-bit sums leave room for shifts up to 62; what needs more is nearly 0.
    shift = min(31 - exponent, 62)
    return FixedPoint(min(round(math.ldexp(factor, shift)), 2**31 - 1), shift)
