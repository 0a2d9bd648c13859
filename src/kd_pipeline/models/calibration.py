"""One temperature for a model's logits, fitted to labels (Guo et al. 2017, arXiv:1706.04599)."""

import math
from typing import NamedTuple

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from kd_pipeline.config import MAX_TEMPERATURE, MIN_TEMPERATURE

_TOLERANCE = 1e-6
"""Of the logarithm: six digits of the temperature."""


class Calibration(NamedTuple):
    """A fitted temperature, and on how many examples."""

    temperature: float
    num_examples: int


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit the temperature at which the NLL of these labels is least.

    The NLL is convex in 1 / temperature and so has one minimum in its logarithm. Where each example
    is classified correctly, or almost none is, that lies beyond the range of the search, and the
    temperature is the end of the range: such labels do not determine it.

    Args:
        logits: float32 [num_examples, num_classes], of at least one example.
        labels: int64 [num_examples].

    Returns:
        A temperature in [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`].
    """
    exact = logits.double()

    def nll(log_temperature: float) -> float:
        return cross_entropy(exact / math.exp(log_temperature), labels).item()

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": _TOLERANCE})
    return Calibration(math.exp(found.x), len(labels))
