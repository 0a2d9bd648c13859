"""The blocks `soft_target_caching` and `soft_target_verification`."""

from typing import Self

from pydantic import model_validator

from kd_pipeline.config import (
    BatchSize,
    Computing,
    Fraction,
    Params,
    PositiveInt,
    Seed,
    Temperature,
)
from kd_pipeline.shards import Sharded


class SoftTargetCachingParams(Computing, Sharded):
    """`soft_target_caching`: how the teacher labels the transfer set."""

    batch_size: BatchSize = 512
    rows_per_part: PositiveInt | None = None
    """Rows in one file: what is labelled before it is on disk, and what is read at a time. null is
    as many as keep float32 logits of all classes within 64 MiB, and at most 65,536."""
    top_k: PositiveInt | None = None
    """Keep only so many logits of each row, and one for all others; null keeps all."""
    temperature: Temperature | None = None
    """Given exactly where `top_k` is: such a cache can be read at this temperature only."""
    min_validation_accuracy: Fraction | None = None
    """A teacher below it is refused before it labels anything."""

    @model_validator(mode="after")
    def _a_tail_holds_at_one_temperature(self) -> Self:
        if (self.top_k is None) != (self.temperature is None):
            raise ValueError(
                "`temperature` must be given exactly where `top_k` is: a top-k cache holds at one "
                f"temperature only, got top_k {self.top_k} and temperature {self.temperature}"
            )
        return self


class SoftTargetVerificationParams(Params):
    """`soft_target_verification`: which rows of the cache the teacher labels again."""

    seed: Seed = 0
    num_rows: PositiveInt = 512
    """Spread evenly over ensemble members and views."""
