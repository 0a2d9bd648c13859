"""The corrected resampled t-test: values by hand, coverage, power, refusals; and its report."""

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.page import html_page
from kd_pipeline.evaluation.resplit_report import resplit_report
from kd_pipeline.evaluation.resplits import (
    ResplitDifference,
    combine_resplits,
    corrected_t_test,
)
from kd_pipeline.evaluation.significance import holm
from kd_pipeline.evaluation.terminal import resplits_summary


def of_gains(*gains: float, ratio: float = 0.5, **more: Any) -> ResplitDifference:
    return corrected_t_test(gains, test_per_training=ratio, confidence_level=0.95, **more)


def test_matches_values_worked_by_hand() -> None:
    """Variance (1/3 + 1/2) s², s = 0.01; with 2 degrees of freedom p = 1 - sqrt(t² / (2 + t²))."""
    found = of_gains(0.01, 0.02, 0.03)
    half_width = 4.302653 * 0.01 * math.sqrt(5 / 6)
    assert found["mean"] == pytest.approx(0.02)
    assert found["std"] == pytest.approx(0.01)
    assert found["ci95"] == pytest.approx([0.02 - half_width, 0.02 + half_width])
    assert found["p_value"] == pytest.approx(1 - math.sqrt(4.8 / 6.8))
    assert (found["wins"], found["replicates"]) == (3, 3)


def test_is_the_plain_t_test_where_test_sets_do_not_overlap() -> None:
    gains = (0.03, -0.01, 0.02, 0.05)
    plain = ttest_1samp(gains, 0.0)
    found = of_gains(*gains, ratio=0.0)
    assert found["p_value"] == pytest.approx(plain.pvalue)
    assert found["ci95"] == pytest.approx(list(plain.confidence_interval(0.95)))


def test_the_interval_leaves_out_0_where_p_is_below_the_level() -> None:
    for shift in np.linspace(-0.1, 0.1, 41):
        found = of_gains(0.01 + shift, 0.03 + shift, -0.02 + shift)
        low, high = found["ci95"]
        assert (low > 0 or high < 0) == (found["p_value"] < 0.05)


def overlapping(generator: np.random.Generator, *, num_resplits: int) -> NDArray[np.float64]:
    """Gains on test sets of 20 drawn anew from a pool of 60: true mean 0, n_test / n_train 1/2."""
    pool = generator.normal(size=60)
    return np.array([generator.permutation(pool)[:20].mean() for _ in range(num_resplits)])


def test_the_interval_holds_the_truth_as_often_as_it_states() -> None:
    """Without the correction it would in 79 of 100 experiments: P(|T| < 2.776 sqrt(2 / 7))."""
    generator = np.random.default_rng(0)
    drawn = [overlapping(generator, num_resplits=5) for _ in range(3000)]
    covered = {
        ratio: np.mean([of_gains(*gains, ratio=ratio)["p_value"] > 0.05 for gains in drawn])
        for ratio in (0.5, 0.0)
    }
    assert covered[0.5] == pytest.approx(0.95, abs=0.012)
    assert covered[0.0] == pytest.approx(0.79, abs=0.025)


@pytest.mark.parametrize("num_comparisons", [1, 3])
def test_the_smallest_detectable_difference_is_shown_four_times_in_five(
    num_comparisons: int,
) -> None:
    """Gains of unit spread whose correlation, 1/3, is that of the correction."""
    unit = np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
    smallest = of_gains(*unit, num_comparisons=num_comparisons)["smallest_detectable"]
    assert smallest is not None
    generator = np.random.default_rng(0)
    shared = math.sqrt(1 / 2) * generator.normal(size=(4000, 1))
    gains = smallest + shared + generator.normal(size=(4000, 5))
    found = [of_gains(*row)["p_value"] < 0.05 / num_comparisons for row in gains]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_of_equal_gains_no_interval_is_known_and_nothing_is_shown() -> None:
    for gain in (0.0, 0.1):
        found = of_gains(gain, gain, gain)
        assert (found["std"], found["p_value"], found["smallest_detectable"]) == (0.0, 1.0, None)
        assert found["ci95"] == [gain, gain] or found["ci95"] == pytest.approx([gain, gain])


def test_an_interval_ends_where_no_difference_can_lie_and_less_may_be_better() -> None:
    found = of_gains(-0.9, -0.1, bound=1.0, lower_is_better=True)
    assert found["ci95"] == [-1.0, 1.0]
    assert found["wins"] == 2


@pytest.mark.parametrize("gains", [(), (0.1,), (0.1, math.nan)])
def test_one_gain_or_none_and_no_number_are_refused(gains: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="`gains` must be two finite numbers or more, got"):
        of_gains(*gains)


