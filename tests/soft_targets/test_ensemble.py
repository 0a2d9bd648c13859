"""The ensemble average in closed form, at every temperature."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.errors import ParameterError
from kd_pipeline.soft_targets.ensemble import EnsembleAverage, average_logits
from kd_pipeline.soft_targets.settings import SoftTargetsParams


def softmax(values: np.ndarray, temperature: float) -> np.ndarray:
    scaled = values.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def members(seed: int, count: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 5, 7)) * 4).astype(np.float32)


def params(kind: Any = "geometric", weights: tuple[float, ...] | None = None) -> SoftTargetsParams:
    return SoftTargetsParams(ensemble_average=kind, member_weights=weights)


WEIGHTS = st.one_of(st.none(), st.tuples(*[st.floats(0.0, 5.0)] * 2, st.floats(0.1, 5.0)))


@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20.0), weights=WEIGHTS)
def test_arithmetic_is_the_mean_of_the_tempered_probabilities(
    seed: int, temperature: float, weights: tuple[float, ...] | None
) -> None:
    logits = members(seed)
    averaged = average_logits(logits, params("arithmetic", weights), temperature=temperature)
    expected = np.average(softmax(logits, temperature), axis=0, weights=weights)
    np.testing.assert_allclose(softmax(averaged, temperature), expected, atol=1e-5)


@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.5, 20.0),
    averaged_at=st.floats(0.5, 20.0),
    weights=WEIGHTS,
)
def test_geometric_is_the_softmax_of_the_mean_logits_at_every_temperature(
    seed: int, temperature: float, averaged_at: float, weights: tuple[float, ...] | None
) -> None:
    """Which is the normalised geometric mean of the distributions: it commutes with tempering."""
    logits = members(seed)
    averaged = average_logits(logits, params("geometric", weights), temperature=averaged_at)
    np.testing.assert_allclose(
        softmax(averaged, temperature),
        softmax(np.average(logits, axis=0, weights=weights), temperature),
        atol=1e-5,
    )
    product = np.exp(np.average(np.log(softmax(logits, temperature)), axis=0, weights=weights))
    product /= product.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(softmax(averaged, temperature), product, atol=1e-5)


def test_two_members_worked_by_hand() -> None:
    """(0.8, 0.2) and (0.5, 0.5): arithmetic (0.65, 0.35), geometric 2 : 1."""
    logits = np.log(np.array([[[0.8, 0.2]], [[0.5, 0.5]]], dtype=np.float32))
    arithmetic = average_logits(logits, params("arithmetic"), temperature=1.0)
    np.testing.assert_allclose(softmax(arithmetic, 1.0), [[0.65, 0.35]], atol=1e-6)
    geometric = average_logits(logits, params(), temperature=1.0)
    np.testing.assert_allclose(softmax(geometric, 1.0), [[2 / 3, 1 / 3]], atol=1e-6)
    weighted = average_logits(logits, params("arithmetic", (3, 1)), temperature=1.0)
    np.testing.assert_allclose(softmax(weighted, 1.0), [[0.725, 0.275]], atol=1e-6)


def test_arithmetic_at_one_temperature_is_not_that_at_another() -> None:
    """Why members are cached apart: an average of probabilities cannot be tempered again."""
    logits = members(0)
    at_one = average_logits(logits, params("arithmetic"), temperature=1.0)
    at_four = average_logits(logits, params("arithmetic"), temperature=4.0)
    assert np.abs(softmax(at_one, 4.0) - softmax(at_four, 4.0)).max() > 0.05


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_a_lone_member_and_a_weight_of_one_are_the_member(kind: str) -> None:
    logits = members(0)
    for how, given_ in (
        (params(kind), logits[:1]),
        (params(kind, (1.0, 0.0, 0.0)), logits),
    ):
        averaged = average_logits(given_, how, temperature=2.0)
        np.testing.assert_allclose(softmax(averaged, 2.0), softmax(logits[0], 2.0), atol=1e-6)


def test_half_precision_is_averaged_in_float32() -> None:
    """From 4,096 on float16 has every fourth number only."""
    logits = torch.tensor([[[4096.0]], [[4100.0]], [[4096.0]]], dtype=torch.float16)
    for kind in ("geometric", "arithmetic"):
        averaged = average_logits(logits, params(kind), temperature=2.0)
        assert averaged.dtype == torch.float32
    geometric = average_logits(logits, params(), temperature=2.0)
    assert geometric.item() == pytest.approx(4096 + 4 / 3, abs=1e-3)


def test_an_average_of_no_member_is_refused() -> None:
    average = EnsembleAverage("geometric", temperature=1.0)
    average.add(torch.zeros(1, 2), 0.0)
    with pytest.raises(ValueError, match=r"^no member was added to the average$"):
        average.logits()


def test_tensors_stay_tensors() -> None:
    logits = torch.from_numpy(members(0))
    averaged = average_logits(logits, params("arithmetic"), temperature=2.0)
    assert averaged.dtype == torch.float32
    as_array = average_logits(logits.numpy(), params("arithmetic"), temperature=2.0)
    np.testing.assert_array_equal(averaged.numpy(), as_array)


def test_a_certain_member_does_not_make_infinities() -> None:
    logits = np.array([[[60_000.0, -60_000.0]], [[60_000.0, -60_000.0]]], dtype=np.float32)
    averaged = average_logits(logits, params("arithmetic"), temperature=0.5)
    assert np.isfinite(averaged).all()


def test_weights_of_another_number_of_members_are_refused() -> None:
    with pytest.raises(
        ParameterError, match=r"one weight for each of the teacher's 2 members, got"
    ):
        average_logits(members(0, count=2), params(weights=(1.0,)), temperature=1.0)
