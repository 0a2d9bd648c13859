"""The paired difference of two arms: how large, how sure, over replicates and test examples.

Both replicates (seeds) and test examples are random, and crossed: every replicate is measured on
every example. Resampling only the examples, as is usual, says nothing of another seed. The method
and the coverage it was measured to have are in docs/decisions/0004-paired-interval.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import DataError

_CHUNK_CELLS = 4_000_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus baseline, averaged over replicates and examples."""

    mean: float
    ci_low: float
    ci_high: float
    p_value: float
    """Two-sided; the smallest that the bootstrap can give is 1 / (num_samples + 1)."""
    wins: int
    """Replicates in which the arm is better."""
    replicates: int
    """Where it is 1, the interval covers the choice of test examples only, not of seeds."""


def paired_difference(
    arm: NDArray[np.float64],
    baseline: NDArray[np.float64],
    *,
    num_samples: int,
    confidence_level: float,
    seed: int,
    lower_is_better: bool = False,
) -> PairedDifference:
    """Compare two arms, replicate by replicate and example by example.

    Args:
        arm: A value per cell (1 where right, or the loss), [num_replicates, num_examples].
        baseline: Same shape; row r shares its seed with the arm's row r.
        num_samples: Bootstrap samples.
        confidence_level: Of the interval, in (0, 1).
        seed: Of the resampling.
        lower_is_better: Whether a win is a smaller value, as for a loss.

    Returns:
        The difference with an interval symmetric about it and the two-sided p-value of no
        difference from the same bootstrap shifted to the null: the interval leaves out 0 where
        the p-value is below 1 - confidence_level.

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
    deviations = np.abs(_bootstrap_deviations(differences, num_samples=num_samples, seed=seed))
    half_width = float(np.quantile(deviations, confidence_level))
    as_extreme = int((deviations >= abs(mean) - _ROUNDING).sum())
    gains = differences.mean(axis=1) * (-1 if lower_is_better else 1)
    return PairedDifference(
        mean=mean,
        ci_low=mean - half_width,
        ci_high=mean + half_width,
        p_value=(1 + as_extreme) / (1 + num_samples),
        wins=int((gains > _ROUNDING).sum()),
        replicates=len(differences),
    )


def gap_recovered(gain: PairedDifference, teacher_gap: PairedDifference) -> float | None:
    """Share of the teacher's lead over the baseline that an arm wins back.

    Args:
        gain: The arm against the baseline.
        teacher_gap: The teacher against the same baseline.

    Returns:
        gain / gap, or None where the gap's interval is not above 0: the ratio of something to
        noise says nothing.
    """
    return gain.mean / teacher_gap.mean if teacher_gap.ci_low > 0 else None


def _bootstrap_deviations(
    differences: NDArray[np.float64], *, num_samples: int, seed: int
) -> NDArray[np.float64]:
    """How far the mean would lie off with other replicates and other examples, [num_samples].

    The sum of the deviation over replicates and that over examples. Resampling both within one
    sample (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122) counts the variance of a
    single cell three times; the sum counts it twice and stays on the safe side.
    """
    generator = np.random.default_rng(seed)
    by_replicate = _replicate_deviations(differences.mean(axis=1), num_samples, generator)
    return by_replicate + _example_deviations(differences.mean(axis=0), num_samples, generator)


def _replicate_deviations(
    means: NDArray[np.float64], num_samples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw R - 1 of R replicates with replacement (Rao & Wu 1988): the variance is unbiased.

    It is estimated from a handful all the same: dividing each draw by the root of chi-square over
    its R - 1 degrees of freedom spreads the draws like Student's t instead of a normal.
    """
    degrees = len(means) - 1
    if degrees == 0:
        return np.zeros(num_samples)
    counts = generator.multinomial(degrees, np.full(len(means), 1 / len(means)), size=num_samples)
    spread = np.sqrt(generator.chisquare(degrees, size=num_samples) / degrees)
    return np.asarray(counts @ (means - means.mean()) / degrees / spread)


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
