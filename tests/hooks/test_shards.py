"""Which runs may be one shard: those of one teacher's labelling or of a sweep, and no others."""

import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.shards import (
    is_follower,
    labelling_shard,
    lock_of_run,
    process_of_run,
    sweep_shard,
)
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.shards import Shard

PIPELINES = register_pipelines()
CACHING = "params:soft_target_caching"


def catalog(**caching: int) -> DataCatalog:
    return DataCatalog({CACHING: MemoryDataset(caching)})


def test_a_run_of_the_stage_is_a_shard_where_it_is_set() -> None:
    stage = PIPELINES["soft_target_caching"]
    assert labelling_shard(stage, catalog(num_shards=4, shard=1)) == Shard(1, 4)
    assert labelling_shard(stage, catalog()) is None


def test_a_student_that_teaches_is_labelled_in_shards_too() -> None:
    one = PIPELINES["teacher_assistant"].only_nodes("assistant.cache_soft_targets")
    assert labelling_shard(one, catalog(num_shards=4, shard=1)) == Shard(1, 4)


def test_a_run_that_labels_nothing_is_none() -> None:
    given = catalog(num_shards=4, shard=1)
    assert labelling_shard(PIPELINES["student_distillation"], given) is None
    assert labelling_shard(PIPELINES["verify_soft_targets"], given) is None


def test_a_run_of_other_stages_or_of_two_teachers_is_refused() -> None:
    chain = PIPELINES["teacher_assistant"]
    names = ("cache_soft_targets", "assistant.cache_soft_targets")
    rule = "`soft_target_caching.num_shards` must be 1 in a run of more than"
    for pipeline in (PIPELINES["distill"], chain.only_nodes(*names)):
        with pytest.raises(ParameterError, match=f"{rule} one teacher's .*, got 4"):
            labelling_shard(pipeline, catalog(num_shards=4, shard=1))
        assert labelling_shard(pipeline, catalog()) is None


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun sets the variables."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("second_of_two")
def test_processes_of_torchrun_train_together() -> None:
    training = (
        PIPELINES["teacher_training"],
        PIPELINES["student_distillation"],
        PIPELINES["teacher_training"] + PIPELINES["student_distillation"],
        PIPELINES["teacher_assistant"].only_nodes("assistant.train_student"),
    )
    for pipeline in training:
        assert process_of_run(pipeline) == Shard(1, 2)
        assert is_follower(pipeline)


@pytest.mark.usefixtures("second_of_two")
def test_shards_of_the_labelling_do_not() -> None:
    assert process_of_run(PIPELINES["soft_target_caching"]) is None
    assert not is_follower(PIPELINES["soft_target_caching"])


@pytest.mark.usefixtures("second_of_two")
def test_those_that_train_and_those_that_label_keep_each_other_out() -> None:
    assert lock_of_run(PIPELINES["teacher_training"], catalog()) == "1-of-2-training"
    assert lock_of_run(PIPELINES["soft_target_caching"], catalog()) == "1-of-2"


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize("name", ["distill", "evaluation", "data_ingest"])
def test_other_stages_are_refused_under_torchrun(name: str) -> None:
    with pytest.raises(ParameterError, match=r"`WORLD_SIZE` must be 1 in a run of more than .* 2"):
        process_of_run(PIPELINES[name])


def test_one_process_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert process_of_run(PIPELINES["distill"]) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process_of_run(PIPELINES["distill"]) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_follower(PIPELINES["teacher_training"])


def swept(**shard: int) -> DataCatalog:
    span = {"student.training.batch_size": {"choices": [16, 32]}}
    return DataCatalog({"params:sweep": MemoryDataset({"parameters": span, **shard})})


def test_a_sweep_is_a_shard_where_it_is_set() -> None:
    assert sweep_shard(PIPELINES["sweep"], swept(num_shards=4, shard=1)) == Shard(1, 4)
    assert sweep_shard(PIPELINES["sweep"], swept()) is None
    assert sweep_shard(PIPELINES["distill"], swept(num_shards=4, shard=1)) is None


def test_a_sweep_with_other_stages_is_refused_as_a_shard() -> None:
    more = PIPELINES["sweep"] + PIPELINES["transfer_split"]
    with pytest.raises(ParameterError, match=r"`sweep\.num_shards` must be 1 in a run of other"):
        sweep_shard(more, swept(num_shards=4, shard=1))
    assert sweep_shard(more, swept()) is None


def test_the_locks_of_the_two_kinds_of_shards_differ() -> None:
    sweep = lock_of_run(PIPELINES["sweep"], swept(num_shards=4, shard=1))
    labelling = lock_of_run(PIPELINES["soft_target_caching"], catalog(num_shards=4, shard=1))
    assert labelling == "1-of-4"
    assert sweep not in {labelling, ""}
    assert lock_of_run(PIPELINES["sweep"], swept()) == ""
