"""Fixed-point factors, and what the C code makes of them, against exact rationals."""

from fractions import Fraction
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_layers import (
    Activation,
    AveragePool,
    IntegerNetwork,
    PixelTable,
    Window,
    fixed_points,
)
from kd_pipeline.export.c_run import open_model

factors = st.floats(2.0**-30, 2.0**29, exclude_max=True)


@given(values=st.tuples(factors, factors))
def test_each_factor_is_met_to_31_bits(values: tuple[float, float]) -> None:
    for factor, point in zip(values, fixed_points(list(values)), strict=True):
        assert point.multiplier < 2**31
        assert 1 <= point.shift <= 62
        error = abs(Fraction(point.multiplier, 2**point.shift) / Fraction(factor) - 1)
        assert error <= Fraction(1, 2**30)


@given(factor=factors, other=factors)
def test_a_shared_shift_keeps_the_smaller_as_exact_as_the_greater(
    factor: float, other: float
) -> None:
    points = fixed_points([factor, other], shared_shift=True)
    assert points[0].shift == points[1].shift
    step = Fraction(1, 2 ** points[0].shift)
    for point, value in zip(points, (factor, other), strict=True):
        assert abs(point.multiplier * step - Fraction(value)) <= step
    assert 2**30 <= max(point.multiplier for point in points) < 2**31


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0**30, float("nan")])
def test_factors_beyond_32_bits_are_refused(factor: float) -> None:
    with pytest.raises(ExportError, match=r"ratios above 0 and below 2 \*\* 30, got"):
        fixed_points([factor])


@example(factor=0.5, zeros=(0, 0))  # Every odd value is a half.
@settings(max_examples=8)
@given(factor=st.floats(2.0**-20, 300.0), zeros=st.tuples(*[st.integers(-128, 127)] * 2))
def test_c_rounds_to_nearest_and_halves_up(factor: float, zeros: tuple[int, int]) -> None:
    """All 256 stored values, one in each of 256 logits, rescaled from 1 to 1 / factor."""
    source = Activation(16, 16, 1, 1.0, zeros[0])
    output = Activation(16, 16, 1, 1 / factor, zeros[1])
    (point,) = fixed_points([factor])
    table = (np.arange(256) - 128).astype(np.int8)[None]
    rescale = AveragePool(inputs=(source,), output=output, window=Window(), factor=point)
    network = IntegerNetwork((PixelTable(inputs=(), output=source, table=table), rescale))
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.c")
        write_model(network, file, class_names=[""] * 256, metadata={})
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
        logits = open_model(file, 1)(pixels)[0]
    exact = [
        floor(Fraction(point.multiplier * (value - zeros[0]), 2**point.shift) + Fraction(1, 2))
        for value in table[0].tolist()
    ]
    expected = np.clip(np.array(exact) + zeros[1], -128, 127) - zeros[1]
    np.testing.assert_array_equal(np.rint(logits * factor), expected)
