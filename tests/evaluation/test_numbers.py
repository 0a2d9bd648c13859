"""How numbers are written."""

import pytest

from kd_pipeline.evaluation import numbers


def test_shares_are_percent_with_their_spread() -> None:
    assert numbers.percent({"mean": 0.8988, "std": 0.0194}) == "89.88 ± 1.94"
    assert numbers.percent({"mean": 0.8988, "std": None}) == "89.88"
    assert numbers.percent({"mean": None, "std": None}) == "-"


def test_differences_are_points_with_a_sign() -> None:
    difference = {"mean": 0.0485, "ci95": [-0.005, 0.1], "p_value": 0.0321}
    assert numbers.points(difference) == "+4.85"
    assert numbers.points_interval(difference) == "-0.50 to +10.00"
    assert numbers.p_value(difference) == "0.032"
    assert numbers.level(difference) == "95 %"
    assert numbers.level({**difference, "confidence_level": 0.995}) == "99.5 %"


def test_a_small_p_is_not_called_0() -> None:
    assert numbers.p_value({"p_value": 0.0001}) == "< 0.001"


@pytest.mark.parametrize(("value", "text"), [(-0.0001, "+0.00"), (0.0, "+0.00"), (-1.5, "-1.50")])
def test_a_rounded_zero_has_no_minus(value: float, text: str) -> None:
    assert numbers.signed(value, places=2) == text


def test_counts_have_a_decimal_where_they_need_one() -> None:
    assert numbers.count({"mean": 29.8}) == "29.8"
    assert numbers.count({"mean": 60.0}) == "60"
    assert numbers.size(66_000) == "66,000"
    assert numbers.size(None) == "-"
