"""The arena never holds two tensors in one place at one time, and is not larger than it must be."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.export.c_layers import (
    Activation,
    Addition,
    Convolution,
    FixedPoint,
    Layer,
    PixelTable,
    Window,
)
from kd_pipeline.export.c_memory import Buffer, place, plan_arena

HALF = FixedPoint(2**30, 31)

buffers = st.builds(
    lambda size, first, length: Buffer(size, first, first + length),
    st.integers(1, 50),
    st.integers(0, 9),
    st.integers(0, 4),
)


@given(buffers=st.lists(buffers, min_size=1, max_size=20))
def test_buffers_in_use_at_once_do_not_overlap(buffers: list[Buffer]) -> None:
    offsets = place(buffers)
    for step in range(14):
        live = [
            (o, b.size) for o, b in zip(offsets, buffers, strict=True) if b.first <= step <= b.last
        ]
        live.sort()
        for (start, size), (following, _) in pairwise(live):
            assert start + size <= following
    assert min(offsets) == 0


def activation(channels: int) -> Activation:
    return Activation(4, 4, channels, 0.1, 0)


def convolution(source: Activation, output: Activation, kernel: int) -> Layer:
    return Convolution(
        inputs=(source,),
        output=output,
        window=Window(kernel, kernel, 1, 1, *[kernel // 2] * 4),
        groups=1,
        weights=np.zeros((output.channels, kernel, kernel, source.channels), np.int8),
        bias=np.zeros(output.channels, np.int32),
        factors=(HALF,) * output.channels,
    )


def addition(left: Activation, right: Activation, output: Activation) -> Layer:
    return Addition(inputs=(left, right), output=output, factors=(HALF, HALF))


def test_a_residual_block_worked_by_hand() -> None:
    """Pixels 16 bytes; the block's input, middle and output 32 each; patches of 9 and 18."""
    pixels, start, middle, end, added, logits = map(activation, (1, 2, 2, 2, 2, 3))
    first, second, third = (
        convolution(pixels, start, 3),
        convolution(start, middle, 3),
        convolution(middle, end, 3),
    )
    table = PixelTable(inputs=(), output=pixels, table=np.zeros((1, 256), np.int8))
    layers = [table, first, second, third, addition(end, start, added)]
    arena = plan_arena([*layers, convolution(added, logits, 1)])
    # The third convolution has all three at once, and its patch; the sum overwrites an input.
    assert arena.size == 3 * 32 + 18
    assert arena.activations[added] == arena.activations[end]
    assert logits not in arena.activations
    assert set(arena.patches) == {first, second, third}


def test_a_sum_does_not_overwrite_what_is_read_later() -> None:
    pixels, added, twice, logits = (activation(2) for _ in range(4))
    table = PixelTable(inputs=(), output=pixels, table=np.zeros((2, 256), np.int8))
    layers = [table, addition(pixels, pixels, added), addition(added, pixels, twice)]
    arena = plan_arena([*layers, convolution(twice, logits, 1)])
    assert arena.activations[added] != arena.activations[pixels]
    assert arena.activations[twice] == arena.activations[added]
    assert arena.size == 64
