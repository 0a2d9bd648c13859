"""Holm and McNemar: values worked by hand, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.evaluation.significance import holm, mcnemar

P_VALUES = st.dictionaries(st.text(), st.floats(0.0, 1.0), min_size=1, max_size=6)


def test_holm_matches_values_worked_by_hand() -> None:
    """0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not be below the one before."""
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert list(found) == ["a", "b", "c"]
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


@given(p_values=P_VALUES)
def test_holm_keeps_the_order_and_lies_between_plain_and_bonferroni(
    p_values: dict[str, float],
) -> None:
    adjusted = holm(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p)
        assert all(adjusted[name] <= adjusted[other] for other in p_values if p < p_values[other])


def test_one_test_or_none_needs_no_adjustment() -> None:
    assert holm({"only": 0.04}) == {"only": 0.04}
    assert holm({}) == {}


def test_one_false_rejection_or_more_is_as_rare_as_the_level() -> None:
    """Of 3 true null hypotheses, without adjustment in 14 of 100 experiments."""
    generator = np.random.default_rng(0)
    drawn = generator.random((4000, 3))
    smallest = [min(holm(dict(enumerate(row))).values()) for row in drawn.tolist()]
    assert np.mean(drawn.min(axis=1) < 0.05) > 0.12
    assert np.mean(np.array(smallest) < 0.05) == pytest.approx(0.05, abs=0.01)


def cells(*rows: str) -> np.ndarray:
    return np.array([[float(cell) for cell in row] for row in rows])


def test_mcnemar_matches_a_value_worked_by_hand() -> None:
    """5 of 6 discordant images: twice (1 + 6) / 64 by the toss of a coin; images 7 to 9 tie."""
    (found,) = mcnemar(cells("111110110"), cells("000001110"))
    assert (found["arm_only"], found["baseline_only"]) == (5, 1)
    assert found["p_value"] == pytest.approx(14 / 64)


def test_mcnemar_is_of_each_replicate_and_symmetric() -> None:
    arm, baseline = cells("1110", "1111"), cells("0001", "1111")
    there, back = mcnemar(arm, baseline), mcnemar(baseline, arm)
    assert [test["arm_only"] for test in there] == [3, 0]
    assert [test["baseline_only"] for test in back] == [3, 0]
    assert [test["p_value"] for test in there] == [test["p_value"] for test in back]


def test_models_that_are_right_on_the_same_images_are_not_shown_to_differ() -> None:
    (found,) = mcnemar(cells("101"), cells("101"))
    assert found == {"arm_only": 0, "baseline_only": 0, "p_value": 1.0}
