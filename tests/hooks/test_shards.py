"""Which runs may be one shard: those of one teacher's labelling, and of nothing else."""

import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.shards import shard_of_run
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.soft_targets.shards import Shard

PIPELINES = register_pipelines()
CACHING = "params:soft_target_caching"


def catalog(**caching: int) -> DataCatalog:
    return DataCatalog({CACHING: MemoryDataset(caching)})


def test_a_run_of_the_stage_is_a_shard_where_it_is_set() -> None:
    stage = PIPELINES["soft_target_caching"]
    assert shard_of_run(stage, catalog(num_shards=4, shard=1)) == Shard(1, 4)
    assert shard_of_run(stage, catalog()) is None


def test_a_student_that_teaches_is_labelled_in_shards_too() -> None:
    one = PIPELINES["teacher_assistant"].only_nodes("assistant.cache_soft_targets")
    assert shard_of_run(one, catalog(num_shards=4, shard=1)) == Shard(1, 4)


def test_a_run_that_labels_nothing_is_none() -> None:
    given = catalog(num_shards=4, shard=1)
    assert shard_of_run(PIPELINES["student_distillation"], given) is None
    assert shard_of_run(PIPELINES["verify_soft_targets"], given) is None


def test_a_run_of_other_stages_or_of_two_teachers_is_refused() -> None:
    chain = PIPELINES["teacher_assistant"]
    names = ("cache_soft_targets", "assistant.cache_soft_targets")
    rule = "`soft_target_caching.num_shards` must be 1 in a run of more than"
    for pipeline in (PIPELINES["distill"], chain.only_nodes(*names)):
        with pytest.raises(ParameterError, match=f"{rule} one teacher's .*, got 4"):
            shard_of_run(pipeline, catalog(num_shards=4, shard=1))
        assert shard_of_run(pipeline, catalog()) is None
