"""Which shard of the labelling a process is: from the settings, or from torchrun."""

import os
from collections.abc import Mapping

from kd_pipeline.errors import ParameterError
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.shards import Shard

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
"""Variables that torchrun sets in each process that it starts."""


def find_shard(
    caching: SoftTargetCachingParams, environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """The shard that this process is, None where one process labels alone.

    Raises:
        ParameterError: If the settings and torchrun's variables name different ones.
    """
    given = None if caching.shard is None else Shard(caching.shard, caching.num_shards)
    torchruns = launched(environment)
    if given and torchruns and given != torchruns:
        rule = f"be left out under torchrun or be its {RANK}, {torchruns.name}"
        raise ParameterError("soft_target_caching.shard", rule, given.name)
    shard = given or torchruns
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
