"""What is refused before a run costs anything."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from kd_pipeline.datasets.soft_targets import SoftTargetsDataset
from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.hooks.guard_hook import GuardHook, check_runner, check_writable

THREADS = "<kedro.runner.thread_runner.ThreadRunner object at 0x7f>"
SEQUENTIAL = "<kedro.runner.sequential_runner.SequentialRunner object at 0x7f>"


def same(data: object) -> object:
    return data


TRAINS = Pipeline([Node(same, "images", "checkpoints", name="train")], namespace="teacher")
TEACHER = {"model": {"name": "mlp"}, "training": {"num_epochs": 1}}
INGESTS = Pipeline([Node(same, "source", "images", name="ingest")])


@pytest.fixture
def catalog() -> DataCatalog:
    return DataCatalog({"params:teacher": MemoryDataset(TEACHER)})


@pytest.fixture
def hook(tmp_path: Path) -> GuardHook:
    hook = GuardHook()
    hook.after_context_created(
        SimpleNamespace(project_path=tmp_path, config_loader={"parameters": {}})
    )
    return hook


def test_a_missing_data_folder_is_made_and_left_empty(
    hook: GuardHook, catalog: DataCatalog, tmp_path: Path
) -> None:
    hook.before_pipeline_run({"runner": "None"}, TRAINS, catalog)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_in_the_way_is_refused(hook: GuardHook, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match=rf"the data folder {tmp_path}/data must be writable"):
        hook.before_pipeline_run({"runner": "None"}, INGESTS, DataCatalog())


def test_a_read_only_folder_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(DataError, match=rf"{tmp_path} must be writable: Read-only file system"):
        check_writable(tmp_path)


def test_runners_that_change_results_are_refused_where_something_trains(
    hook: GuardHook, catalog: DataCatalog
) -> None:
    with pytest.raises(ParameterError, match=r"`runner` must be SequentialRunner.*ThreadRunner"):
        hook.before_pipeline_run({"runner": THREADS}, TRAINS, catalog)
    hook.before_pipeline_run({"runner": SEQUENTIAL}, TRAINS, catalog)
    hook.before_pipeline_run({"runner": THREADS}, INGESTS, DataCatalog())


@pytest.mark.parametrize("name", ["ThreadRunner", "ParallelRunner"])
def test_kedro_still_names_runners_as_the_check_expects(name: str) -> None:
    from kedro import runner

    check_runner(str(runner.SequentialRunner()))
    with pytest.raises(ParameterError, match=name):
        check_runner(str(getattr(runner, name)()))


def test_a_folder_of_outputs_that_cannot_be_written_is_refused_before_any_node(
    hook: GuardHook, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/05_model_input").write_text("in the way")
    store = SoftTargetsDataset(filepath=str(tmp_path / "data/05_model_input/soft_targets"))
    with pytest.raises(DataError, match="data/05_model_input must be writable"):
        hook.before_pipeline_run({"runner": "None"}, INGESTS, DataCatalog({"images": store}))
