"""Several teachers as one: their logits are cached apart and averaged when they are read.

The mean of tempered probabilities is not the tempered mean, so only averaging when reading is right
at every temperature; another average then costs no forward pass.
"""

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.soft_targets.settings import SoftTargetsParams


class EnsembleAverage:
    """A running average: only one member's logits need be in memory."""

    def __init__(self, kind: str, *, temperature: float) -> None:
        """Start an average; `temperature` is used by the arithmetic one only."""
        self._kind, self._temperature = kind, temperature
        self._sum: Tensor | None = None

    def add(self, logits: Tensor, share: float) -> None:
        """Add a member's logits, [n, num_classes], at its share of the whole."""
        if share == 0:
            return
        if self._kind == "geometric":
            term = logits.float() * share
            self._sum = term if self._sum is None else self._sum + term
        else:
            log_probabilities = F.log_softmax(logits.float() / self._temperature, dim=-1)
            term = log_probabilities + math.log(share)
            self._sum = term if self._sum is None else torch.logaddexp(self._sum, term)

    def logits(self) -> Tensor:
        """The ensemble's logits, float32 [n, num_classes]."""
        if self._sum is None:
            raise ValueError("no member was added to the average")
        return self._sum if self._kind == "geometric" else self._sum * self._temperature


Logits = TypeVar("Logits", Tensor, "NDArray[np.float32]")


def average_logits(logits: Logits, params: SoftTargetsParams, *, temperature: float) -> Logits:
    """One teacher's logits from several members'.

    geometric: the weighted mean of the logits, whose softmax at any temperature is the normalised
    geometric mean of the members' distributions. arithmetic: temperature x log of the weighted
    mean of the members' probabilities at `temperature`, so that dividing by it and taking the
    softmax gives that mean.

    Args:
        logits: [num_members, n, num_classes].
        params: Which average, and the weights.
        temperature: At which the average will be read.

    Returns:
        float32 [n, num_classes].
    """
    average = EnsembleAverage(params.ensemble_average, temperature=temperature)
    for member, share in zip(logits, params.shares(len(logits)), strict=True):
        average.add(torch.as_tensor(member), share)
    averaged = average.logits()
    return averaged.numpy() if isinstance(logits, np.ndarray) else averaged