def run_of(gains: dict[str, float], *, test_set: str) -> dict[str, Any]:
    """As much of a comparison.json as is combined; hard labels have 80 %."""
    arms = {"student_baseline": 0.8, **{arm: 0.8 + gain for arm, gain in gains.items()}}
    pairs = {arm: {"accuracy": {"mean": g}, "nll": {"mean": -g}} for arm, g in gains.items()}
    return {
        "group": f"group {test_set}",
        "env": "base",
        "arms": {arm: {"accuracy": {"mean": value}} for arm, value in arms.items()},
        "teacher": {"accuracy": {"mean": 0.95}},
        "gains": pairs,
        "distilled": "student_kd",
        "distilled_over": {k: v for k, v in pairs.items() if k != "student_kd"},
        "method": {
            "num_replicates": 2,
            "num_test_examples": 50,
            "num_training_examples": 100,
            "test_ids_fingerprint": test_set,
            "confidence_level": 0.95,
        },
    }


def combined(*, fixed: bool = False, **gains: list[float]) -> dict[str, Any]:
    rows = [dict(zip(gains, row, strict=True)) for row in zip(*gains.values(), strict=True)]
    return combine_resplits(
        {7 + at: run_of(row, test_set="a" if fixed else str(at)) for at, row in enumerate(rows)}
    )


CLEAR, NULL = [0.05, 0.06, 0.05, 0.06], [0.02, -0.03, 0.03, -0.01]


def test_combines_each_arm_over_the_runs_and_adjusts_for_their_number() -> None:
    found = combined(student_kd=CLEAR, student_smoothed=NULL)
    json.dumps(found, allow_nan=False)
    assert found["seeds"] == [7, 8, 9, 10]
    assert found["single_gains"]["student_kd"] == CLEAR
    assert found["accuracies"]["student_baseline"]["mean"] == pytest.approx(0.8)
    accuracy = found["gains"]["student_kd"]["accuracy"]
    alone = of_gains(*CLEAR, num_comparisons=2, bound=1.0)
    assert {k: v for k, v in accuracy.items() if k != "p_value_holm"} == alone
    plain = {arm: pair["accuracy"]["p_value"] for arm, pair in found["gains"].items()}
    adjusted = {arm: pair["accuracy"]["p_value_holm"] for arm, pair in found["gains"].items()}
    assert adjusted == holm(plain)
    assert found["gains"]["student_kd"]["nll"]["wins"] == 4
    assert "nll_calibrated" not in found["gains"]["student_kd"]
    assert "p_value_holm" not in found["distilled_over"]["student_smoothed"]["accuracy"]
    assert found["method"]["test_per_training"] == 0.5


def test_one_run_and_other_arms_are_refused() -> None:
    with pytest.raises(DataError, match="`gains` must be two finite numbers or more"):
        combined(student_kd=[0.1])
    runs = {0: run_of({"student_kd": 0.1}, test_set="a"), 1: run_of({"other": 0.1}, test_set="b")}
    with pytest.raises(DataError, match="`comparisons` must have the same arms, got"):
        combine_resplits(runs)


def test_the_report_states_gains_null_results_and_what_did_not_vary() -> None:
    found = combined(student_smoothed=NULL, student_kd=CLEAR, student_pseudo=[0.01] * 4)
    report = resplit_report(found)
    answers = report.split("## Gains")[0]
    assert "**distilled (student_kd) is better than hard labels**: +5.50 points" in answers
    assert "**No evidence that label smoothing (student_smoothed) differs" in answers
    assert "The smallest difference that this run could have shown is" in answers
    assert "**Nothing is shown of pseudo-labels (student_pseudo)**: +1.00 points" in answers
    assert answers.index("distilled") < answers.index("label smoothing")
    assert "| 7 | 95.00 | 80.00 | 82.00 (+2.00) | 85.00 (+5.00) | 81.00 (+1.00) |" in report
    assert "(1 / 4 + 50 / 100)" in report
    assert "<table>" in html_page(report, {})
    assert resplits_summary(found, "page.html").endswith("Report: page.html")


def test_a_gain_that_only_the_adjustment_hides_is_named() -> None:
    found = combined(student_kd=[0.03, 0.055, 0.06, 0.06], student_smoothed=NULL)
    accuracy = found["gains"]["student_kd"]["accuracy"]
    assert accuracy["p_value"] < 0.05 < accuracy["p_value_holm"]
    assert "By itself it would be shown" in resplit_report(found)


@pytest.mark.parametrize(("fixed", "stated"), [(True, "share one test set"), (False, "its own")])
def test_the_report_names_what_a_fixed_test_set_leaves_open(fixed: bool, stated: str) -> None:
    report = resplit_report(combined(fixed=fixed, student_kd=CLEAR))
    assert stated in report
    assert ("does not hold" in report) == fixed


def test_a_run_of_the_baseline_alone_says_that_nothing_is_compared() -> None:
    runs = {seed: {**run_of({}, test_set=str(seed)), "distilled": None} for seed in (0, 1)}
    assert "there is nothing to compare" in resplit_report(combine_resplits(runs))
