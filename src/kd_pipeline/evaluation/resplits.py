"""The same comparison under several splits of the data, combined by the corrected resampled t-test.

A resplit repeats a run with another seed of split, teacher, students and views. Nadeau and Bengio
2003, doi:10.1023/A:1024068626366; see docs/decisions/0024-what-counts-as-shown.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.comparison import PAIRED, spread
from kd_pipeline.evaluation.paired import POWER
from kd_pipeline.evaluation.roles import measured_roles
from kd_pipeline.evaluation.significance import holm

_Json = Mapping[str, Any]
_ROUNDING = 1e-12


class ResplitDifference(TypedDict):
    """The mean over resplits of a difference of two students, as in resplits.json."""

    mean: float
    std: float
    """Over the resplits; 0 where nothing varied: then no interval is known, and nothing shown."""
    ci95: list[float]
    """Low and high, whatever the level is."""
    confidence_level: float
    p_value: float
    """Two-sided; 1 where nothing varied."""
    smallest_detectable: float | None
    """The true difference that so many resplits with this spread show with probability `POWER`."""
    num_comparisons: NotRequired[int]
    """Size of the family of tests, where it is not 1."""
    p_value_holm: NotRequired[float]
    """Adjusted for that size."""
    wins: int
    """Resplits in which the arm is better."""
    replicates: int
    """Number of resplits."""


def corrected_t_test(
    gains: Sequence[float],
    *,
    test_per_training: float,
    confidence_level: float,
    num_comparisons: int = 1,
    lower_is_better: bool = False,
    bound: float = math.inf,
) -> ResplitDifference:
    """Interval and p-value of a mean over resplits: variance (1 / J + n_test / n_train) s².

    Random test sets of one pool overlap, so that J gains vary less than J independent ones would:
    s² / J alone is too small. The statistic is compared with Student's t of J - 1 degrees.

    Args:
        gains: One per resplit.
        test_per_training: n_test / n_train.
        confidence_level: Of the interval.
        num_comparisons: By which `smallest_detectable` divides the level, the strictest step of
            Holm.
        lower_is_better: Of the metric, for `wins`.
        bound: The interval ends at -bound and bound, beyond which no difference can lie.

    Raises:
        DataError: If there are fewer than two gains, or one is not finite.
    """
    values = np.asarray(gains, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise DataError(f"`gains` must be two finite numbers or more, got {values.tolist()}")
    degrees, mean, std = len(values) - 1, float(values.mean()), float(values.std(ddof=1))
    std = std if std > _ROUNDING else 0.0
    error = std * math.sqrt(1 / len(values) + test_per_training)
    alpha = 1 - confidence_level
    half_width = error * float(stdtrit(degrees, 1 - alpha / 2))
    difference: ResplitDifference = {
        "mean": mean,
        "std": std,
        "ci95": [max(mean - half_width, -bound), min(mean + half_width, bound)],
        "confidence_level": confidence_level,
        "p_value": 2 * float(stdtr(degrees, -abs(mean) / error)) if error else 1.0,
        "smallest_detectable": error * _noncentrality(degrees, alpha / num_comparisons) or None,
        "wins": int(((-values if lower_is_better else values) > _ROUNDING).sum()),
        "replicates": len(values),
    }
    if num_comparisons > 1:
        difference["num_comparisons"] = num_comparisons
    return difference


def _noncentrality(degrees: int, alpha: float) -> float:
    """Standard errors that a true difference must have to be shown with probability `POWER`."""
    return float(nctdtrinc(degrees, 1 - POWER, stdtrit(degrees, 1 - alpha / 2)))


def combine_resplits(comparisons: Mapping[int, _Json]) -> dict[str, Any]:
    """Combine the comparisons of resplits, which differ in nothing but their seed.

    Args:
        comparisons: The content of each comparison.json, by seed.

    Returns:
        `env`, `seeds`, `groups` (of the single runs), `accuracies` and `single_gains` (of each role
        by resplit, means over its replicates), `gains` (each arm over the baseline: a
        `ResplitDifference` by metric; the p-values of accuracy are one family, adjusted by Holm),
        `distilled`, `distilled_over` (that arm over the controls, not adjusted) and `method`.

    Raises:
        DataError: If they do not have the same arms.
    """
    runs = list(comparisons.values())
    arms = [list(run["arms"]) for run in runs]
    if any(of_one != arms[0] for of_one in arms):
        raise DataError(f"`comparisons` must have the same arms, got {arms}")
    method = _method(runs)
    measured = [measured_roles(run) for run in runs]
    return {
        "env": runs[0]["env"],
        "seeds": list(comparisons),
        "groups": [run["group"] for run in runs],
        "accuracies": {
            role: spread([one[role]["accuracy"]["mean"] for one in measured])
            for role in measured[0]
            if all(role in one for one in measured)
        },
        "single_gains": {
            arm: [run["gains"][arm]["accuracy"]["mean"] for run in runs] for arm in runs[0]["gains"]
        },
        "gains": _gains(runs, method),
        "distilled": runs[0]["distilled"],
        "distilled_over": {
            arm: _pair([run["distilled_over"][arm] for run in runs], method)
            for arm in runs[0]["distilled_over"]
        },
        "method": method,
    }


def _gains(runs: Sequence[_Json], method: _Json) -> dict[str, dict[str, Any]]:
    """Each arm over the baseline; p-values of accuracy are adjusted for the number of arms."""
    arms = list(runs[0]["gains"])
    pairs = {
        arm: _pair([run["gains"][arm] for run in runs], method, num_comparisons=len(arms))
        for arm in arms
    }
    adjusted = holm({arm: pair["accuracy"]["p_value"] for arm, pair in pairs.items()})
    for arm, pair in pairs.items():
        pair["accuracy"]["p_value_holm"] = adjusted[arm]
    return pairs


def _pair(
    differences: Sequence[_Json], method: _Json, *, num_comparisons: int = 1
) -> dict[str, Any]:
    """Combine by each metric; `num_comparisons` is the family of the accuracies."""
    return {
        metric: corrected_t_test(
            [one[metric]["mean"] for one in differences],
            test_per_training=method["test_per_training"],
            confidence_level=method["confidence_level"],
            num_comparisons=num_comparisons if metric == "accuracy" else 1,
            lower_is_better=lower_is_better,
            bound=1.0 if metric == "accuracy" else math.inf,
        )
        for metric, (_, lower_is_better) in PAIRED.items()
        if all(metric in one for one in differences)
    }


def _method(runs: Sequence[_Json]) -> dict[str, Any]:
    """What the tests rest on; sizes are means, as copies are left out of some splits only."""
    methods = [run["method"] for run in runs]
    test, training = (
        float(np.mean([one[name] for one in methods]))
        for name in ("num_test_examples", "num_training_examples")
    )
    return {
        "num_resplits": len(runs),
        "num_replicates": methods[0]["num_replicates"],
        "num_test_examples": test,
        "num_training_examples": training,
        "test_per_training": test / training,
        "same_test_set": len({one["test_ids_fingerprint"] for one in methods}) == 1,
        "confidence_level": methods[0]["confidence_level"],
        "power": POWER,
    }
