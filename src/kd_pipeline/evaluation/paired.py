"""The paired difference of two students, with its interval over replicates and test examples.

Replicates (seeds) and test examples are both random, and crossed: every replicate is measured on
every example. Resampling only the examples, as is usual, leaves out the variance of the seeds. The
method and its measured coverage are in docs/decisions/0004-paired-interval.md.
"""

import math
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.settings import EvaluationParams

POWER = 0.8
"""Probability with which a difference as large as `smallest_detectable` is shown."""
_CHUNK_CELLS = 4_000_000
_ROUNDING = 1e-12
_USUAL_LEVEL = 0.95
_ONE_POINT = 0.01
_MOST_REPLICATES = 100_000
"""Enough for a half-width of a point: gains lie in [-1, 1], their deviation is at most 1.42."""


class PairedDifference(TypedDict):
    """Arm minus baseline, averaged over replicates and examples, as in comparison.json."""

    mean: float
    ci95: list[float]
    """Low and high, whatever the level is."""
    confidence_level: NotRequired[float]
    """Where it is not 0.95."""
    p_value: float
    """Two-sided; the smallest that the bootstrap can give is 1 / (num_bootstrap_samples + 1)."""
    p_value_holm: NotRequired[float]
    """Adjusted for the number of arms, where the difference is one of a family of tests."""
    smallest_detectable: float | None
    """See `_smallest_detectable`; null where nothing varied, so that no spread is known."""
    num_comparisons: NotRequired[int]
    """Size of the family of tests, where it is not 1."""
    wins: int
    """Replicates in which the arm is better."""
    replicates: int
    """Where it is 1, the interval covers the choice of test examples only, not of seeds."""
    replicates_needed: NotRequired[int]
    """Of two accuracies, where more replicates would do: see `_replicates_needed`."""


def paired_difference(
    arm: NDArray[np.float64],
    baseline: NDArray[np.float64],
    params: EvaluationParams,
    *,
    lower_is_better: bool = False,
    num_comparisons: int = 1,
) -> PairedDifference:
    """Compare two students, replicate by replicate and example by example.

    The interval is symmetric about the difference, and the p-value is of no difference, from the
    same bootstrap shifted to the null: the interval leaves out 0 where p < 1 - confidence_level.
    That of two accuracies ends at -1 and 1, beyond which their difference cannot lie.

    `arm` and `baseline` hold a value per cell (1 where right, or the loss), both of shape
    [num_replicates, num_examples]; row r of both has the same seed. `num_comparisons` is the size
    of the family of tests that this one belongs to: only `smallest_detectable` depends on it.

    Raises:
        DataError: If the shapes differ, are empty or not two-dimensional, or a value is not finite.
    """
    if arm.shape != baseline.shape or arm.ndim != 2 or arm.size == 0:
        raise DataError(
            "`arm` and `baseline` must have the same shape [num_replicates, num_examples], got "
            f"{arm.shape} and {baseline.shape}"
        )
    differences = np.asarray(arm, dtype=np.float64) - baseline
    if not np.isfinite(differences).all():
        raise DataError("`arm` and `baseline` must be finite, got NaN or infinity")
    mean = float(differences.mean())
    drawn = _bootstrap(differences, params)
    deviations = np.abs(drawn.of_replicates / drawn.spread + drawn.of_examples)
    half_width = float(np.quantile(deviations, params.confidence_level))
    is_accuracy = all(((cells == 0) | (cells == 1)).all() for cells in (arm, baseline))
    bound = 1.0 if is_accuracy else math.inf
    as_extreme = int((deviations >= abs(mean) - _ROUNDING).sum())
    gains = differences.mean(axis=1) * (-1 if lower_is_better else 1)
    difference: PairedDifference = {
        "mean": mean,
        "ci95": [max(mean - half_width, -bound), min(mean + half_width, bound)],
        "p_value": (1 + as_extreme) / (1 + params.num_bootstrap_samples),
        "smallest_detectable": _smallest_detectable(drawn, params, num_comparisons),
        "wins": int((gains > _ROUNDING).sum()),
        "replicates": len(differences),
    }
    if num_comparisons > 1:
        difference["num_comparisons"] = num_comparisons
    if params.confidence_level != _USUAL_LEVEL:
        difference["confidence_level"] = params.confidence_level
    if is_accuracy and len(differences) > 1:
        of_examples = float(np.quantile(np.abs(drawn.of_examples), params.confidence_level))
        wanted = max(abs(mean), _ONE_POINT, math.sqrt(2) * of_examples)
        if half_width > wanted:
            needed = _replicates_needed(differences.mean(axis=1), of_examples, wanted, params)
            difference["replicates_needed"] = needed
    return difference


