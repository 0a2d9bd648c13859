"""One run at a time: a second process is refused, and a killed one leaves no lock behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from kd_pipeline.errors import DataError
from kd_pipeline.hooks.run_lock_hook import RunLockHook
from kd_pipeline.locks import take_lock
from kd_pipeline.pipeline_registry import register_pipelines

HOLDS = """
import sys
from pathlib import Path
from kd_pipeline.locks import take_lock
lock = take_lock(Path(sys.argv[1]), busy="another run", shard="".join(sys.argv[2:]))
print("locked", flush=True)
sys.stdin.read()
"""


def passed(data: object) -> object:
    return data


WRITES = Pipeline([Node(passed, "a", "b")])
WRITES_MORE = Pipeline([Node(passed, "d", "e")])
BESIDE = Pipeline([Node(passed, "a", "b"), Node(passed, "b", "c")], tags="beside_others")
NOTHING: dict[str, Any] = {"run_params": {}, "pipeline": WRITES, "catalog": None}


class Refuses:
    @hook_impl(tryfirst=True)
    def before_pipeline_run(self) -> None:
        raise DataError("refused")


def hooks_of(project: Path, *others: object) -> Any:
    """Kedro's hooks as in a run of its own."""
    manager, lock = _create_hook_manager(), RunLockHook()
    lock.after_context_created(SimpleNamespace(project_path=project))
    for hook in (lock, *others):
        manager.register(hook)
    return manager.hook


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the project's lock."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "data/.run.lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_which_one_runs(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    host = socket.gethostname()
    who = rf"process {other.pid} on {host}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    message = rf"another run writes to {tmp_path}/data \({who}.*\): wait for it or stop it"
    with pytest.raises(DataError, match=message):
        hooks_of(tmp_path).before_pipeline_run(**NOTHING)


CACHING = register_pipelines()["soft_target_caching"]


def catalog_of_shard(index: int, count: int) -> DataCatalog:
    block = {"num_shards": count, "shard": index}
    return DataCatalog({"params:soft_target_caching": MemoryDataset(block)})


def test_shards_run_beside_each_other_and_beside_nothing_else(tmp_path: Path) -> None:
    def begin(pipeline: Pipeline, catalog: object) -> None:
        hooks_of(tmp_path).before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)

    kept = [hooks_of(tmp_path) for _ in range(2)]
    for index, hooks in enumerate(kept):
        catalog = catalog_of_shard(index, 3)
        hooks.before_pipeline_run(run_params={}, pipeline=CACHING, catalog=catalog)
    for refused in (catalog_of_shard(1, 3), catalog_of_shard(2, 4), catalog_of_shard(0, 1)):
        with pytest.raises(DataError, match=f"another run .*process {os.getpid()} on"):
            begin(CACHING, refused)
    with pytest.raises(DataError, match="another run"):
        begin(WRITES, None)
    begin(BESIDE, None)
    for hooks in kept:
        hooks.after_pipeline_run(run_params={}, run_result={}, pipeline=None, catalog=None)
    begin(WRITES, None)


def test_processes_that_train_run_beside_each_other_and_beside_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = register_pipelines()["teacher_training"]
    kept = [hooks_of(tmp_path) for _ in range(2)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, hooks in enumerate(kept):
        monkeypatch.setenv("RANK", str(rank))
        hooks.before_pipeline_run(run_params={}, pipeline=training, catalog=None)
    monkeypatch.delenv("WORLD_SIZE")
    labels: dict[str, Any] = {"pipeline": CACHING, "catalog": catalog_of_shard(0, 2)}
    for refused in (labels, {"pipeline": training, "catalog": None}):
        with pytest.raises(DataError, match="another run"):
            hooks_of(tmp_path).before_pipeline_run(run_params={}, **refused)


def test_shards_of_a_sweep_run_beside_each_other_and_not_beside_those_of_the_labelling(
    tmp_path: Path,
) -> None:
    def begin(kind: str, index: int, count: int) -> Any:
        catalog, hooks = catalog_of_shard(index, count), hooks_of(tmp_path)
        block = {"parameters": {"student.training.batch_size": {"choices": [16, 32]}}}
        shard = {"num_shards": count, "shard": index}
        catalog["params:sweep"] = MemoryDataset(block | shard)
        pipeline = register_pipelines()[kind]
        hooks.before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)
        return hooks

    kept = [begin("sweep", index, 4) for index in (0, 1)]
    for refused in (("sweep", 1, 4), ("sweep", 2, 3), ("soft_target_caching", 2, 4)):
        with pytest.raises(DataError, match="another run"):
            begin(*refused)
    for hooks in kept:
        hooks.after_pipeline_run(run_params={}, run_result={}, pipeline=None, catalog=None)
    held = begin("soft_target_caching", 2, 4)
    with pytest.raises(DataError, match="another run"):
        begin("sweep", 0, 4)
    held.after_pipeline_run(run_params={}, run_result={}, pipeline=None, catalog=None)


def test_another_project_is_free(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    hooks_of(tmp_path / "another").before_pipeline_run(**NOTHING)


def test_what_reads_and_writes_nothing_of_another_run_goes_on_beside_it(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    hooks_of(tmp_path).before_pipeline_run(**NOTHING | {"pipeline": BESIDE})
    assert register_pipelines()["compare_groups"].nodes[0].tags == BESIDE.nodes[0].tags
    with pytest.raises(DataError, match="another run"):
        hooks_of(tmp_path).before_pipeline_run(**NOTHING | {"pipeline": BESIDE + WRITES_MORE})


def test_a_killed_run_leaves_no_lock(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    hooks = hooks_of(tmp_path)
    hooks.before_pipeline_run(**NOTHING)
    with pytest.raises(DataError, match=f"process {os.getpid()} on"):
        take_lock(tmp_path / "data/.run.lock", busy="another run")
    hooks.after_pipeline_run(run_params={}, run_result={}, pipeline=None, catalog=None)


@pytest.mark.parametrize("end", ["after_pipeline_run", "on_pipeline_error"])
def test_the_next_run_is_free(end: str, tmp_path: Path) -> None:
    first, second = hooks_of(tmp_path), hooks_of(tmp_path)
    first.before_pipeline_run(**NOTHING)
    with pytest.raises(DataError, match="another run"):
        second.before_pipeline_run(**NOTHING)
    result = {"error": ValueError()} if end == "on_pipeline_error" else {"run_result": {}}
    getattr(first, end)(**NOTHING, **result)
    second.before_pipeline_run(**NOTHING)
    second.before_pipeline_run(**NOTHING)  # After an interrupt, in the same session.


def test_a_run_that_another_hook_refuses_is_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refused"):
        hooks_of(tmp_path, Refuses()).before_pipeline_run(**NOTHING)
    hooks_of(tmp_path).before_pipeline_run(**NOTHING)


def test_a_run_is_refused_before_any_other_check(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    """Another run may be writing what they read."""
    with pytest.raises(DataError, match="another run"):
        hooks_of(tmp_path, Refuses()).before_pipeline_run(**NOTHING)


def test_where_nothing_can_be_written_the_other_checks_say_so(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(DataError, match="refused"):
        hooks_of(tmp_path, Refuses()).before_pipeline_run(**NOTHING)
