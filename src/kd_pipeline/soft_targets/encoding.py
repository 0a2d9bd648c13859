"""How a teacher's logits become the numbers of a store: dense float16, or the top k and a tail.

Logits and not probabilities, because re-tempering float16 probabilities costs a mean KL of 1e-3
to 2e-2 where float16 logits cost 2e-8. A top-k store keeps the k largest logits of each row and
one more for all other classes together, which holds at one temperature only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError

MAX_CLASSES = 65_535
FLOAT16_MAX = float(np.finfo(np.float16).max)
_BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class Encoding:
    """Dense where `top_k` is None; a top-k store is tied to its `temperature`."""

    top_k: int | None = None
    temperature: float | None = None

    def check(self, num_classes: int) -> None:
        """Refuse an encoding that cannot hold logits of so many classes.

        Raises:
            ParameterError: Naming the parameter of `soft_target_caching`.
            DataError: If there are more classes than an unsigned 16-bit id can name.
        """
        if not 1 <= num_classes <= MAX_CLASSES:
            raise DataError(
                f"soft targets must be of 1 to {MAX_CLASSES} classes, got {num_classes}"
            )
        if (self.top_k is None) != (self.temperature is None):
            rule = "be given exactly where `top_k` is: a tail holds at one temperature only"
            raise ParameterError("soft_target_caching.temperature", rule, self.temperature)
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ParameterError("soft_target_caching.temperature", "be > 0", self.temperature)
        if self.top_k is not None and not 1 <= self.top_k < num_classes:
            rule = f"be at least 1 and below the number of classes, {num_classes}"
            raise ParameterError("soft_target_caching.top_k", rule, self.top_k)


@dataclass(frozen=True)
class EncodedLogits:
    """Rows as a store keeps them."""

    logits: NDArray[np.float16]
    """[num_rows, num_classes], or [num_rows, k] in ascending order of class id."""
    class_ids: NDArray[np.uint16] | None = None
    """[num_rows, k] of a top-k store."""
    tail_logits: NDArray[np.float16] | None = None
    """[num_rows] of a top-k store: temperature x logsumexp(other logits / temperature)."""


def encode_logits(
    logits: NDArray[np.float32],
    encoding: Encoding,
    *,
    member: int,
    view: int,
    example_ids: NDArray[np.int64],
) -> EncodedLogits:
    """Turn a teacher's logits into what is stored.

    Args:
        logits: float32 [num_rows, num_classes].
        encoding: Dense or top-k.
        member: Whose logits these are, to be named when they are refused.
        view: Of which view, for the same reason.
        example_ids: int64 [num_rows], for the same reason.

    Raises:
        DataError: If a logit is not finite or too large for float16.
    """
    _refuse_what_float16_cannot_hold(logits, member=member, view=view, example_ids=example_ids)
    if encoding.top_k is None or encoding.temperature is None:
        return EncodedLogits(logits.astype(np.float16))
    starts = range(0, max(len(logits), 1), _BLOCK_ROWS)
    blocks = [
        _top_k(logits[start : start + _BLOCK_ROWS], encoding.top_k, encoding.temperature)
        for start in starts
    ]
    top, class_ids, tails = (np.concatenate(column) for column in zip(*blocks, strict=True))
    _refuse_what_float16_cannot_hold(
        tails[:, None], member=member, view=view, example_ids=example_ids, what="tail"
    )
    return EncodedLogits(top.astype(np.float16), class_ids, tails.astype(np.float16))


def _top_k(
    logits: NDArray[np.float32], top_k: int, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.float32]]:
    best = np.argpartition(-logits, top_k - 1, axis=1)[:, :top_k]
    # By class id, not by size: rising ids pack better than falling logits (bench.cache_size).
    class_ids = np.sort(best, axis=1)
    top = np.take_along_axis(logits, class_ids, axis=1)
    others = logits.astype(np.float64) / temperature
    np.put_along_axis(others, class_ids, -np.inf, axis=1)
    largest = others.max(axis=1, initial=-np.inf)
    tails = temperature * (largest + np.log(np.exp(others - largest[:, None]).sum(axis=1)))
    return top, class_ids.astype(np.uint16), tails.astype(np.float32)


def _refuse_what_float16_cannot_hold(
    logits: NDArray[np.float32],
    *,
    member: int,
    view: int,
    example_ids: Sequence[int] | NDArray[np.int64],
    what: str = "class",
) -> None:
    # Block by block: a copy of all would double what a part takes in memory.
    for start in range(0, len(logits), _BLOCK_ROWS):
        # NaN fails every comparison, so this finds it too.
        within = np.abs(logits[start : start + _BLOCK_ROWS]) <= FLOAT16_MAX
        if not within.all():
            break
    else:
        return
    row, column = np.argwhere(~within)[0].tolist()
    row += start
    where = f"class {column}" if what == "class" else "the tail"
    raise DataError(
        f"teacher logits must be finite and within ±{FLOAT16_MAX:.0f}, the range of float16, got "
        f"{logits[row, column]} for {where} of example {int(example_ids[row])} "
        f"in view {view} by teacher {member}"
    )
