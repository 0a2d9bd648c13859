"""The budget of a run: read from globals.yml, given to every node whole, logged."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.memory_hook import MemoryHook
from kd_pipeline.memory import usable_memory


def start(**given: Any) -> DataCatalog:
    hook, catalog = MemoryHook(), DataCatalog({"memory_budget": MemoryDataset()})
    hook.after_context_created(SimpleNamespace(config_loader={"globals": given}))
    hook.after_catalog_created(catalog)
    hook.before_pipeline_run()
    return catalog


def test_each_node_gets_the_whole_budget() -> None:
    catalog = start(memory_budget_mb=2)
    first = catalog.load("memory_budget")
    kept = first.array((2**20,), np.uint8)
    assert first.left == 2**20
    assert catalog.load("memory_budget").left == 2**21
    assert kept.nbytes == 2**20


def test_auto_where_nothing_is_given() -> None:
    assert start().load("memory_budget").left == usable_memory() // 2


def test_the_budget_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kd_pipeline"):
        start(memory_budget_mb=512)
    assert caplog.messages == ["memory budget: 512 MiB (memory_budget_mb: 512)"]


def test_refuses_what_is_no_budget() -> None:
    with pytest.raises(ParameterError, match="`memory_budget_mb` must be auto or a number"):
        start(memory_budget_mb="half")