def _smallest_detectable(
    drawn: "_Deviations", params: EvaluationParams, num_comparisons: int
) -> float | None:
    """The true difference that a run with this spread shows with probability `POWER`.

    It is shown where the estimate exceeds the half-width that such a run would find: the difference
    wanted is the quantile of that half-width less the estimate's deviation. Of the half-width the
    part due to replicates varies as their observed spread does; for normal replicates alone this is
    the noncentral t distribution. Among several comparisons the level is divided by their number,
    the strictest step of Holm: the others may have come out as they like.
    """
    inside = 1 - (1 - params.confidence_level) / num_comparisons
    whole = np.quantile(np.abs(drawn.of_replicates / drawn.spread + drawn.of_examples), inside)
    of_examples = np.quantile(np.abs(drawn.of_examples), inside)
    of_replicates = math.sqrt(max(0.0, whole**2 - of_examples**2))
    half_widths = np.hypot(of_examples, of_replicates * drawn.spread)
    needed = half_widths - (drawn.of_replicates + drawn.of_examples)
    return float(np.quantile(needed, POWER)) or None


def _replicates_needed(
    gains: NDArray[np.float64], of_examples: float, wanted: float, params: EvaluationParams
) -> int:
    """The least number of replicates whose half-width is below `wanted`, if their spread stays.

    Wanted is a half-width below the mean or below a point, or one that is due to the test examples
    more than to the replicates. By Student's t for the replicates; the half-width `of_examples`,
    which more replicates do not change, is added as variances are.
    """
    numbers = np.arange(len(gains) + 1, _MOST_REPLICATES + 1)
    t = stdtrit(numbers - 1, (1 + params.confidence_level) / 2)
    half_widths = np.hypot(t * gains.std(ddof=1) / np.sqrt(numbers), of_examples)
    return int(numbers[np.argmax(half_widths < wanted)])


def gap_recovered(gain: PairedDifference, teacher_gap: PairedDifference) -> float | None:
    """An arm's gain as a share of the teacher's; None unless that one's interval is above 0."""
    return gain["mean"] / teacher_gap["mean"] if teacher_gap["ci95"][0] > 0 else None


class _Deviations(NamedTuple):
    """Of the mean, with other replicates and with other examples; each [num_samples]."""

    of_replicates: NDArray[np.float64]
    spread: NDArray[np.float64]
    """The standard deviation that these replicates show, as a multiple of the true one."""
    of_examples: NDArray[np.float64]


def _bootstrap(differences: NDArray[np.float64], params: EvaluationParams) -> _Deviations:
    """Draw replicates and examples, to be added: the two are drawn apart.

    Resampling both at once (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122) counts
    the variance of a single cell three times; the sum counts it twice, which is still conservative.
    """
    generator, num_samples = np.random.default_rng(params.seed), params.num_bootstrap_samples
    replicates, spread = _replicate_deviations(differences.mean(axis=1), num_samples, generator)
    examples = _example_deviations(differences.mean(axis=0), num_samples, generator)
    return _Deviations(replicates, spread, examples)


def _replicate_deviations(
    means: NDArray[np.float64], num_samples: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw R - 1 of R replicates with replacement (Rao & Wu 1988): the variance is unbiased.

    And the root of chi-square over its R - 1 degrees of freedom, by which a draw is to be divided
    as in Student's t: a variance estimated from a few replicates is uncertain.
    """
    degrees = len(means) - 1
    if degrees == 0:
        return np.zeros(num_samples), np.ones(num_samples)
    counts = generator.multinomial(degrees, np.full(len(means), 1 / len(means)), size=num_samples)
    spread = np.sqrt(generator.chisquare(degrees, size=num_samples) / degrees)
    return np.asarray(counts @ (means - means.mean()) / degrees), spread


def _example_deviations(
    means: NDArray[np.float64], num_samples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw as many examples with replacement, a chunk of samples at a time to bound memory."""
    centred = means - means.mean()
    chunk = max(1, _CHUNK_CELLS // len(means))
    deviations = np.empty(num_samples)
    for start in range(0, num_samples, chunk):
        size = (min(chunk, num_samples - start), len(means))
        drawn = generator.integers(len(means), size=size, dtype=np.int32)
        deviations[start : start + chunk] = centred[drawn].mean(axis=1)
    return deviations
