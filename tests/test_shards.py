"""Which shard a process is: settings, torchrun's variables, and what does not agree."""

import pytest
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.shards import Shard, Sharded, find_shard

ALONE = Sharded()
SECOND_OF_FOUR = Sharded(num_shards=4, shard=1)


def launched(rank: object, world_size: object) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size)}


@pytest.mark.parametrize(
    ("settings", "environment", "shard"),
    [
        (ALONE, {}, None),
        (ALONE, launched(0, 1), None),
        (ALONE, {"WORLD_SIZE": "4"}, None),
        (ALONE, launched(2, 4), Shard(2, 4)),
        (Sharded(shard=0), {}, None),
        (SECOND_OF_FOUR, {}, Shard(1, 4)),
        (SECOND_OF_FOUR, launched(1, 4), Shard(1, 4)),
    ],
)
def test_the_shard_is_that_of_the_settings_or_of_torchrun(
    settings: Sharded, environment: dict[str, str], shard: Shard | None
) -> None:
    assert find_shard(settings, block="sweep", environment=environment) == shard


@pytest.mark.parametrize("environment", [launched(2, 4), launched(1, 2), launched(0, 1)])
def test_settings_and_torchrun_that_differ_are_refused(environment: dict[str, str]) -> None:
    rule = r"`sweep.shard` must be left out under torchrun or be its RANK, \d-of-\d"
    with pytest.raises(ParameterError, match=f"{rule}, got '1-of-4'"):
        find_shard(SECOND_OF_FOUR, block="sweep", environment=environment)


@pytest.mark.parametrize("environment", [launched(4, 4), launched(-1, 4), launched("a", 4)])
def test_a_rank_that_is_none_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match="`RANK` must be a number from 0 to WORLD_SIZE - 1"):
        find_shard(ALONE, block="sweep", environment=environment)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"num_shards": 4}, "`shard` must be given where `num_shards` is above 1"),
        ({"num_shards": 4, "shard": 4}, "`shard` must be below `num_shards`, 4, got 4"),
        ({"shard": 1}, "`shard` must be below `num_shards`, 1, got 1"),
        ({"num_shards": 4, "shard": -1}, "greater than or equal to 0"),
        ({"num_shards": 0}, "greater than or equal to 1"),
    ],
)
def test_a_shard_out_of_range_is_refused(given: dict[str, int], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Sharded.model_validate(given)
