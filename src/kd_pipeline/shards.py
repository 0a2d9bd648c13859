"""Which shard of a piece of work a process is: from the settings, or from torchrun."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from kd_pipeline.config import Params, PositiveInt
from kd_pipeline.errors import ParameterError

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
"""Variables that torchrun sets in each process that it starts."""


@dataclass(frozen=True)
class Shard:
    """One process of several that do disjoint parts of one piece of work."""

    index: int
    count: int
    """Of processes; more than there are parts leaves some without any."""

    @property
    def name(self) -> str:
        """As `0-of-4`."""
        return f"{self.index}-of-{self.count}"

    def slice_of(self, num_items: int) -> slice:
        """Its run of a sequence of so many items; runs differ by one item at most."""
        start, stop = (num_items * at // self.count for at in (self.index, self.index + 1))
        return slice(start, stop)


class Sharded(Params):
    """Work that several processes may do: fields that several blocks share."""

    num_shards: PositiveInt = 1
    """Processes that do disjoint parts of the work; torchrun's WORLD_SIZE where it is not set. What
    comes out does not depend on who does which part."""
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


def find_shard(
    settings: Sharded, *, block: str, environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """The shard that this process is, None where one process does all.

    Args:
        settings: Of the work.
        block: Their name in YAML.
        environment: Has torchrun's variables.

    Raises:
        ParameterError: If the settings and torchrun's variables name different ones.
    """
    given = None if settings.shard is None else Shard(settings.shard, settings.num_shards)
    ranked = launched(environment)
    if given and ranked and given != ranked:
        rule = f"be left out under torchrun or be its {RANK}, {ranked.name}"
        raise ParameterError(f"{block}.shard", rule, given.name)
    shard = given or ranked
    return None if shard is None or shard.count == 1 else shard


def launched(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Which of the processes that torchrun has started this one is; None without torchrun.

    Raises:
        ParameterError: If its variables are no numbers of a process.
    """
    if not (environment.get(RANK) and environment.get(WORLD_SIZE)):
        return None
    try:
        shard = Shard(int(environment[RANK]), int(environment[WORLD_SIZE]))
    except ValueError:
        shard = Shard(0, 0)
    if not 0 <= shard.index < shard.count:
        rule, value = f"be a number from 0 to {WORLD_SIZE} - 1", environment[RANK]
        raise ParameterError(RANK, rule, f"{value} of {environment[WORLD_SIZE]}")
    return shard
