"""A teacher's logits of some rows: of all classes, or of the k largest with a tail.

The tail is one logit for all other classes together, valid at one temperature only. It cannot be
dropped: at 1000 classes and temperature 4 the ten largest hold 6 % of the probability.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[Any])
Other = TypeVar("Other", Tensor, NDArray[Any])


@dataclass(frozen=True)
class TeacherLogits(Generic[Array]):
    """Logits before softmax and temperature: numpy arrays on disk, tensors in a batch."""

    logits: Array
    """[..., num_classes], or [..., k]"""
    class_ids: Array | None = None
    """[..., k], the class of each of the k largest; None where all classes are kept."""
    tail_logits: Array | None = None
    """[...], `tail_logit` of the other classes; None where all classes are kept."""

    def map(self, function: Callable[[Array], Other]) -> "TeacherLogits[Other]":
        """Apply a function to each array that is there."""
        ids, tails = self.class_ids, self.tail_logits
        return TeacherLogits(
            function(self.logits),
            None if ids is None else function(ids),
            None if tails is None else function(tails),
        )

    def __getitem__(self, rows: Any) -> "TeacherLogits[Array]":
        """Index the first axes of each array."""
        return self.map(lambda array: array[rows])


def tail_logit(logits: Tensor, class_ids: Tensor, *, temperature: float) -> Tensor:
    """One logit whose probability at `temperature` is the sum of those of all classes but some.

    Args:
        logits: [..., num_classes].
        class_ids: int64 [..., k], the classes that are left out.
        temperature: The only one at which the tail is valid.

    Returns:
        temperature x logsumexp(other logits / temperature), [...], of the dtype of `logits`.
    """
    others = logits.scatter(-1, class_ids, -math.inf)
    return temperature * torch.logsumexp(others / temperature, dim=-1)


def with_tail(logits: TeacherLogits[Tensor]) -> Tensor:
    """Concatenate the k largest logits and the tail as one more class, [..., k + 1].

    Raises:
        ValueError: If the logits are of all classes.
    """
    if logits.tail_logits is None:
        raise ValueError("logits of all classes have no tail")
    return torch.cat([logits.logits, logits.tail_logits[..., None]], dim=-1)
