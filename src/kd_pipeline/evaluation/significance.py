"""Significance tests beside the paired interval: Holm over several arms, McNemar per replicate."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr


class McNemar(TypedDict):
    """Two trained models on the same test images, as in comparison.json."""

    arm_only: int
    """Images that only the arm's model classifies correctly."""
    baseline_only: int
    """Images that only the baseline's does."""
    p_value: float
    """Two-sided and exact: of as many wins by the toss of a fair coin."""


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number (Holm 1979), under the same names.

    Rejecting those below a level keeps the probability of one false rejection or more among all
    below that level, however the tests depend on each other.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def mcnemar(arm: NDArray[np.float64], baseline: NDArray[np.float64]) -> list[McNemar]:
    """The exact test of McNemar (1947), a result per replicate.

    It is of these two trained models: other test images are accounted for, other seeds are not.

    Args:
        arm: 1 where right, else 0, [num_replicates, num_examples].
        baseline: Likewise; row r is the arm's counterpart.
    """
    arm_only = ((arm == 1) & (baseline == 0)).sum(axis=1).tolist()
    baseline_only = ((arm == 0) & (baseline == 1)).sum(axis=1).tolist()
    return [
        {"arm_only": wins, "baseline_only": losses, "p_value": _sign_test(wins, losses)}
        for wins, losses in zip(arm_only, baseline_only, strict=True)
    ]


def _sign_test(wins: int, losses: int) -> float:
    # Not scipy.stats.binomtest: importing scipy.stats takes a second.
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
