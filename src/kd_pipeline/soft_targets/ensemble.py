"""Several teachers as one: their logits are cached apart and mixed when they are read.

An arithmetic mean of tempered probabilities is not the tempered mean, so only mixing at reading
time is right at every temperature; changing how it is done runs no teacher.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.errors import ParameterError

KINDS = ("geometric", "arithmetic")


@dataclass(frozen=True)
class Mixing:
    """How an ensemble's members become one teacher."""

    kind: Literal["geometric", "arithmetic"] = "geometric"
    """geometric: softmax of the mean logits; arithmetic: mean of the tempered probabilities."""
    weights: tuple[float, ...] | None = None
    """One per member, in order; None weighs all alike. They need not add up to 1."""

    def shares(self, num_members: int) -> tuple[float, ...]:
        """Each member's share, adding up to 1.

        Raises:
            ParameterError: If kind or weights break their rules, or there is not one per member.
        """
        if self.kind not in KINDS:
            raise ParameterError("soft_targets.mixing", "be known", self.kind, legal=KINDS)
        if self.weights is None:
            return (1 / num_members,) * num_members
        name = "soft_targets.member_weights"
        if len(self.weights) != num_members:
            rule = f"have one weight for each of the teacher's {num_members} members"
            raise ParameterError(name, rule, list(self.weights))
        total = sum(self.weights)
        if min(self.weights) < 0 or not 0 < total < math.inf:
            raise ParameterError(name, "be >= 0 and not all 0", list(self.weights))
        return tuple(weight / total for weight in self.weights)

    def described(self, num_members: int) -> dict[str, Any]:
        """Kind and shares, JSON-able: equal ones mix alike."""
        return {"kind": self.kind, "shares": list(self.shares(num_members))}


class Mixture:
    """A mixture to which one member after another is added: no two need be in memory."""

    def __init__(self, kind: str, *, temperature: float) -> None:
        """Begin with nothing; `temperature` matters to the arithmetic mixture only."""
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
        """The mixture's logits, float32 [n, num_classes]."""
        if self._sum is None:
            raise ValueError("nothing was added to the mixture")
        return self._sum if self._kind == "geometric" else self._sum * self._temperature


Logits = TypeVar("Logits", Tensor, "NDArray[np.float32]")


def mix_logits(logits: Logits, *, mixing: Mixing, temperature: float) -> Logits:
    """Make one teacher's logits of several members'.

    geometric: the weighted mean of the logits, whose softmax at any temperature is the normalised
    geometric mean of the members' distributions. arithmetic: temperature x log of the weighted
    mean of the members' probabilities at `temperature`, so that dividing by it and taking the
    softmax gives that mean.

    Args:
        logits: [num_members, n, num_classes].
        mixing: Which, and the weights.
        temperature: At which the mixture will be read.

    Returns:
        float32 [n, num_classes].
    """
    mixture = Mixture(mixing.kind, temperature=temperature)
    for member, share in zip(logits, mixing.shares(len(logits)), strict=True):
        mixture.add(torch.as_tensor(member), share)
    mixed = mixture.logits()
    return mixed.numpy() if isinstance(logits, np.ndarray) else mixed
