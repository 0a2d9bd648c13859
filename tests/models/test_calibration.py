"""The temperature that fits logits to labels: a value by hand, laws, the ends of its range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from kd_pipeline.config import MAX_TEMPERATURE, MIN_TEMPERATURE
from kd_pipeline.models.calibration import calibrate


def drawn(seed: int, num_examples: int = 400) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_examples, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, labels


def test_matches_a_value_worked_by_hand() -> None:
    """3 of 4 are right, with odds of 9 to 1: at temperature 2 the odds are 3 to 1."""
    logits = torch.tensor([[math.log(9.0), 0.0]] * 4)
    found = calibrate(logits, torch.tensor([0, 0, 0, 1]))
    assert found.temperature == pytest.approx(2.0, rel=1e-5)
    assert found.num_examples == 4


def test_labels_that_follow_the_logits_need_no_temperature() -> None:
    assert calibrate(*drawn(0, num_examples=20_000)).temperature == pytest.approx(1.0, abs=0.03)


@given(seed=st.integers(0, 2**16), factor=st.floats(0.3, 3.0))
def test_the_temperature_undoes_a_scaling_of_the_logits(seed: int, factor: float) -> None:
    logits, labels = drawn(seed)
    once, scaled = calibrate(logits, labels), calibrate(factor * logits, labels)
    assert scaled.temperature == pytest.approx(factor * once.temperature, rel=1e-4)


@given(seed=st.integers(0, 2**16), factor=st.floats(0.3, 3.0), other=st.floats(0.1, 10.0))
def test_no_other_temperature_has_a_smaller_nll(seed: int, factor: float, other: float) -> None:
    logits, labels = drawn(seed)
    logits = factor * logits.double()
    best = calibrate(logits, labels).temperature
    found, others = (cross_entropy(logits / t, labels).item() for t in (best, other))
    assert found <= others + 1e-9


@pytest.mark.parametrize(("label", "end"), [(0, MIN_TEMPERATURE), (1, MAX_TEMPERATURE)])
def test_where_all_are_right_or_all_are_wrong_it_is_an_end_of_the_range(
    label: int, end: float
) -> None:
    found = calibrate(torch.tensor([[1.0, 0.0]] * 3), torch.tensor([label] * 3))
    assert found.temperature == pytest.approx(end, rel=1e-3)
