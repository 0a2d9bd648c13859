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


def test_durations_have_a_decimal_and_may_be_unknown() -> None:
    assert numbers.seconds(1234.56) == "1,234.6"
    assert numbers.seconds(None) == "-"


def difference(low: float, high: float, **more: object) -> dict[str, object]:
    return {"ci95": [low, high], "smallest_detectable": 0.0231, **more}


@pytest.mark.parametrize(
    ("found", "sign"),
    [
        (difference(0.01, 0.02), 1),
        (difference(-0.02, -0.01), -1),
        (difference(-0.01, 0.01), 0),
        (difference(0.01, 0.02, p_value_holm=0.049, num_comparisons=3), 1),
        (difference(0.01, 0.02, p_value_holm=0.051, num_comparisons=3), 0),
        (difference(0.01, 0.02, p_value_holm=0.02, num_comparisons=3, confidence_level=0.99), 0),
        (difference(0.01, 0.02, p_value_holm=0.0501), 1),
    ],
)
def test_a_difference_is_shown_by_its_interval_and_by_holm(
    found: dict[str, object], sign: int
) -> None:
    assert numbers.shown_sign(found) == sign


def test_what_would_have_been_shown_stands_beside_null_results_alone() -> None:
    null = difference(-0.01, 0.01)
    found = numbers.detectable_points(null)
    assert found.endswith("could have shown is 2.31 points (power 80 %, level 5 %).")
    assert "0.023 nats" in numbers.detectable_nats(null)
    family = null | {"num_comparisons": 3, "p_value_holm": 1.0, "confidence_level": 0.99}
    assert "(power 80 %, level 1 % / 3 arms)" in numbers.detectable_points(family)
    for other in (difference(0.01, 0.02), null | {"smallest_detectable": None}):
        assert numbers.detectable_points(other) == numbers.detectable_nats(other) == ""
    beyond = null | {"smallest_detectable": 1.2}
    assert "no difference would have been shown, however large" in numbers.detectable_points(beyond)
    assert "1.200 nats" in numbers.detectable_nats(beyond)
