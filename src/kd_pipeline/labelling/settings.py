"""The blocks `soft_target_caching` and `soft_target_verification`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from kd_pipeline.config import (
    BatchSize,
    Computing,
    Fraction,
    Params,
    PositiveInt,
    Seed,
    Temperature,
)


class SoftTargetCachingParams(Computing):
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

    num_shards: PositiveInt = 1
    """Processes that label disjoint parts of one store; torchrun's WORLD_SIZE where it is not set.
    The store does not depend on it."""
    shard: Annotated[int, Field(ge=0)] | None = None
    """Which of them this process is, from 0 on; torchrun's RANK where it is not set."""

    @model_validator(mode="after")
    def _a_shard_is_one_of_their_number(self) -> Self:
        if self.shard is None and self.num_shards > 1:
            raise ValueError(
                "`shard` must be given where `num_shards` is above 1, got null of "
                f"{self.num_shards}"
            )
        if self.shard is not None and self.shard >= self.num_shards:
            raise ValueError(
                f"`shard` must be below `num_shards`, {self.num_shards}, got {self.shard}"
            )
        return self

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
