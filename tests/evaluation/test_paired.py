"""The paired interval: laws, and its coverage of the truth."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import nct, norm, t

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.paired import PairedDifference, gap_recovered, paired_difference
from kd_pipeline.evaluation.settings import EvaluationParams

Cells = NDArray[np.float64]


def paired(
    arm: Cells, baseline: Cells, *, lower_is_better: bool = False, **changes: Any
) -> PairedDifference:
    params = EvaluationParams(**({"num_bootstrap_samples": 400} | changes))
    return paired_difference(arm, baseline, params, lower_is_better=lower_is_better)


def two_way(
    generator: np.random.Generator, spreads: tuple[float, float, float], shape: tuple[int, int]
) -> Cells:
    """Differences whose true mean is 0: effects of replicate, example and cell."""
    of_replicate, of_example, of_cell = spreads
    return (
        of_replicate * generator.normal(size=(shape[0], 1))
        + of_example * generator.normal(size=(1, shape[1]))
        + of_cell * generator.normal(size=shape)
    )


def covered_and_rejected(
    spreads: tuple[float, float, float], *, shape: tuple[int, int], experiments: int
) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    covered = rejected = 0
    for _ in range(experiments):
        cells = two_way(generator, spreads, shape)
        result = paired(cells, np.zeros(shape), seed=int(generator.integers(2**31)))
        covered += result["ci95"][0] <= 0 <= result["ci95"][1]
        rejected += result["p_value"] < 0.05
    return covered / experiments, rejected / experiments


@given(seed=st.integers(0, 2**16), shift=st.floats(-1, 1))
@settings(max_examples=30)
def test_the_interval_leaves_out_0_where_p_is_small(seed: int, shift: float) -> None:
    cells = two_way(np.random.default_rng(seed), (0.3, 0.3, 0.3), (4, 20)) + shift
    result = paired(cells, np.zeros_like(cells))
    assert result["ci95"][0] <= result["mean"] <= result["ci95"][1]
    assert result["mean"] == pytest.approx(cells.mean())
    if result["p_value"] < 0.045:
        assert result["ci95"][0] > 0 or result["ci95"][1] < 0
    if result["p_value"] > 0.055:
        assert result["ci95"][0] <= 0 <= result["ci95"][1]


def test_swapping_the_arms_mirrors_the_result() -> None:
    generator = np.random.default_rng(0)
    arm, baseline = generator.random((5, 40)), generator.random((5, 40))
    there, back = paired(arm, baseline), paired(baseline, arm)
    assert there["mean"] == pytest.approx(-back["mean"])
    assert there["ci95"][0] == pytest.approx(-back["ci95"][1])
    assert there["p_value"] == back["p_value"]
    assert there["wins"] + back["wins"] == 5


def test_is_paired_by_example() -> None:
    """What two arms share cancels, however large it is."""
    generator = np.random.default_rng(0)
    shared = 100 * generator.normal(size=(5, 40))
    result = paired(shared + 0.5 + 0.01 * generator.normal(size=(5, 40)), shared)
    assert 0.45 < result["ci95"][0] < result["ci95"][1] < 0.55


def test_the_order_of_replicates_and_of_examples_does_not_matter_in_kind() -> None:
    cells = two_way(np.random.default_rng(0), (0.1, 0.1, 0.1), (5, 200))
    width, other = (
        result["ci95"][1] - result["ci95"][0]
        for result in (
            paired(cells, np.zeros_like(cells), num_bootstrap_samples=10_000),
            paired(cells[::-1, ::-1].copy(), np.zeros_like(cells), num_bootstrap_samples=10_000),
        )
    )
    assert width == pytest.approx(other, rel=0.05)


def test_equal_arms_differ_by_nothing() -> None:
    cells = np.ones((3, 10))
    result = paired(cells, cells)
    assert (result["mean"], result["ci95"][0], result["ci95"][1]) == (0.0, 0.0, 0.0)
    assert (result["p_value"], result["wins"], result["replicates"]) == (1.0, 0, 3)


def test_p_is_never_below_one_sample() -> None:
    result = paired(np.ones((3, 10)), np.zeros((3, 10)), num_bootstrap_samples=100)
    assert result["p_value"] == 1 / 101


def test_a_win_is_the_larger_accuracy_and_the_smaller_loss() -> None:
    """Row by row: larger, larger, smaller, equal."""
    arm = np.array([[1.0, 1.0], [0.9, 0.8], [0.0, 0.0], [0.0, 1.0]])
    baseline = np.full((4, 2), 0.5)
    accuracies = EvaluationParams(num_bootstrap_samples=100)
    assert paired_difference(arm, baseline, accuracies)["wins"] == 2
    assert paired(arm, baseline, lower_is_better=True)["wins"] == 1


def test_right_or_wrong_may_be_bytes_of_which_a_difference_would_wrap_around() -> None:
    arm, baseline = right_or_wrong([0.2, 0.4]), right_or_wrong([0.5, 0.3])
    assert paired(arm.astype(np.uint8), baseline.astype(np.uint8)) == paired(arm, baseline)


def test_another_level_is_stated_and_a_lower_one_gives_a_narrower_interval() -> None:
    cells = two_way(np.random.default_rng(0), (0.1, 0.1, 0.1), (4, 50))
    usual, lower = (
        paired(cells, np.zeros_like(cells), confidence_level=level) for level in (0.95, 0.8)
    )
    assert not {"confidence_level", "num_comparisons"} & set(usual)
    assert lower["confidence_level"] == 0.8
    assert usual["ci95"][0] < lower["ci95"][0] < lower["ci95"][1] < usual["ci95"][1]


def test_one_replicate_resamples_examples_alone() -> None:
    cells = np.random.default_rng(0).normal(size=(1, 400))
    result = paired(cells, np.zeros_like(cells), num_bootstrap_samples=4000)
    expected = norm.ppf(0.975) * cells.std() / math.sqrt(400)
    assert (result["ci95"][1] - result["ci95"][0]) / 2 == pytest.approx(expected, rel=0.05)
    assert result["replicates"] == 1


def test_examples_are_drawn_in_chunks_of_bounded_memory() -> None:
    """30,000 examples: four chunks, the last of one sample alone."""
    cells = np.random.default_rng(0).normal(size=(1, 30_000))
    result = paired(cells, np.zeros_like(cells), num_bootstrap_samples=400)
    expected = norm.ppf(0.975) / math.sqrt(30_000)
    assert (result["ci95"][1] - result["ci95"][0]) / 2 == pytest.approx(expected, rel=0.15)


def test_replicates_alone_give_the_tails_of_student() -> None:
    """No example differs from another: the interval is that of R = 5 numbers, t and not normal."""
    means = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    cells = np.repeat(means[:, None], 3, axis=1)
    result = paired(cells, np.zeros_like(cells), num_bootstrap_samples=20_000)
    standard_error = means.std(ddof=1) / math.sqrt(5)
    assert 2.5 < result["ci95"][1] / standard_error < 3.2  # normal 1.96, t with 4 degrees 2.78


def test_the_same_seed_gives_the_same() -> None:
    cells = two_way(np.random.default_rng(0), (0.1, 0.1, 0.1), (3, 50))
    once = paired(cells, np.zeros_like(cells), seed=3)
    assert paired(cells, np.zeros_like(cells), seed=3) == once
    assert paired(cells, np.zeros_like(cells), seed=4) != once


def right_or_wrong(shares: list[float], num_examples: int = 100) -> Cells:
    """Row r is right on the first examples only."""
    return np.array([[float(at < share * num_examples) for at in range(num_examples)]
                     for share in shares])  # fmt: skip


def test_the_interval_of_two_accuracies_ends_where_their_difference_can_lie() -> None:
    arm, baseline = right_or_wrong([1.0, 0.6]), right_or_wrong([0.0, 0.5])
    assert paired(arm, baseline)["ci95"] == [-1.0, 1.0]
    assert paired(2 * arm, 2 * baseline)["ci95"][1] > 2.0  # A loss has no such bound.


@pytest.mark.parametrize(
    ("gains", "needed"), [(np.array([0.0, 0.04, 0.08]), 7), (np.array([0.012, 0.052, 0.092]), 5)]
)
def test_the_number_of_replicates_that_would_do_is_by_students_t(gains: Cells, needed: int) -> None:
    """Mean gains of 4 and 5.2 points, of deviation 4, and far more examples than matter."""
    generator = np.random.default_rng(0)
    num_examples = 20_000
    baseline = np.zeros((3, num_examples))
    arm = (generator.random(baseline.shape) < gains[:, None]).astype(float)
    found = paired(arm, baseline)
    assert found["ci95"][0] < 0
    # t(5) = 2.571: 2.571 * 4 / sqrt(6) = 4.2 points; t(6) = 2.447: 2.447 * 4 / sqrt(7) = 3.7.
    # t(3) = 3.182: 3.182 * 4 / sqrt(4) = 6.4 points; t(4) = 2.776: 2.776 * 4 / sqrt(5) = 5.0.
    assert found["replicates_needed"] == needed


def test_with_few_test_images_replicates_are_asked_for_until_these_matter_more() -> None:
    """Gains of -30 and 30 points on 400 images: their own part is +-4.9 points at most.

    Until the replicates' part, z x their deviation / sqrt(R), is no larger than the images' one.
    """
    generator = np.random.default_rng(0)
    shares = np.array([[0.2], [0.8]])
    arm = (generator.random((2, 400)) < shares).astype(float)
    baseline = (generator.random((2, 400)) < 0.5).astype(float)
    needed = paired(arm, baseline, num_bootstrap_samples=4000)["replicates_needed"]
    differences = arm - baseline
    of_images = differences.mean(axis=0).std() / math.sqrt(400)
    expected = (differences.mean(axis=1).std(ddof=1) / of_images) ** 2
    assert needed == pytest.approx(expected, rel=0.1)
    assert 100 < needed < 1000


def test_more_replicates_are_asked_for_than_there_are_if_only_one() -> None:
    """Four replicates whose interval by Student's t would do, while the bootstrap's is wider."""
    generator = np.random.default_rng(8)
    num_replicates, num_examples = int(generator.integers(2, 5)), int(generator.integers(20, 200))
    shares = generator.random((num_replicates, 1)) * 0.3 + 0.3
    shape = (num_replicates, num_examples)
    arm = (generator.random(shape) < shares).astype(float)
    baseline = (generator.random(shape) < 0.3).astype(float)
    found = paired(arm, baseline)
    assert (found["replicates"], found["replicates_needed"]) == (4, 5)


def test_there_is_always_a_number_that_would_do() -> None:
    needed = paired(right_or_wrong([0.0, 1.0]), right_or_wrong([1.0, 0.0]))["replicates_needed"]
    assert 2 * 1.41 / math.sqrt(needed) == pytest.approx(0.01, rel=0.05)


def test_replicates_are_not_asked_for_where_they_are_enough_or_would_not_help() -> None:
    enough = paired(right_or_wrong([0.95, 0.96]), right_or_wrong([0.5, 0.5]))
    assert "replicates_needed" not in enough
    generator = np.random.default_rng(0)
    few_images = (generator.random((1, 20)) < 0.5).astype(float).repeat(3, axis=0)
    few_images[0, 0] = 1 - few_images[0, 0]
    assert "replicates_needed" not in paired(few_images, right_or_wrong([0.5] * 3, 20))
    assert "replicates_needed" not in paired(few_images[:1], right_or_wrong([0.5], 20))


def test_replicates_are_asked_for_of_accuracies_alone() -> None:
    """A point is no half-width to want of a loss, whose size may be any."""
    arm, baseline = right_or_wrong([0.0, 1.0]), right_or_wrong([1.0, 0.0])
    assert "replicates_needed" in paired(arm, baseline)
    assert "replicates_needed" not in paired(2 * arm, 2 * baseline)


def test_covers_the_truth_with_few_replicates() -> None:
    """The plain percentile bootstrap covers it in 90 of 100 here, that of examples alone in 45."""
    covered, rejected = covered_and_rejected((0.03, 0.1, 0.1), shape=(5, 200), experiments=400)
    assert 0.93 <= covered <= 0.995
    assert rejected <= 0.07


@pytest.mark.long
@pytest.mark.parametrize(
    ("spreads", "num_replicates"),
    [
        ((0.03, 0.1, 0.1), 3),
        ((0.03, 0.1, 0.1), 5),
        ((0.03, 0.1, 0.1), 10),
        ((0.01, 0.25, 0.3), 5),
        ((0.0, 0.3, 0.3), 5),
    ],
)
def test_covers_the_truth(spreads: tuple[float, float, float], num_replicates: int) -> None:
    covered, rejected = covered_and_rejected(spreads, shape=(num_replicates, 600), experiments=2000)
    assert covered >= 0.935
    assert rejected <= 0.065


def share_shown(
    spreads: tuple[float, float, float],
    shape: tuple[int, int],
    *,
    true_difference: float,
    num_comparisons: int,
    experiments: int,
) -> tuple[float, float]:
    """How often a true difference is shown, and the mean of the smallest detectable ones."""
    generator, shown, smallest = np.random.default_rng(0), 0, []
    for _ in range(experiments):
        params = EvaluationParams(num_bootstrap_samples=400, seed=int(generator.integers(2**31)))
        cells = two_way(generator, spreads, shape) + true_difference
        found = paired_difference(cells, np.zeros(shape), params, num_comparisons=num_comparisons)
        shown += found["mean"] > 0 and found["p_value"] < 0.05 / num_comparisons
        smallest.append(found["smallest_detectable"])
    return shown / experiments, float(np.mean(smallest))


@pytest.mark.parametrize(
    ("spreads", "num_replicates", "num_comparisons"),
    [((0.03, 0.1, 0.1), 5, 1), ((0.03, 0.1, 0.1), 5, 3), ((0.0, 0.3, 0.3), 5, 1)],
)
def test_the_smallest_detectable_difference_is_shown_in_about_80_of_100_runs(
    spreads: tuple[float, float, float], num_replicates: int, num_comparisons: int
) -> None:
    shape = (num_replicates, 100)
    family: dict[str, Any] = {"num_comparisons": num_comparisons}
    _, smallest = share_shown(spreads, shape, true_difference=0.0, experiments=150, **family)
    shown, _ = share_shown(spreads, shape, true_difference=smallest, experiments=250, **family)
    assert 0.7 <= shown <= 0.9
    half, _ = share_shown(spreads, shape, true_difference=smallest / 2, experiments=100, **family)
    assert half < 0.5


def test_the_smallest_detectable_difference_is_that_of_the_normal_where_examples_alone_vary() -> (
    None
):
    cells = np.random.default_rng(0).normal(size=(1, 400))
    params = EvaluationParams(num_bootstrap_samples=20_000)
    for num_comparisons in (1, 2):
        found = paired_difference(
            cells, np.zeros_like(cells), params, num_comparisons=num_comparisons
        )
        in_errors = norm.ppf(1 - 0.025 / num_comparisons) + norm.ppf(0.8)
        expected = in_errors * cells.std() / math.sqrt(400)
        assert found["smallest_detectable"] == pytest.approx(expected, rel=0.03)
        assert found.get("num_comparisons", 1) == num_comparisons


def test_the_smallest_detectable_difference_of_replicates_alone_is_by_the_noncentral_t() -> None:
    """Five replicates of which no example differs from another."""
    means = norm.ppf((np.arange(5) + 0.5) / 5)
    cells = np.repeat(means[:, None], 2, axis=1)
    found = paired(cells, np.zeros_like(cells), num_bootstrap_samples=20_000)
    standard_error = means.std(ddof=1) / math.sqrt(5)
    assert found["smallest_detectable"] is not None
    shown = nct.sf(t.ppf(0.975, 4), 4, found["smallest_detectable"] / standard_error)
    assert shown == pytest.approx(0.8, abs=0.01)


def test_no_smallest_difference_is_known_where_nothing_varied() -> None:
    assert paired(np.ones((3, 10)), np.ones((3, 10)))["smallest_detectable"] is None


@pytest.mark.parametrize(
    ("arm", "baseline", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"got \(2, 3\) and \(2, 4\)"),
        (np.zeros(3), np.zeros(3), r"got \(3,\) and \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "^`arm` and `baseline` must have the same shape"),
        (
            np.full((2, 3), np.nan),
            np.zeros((2, 3)),
            "^`arm` and `baseline` must be finite, got NaN or infinity$",
        ),
    ],
)
def test_refuses_what_cannot_be_paired(arm: Cells, baseline: Cells, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired(arm, baseline)


def difference(mean: float, ci_low: float) -> PairedDifference:
    interval = [ci_low, 2 * mean - ci_low]
    return {
        "mean": mean,
        "ci95": interval,
        "p_value": 0.01,
        "smallest_detectable": 0.03,
        "wins": 5,
        "replicates": 5,
    }


def test_the_gap_recovered_is_a_share_of_a_gap_that_is_there() -> None:
    gain = difference(0.03, 0.02)
    assert gap_recovered(gain, difference(0.06, 0.04)) == pytest.approx(0.5)
    assert gap_recovered(gain, difference(0.06, 0.0)) is None
    assert gap_recovered(gain, difference(0.01, -0.02)) is None
    assert gap_recovered(gain, difference(-0.06, -0.08)) is None
