"""What processes of one training compare before they begin; they meet in tests/training."""

from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from torch import distributed as dist

from kd_pipeline.hooks.processes_hook import ProcessesHook, code_and_settings


def same(*data: object) -> object:
    return data


INPUTS = ["images", "params:teacher", "params:views"]
TRAINS = Pipeline([Node(same, INPUTS, "checkpoints", name="train")])


def catalog(**teacher: Any) -> DataCatalog:
    blocks = {"params:teacher": teacher, "params:views": {"seed": 1}, "params:other": teacher}
    return DataCatalog({name: MemoryDataset(block) for name, block in blocks.items()})


def test_blocks_that_the_run_reads_are_compared_each_by_itself() -> None:
    one = code_and_settings(TRAINS, catalog(seed=1, model={"name": "mlp"}))
    assert set(one) == {"code", "teacher", "views"}
    assert one == code_and_settings(TRAINS, catalog(model={"name": "mlp"}, seed=1))
    other = code_and_settings(TRAINS, catalog(seed=2, model={"name": "mlp"}))
    assert {name for name in one if one[name] != other[name]} == {"teacher"}


def test_a_run_of_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    hook, given = ProcessesHook(), catalog(seed=1)
    hook.before_pipeline_run(TRAINS, given)
    assert "checkpoints" not in given
    assert not dist.is_initialized()
    hook.after_pipeline_run()
