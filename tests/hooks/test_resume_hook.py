"""States of earlier trainings are removed after new checkpoints are saved, and not before."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kd_pipeline.datasets.training_states import TrainingStatesDataset
from kd_pipeline.hooks.resume_hook import ResumeHook
from kd_pipeline.pipeline_registry import register_pipelines

TRAINS = SimpleNamespace(inputs=["images", "student_kd.training_states"])


def test_states_go_when_the_checkpoints_of_their_namespace_are_saved(tmp_path: Path) -> None:
    entry = "student_kd.training_states"
    catalog = DataCatalog({entry: TrainingStatesDataset(filepath=str(tmp_path / "states"))})
    states = catalog.load(entry)
    hook = ResumeHook()
    hook.before_pipeline_run(Pipeline([]), catalog)
    for key in ("earlier", "read", "written"):
        states.save(key, {"epoch": 3})
        os.utime(tmp_path / "states" / key, (0, 0))
    hook.before_node_run()
    states.load("read")
    states.save("written", {"epoch": 4})
    hook.after_dataset_saved("student_kd.history", TRAINS)
    hook.after_dataset_saved("student_pseudo.checkpoints", TRAINS)
    assert len(list((tmp_path / "states").iterdir())) == 3
    hook.after_dataset_saved("student_kd.checkpoints", TRAINS)
    assert states.load("earlier") is None
    assert states.load("read") == {"epoch": 3}
    assert states.load("written") == {"epoch": 4}


def test_of_several_processes_the_first_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the others the checkpoints are in memory alone."""
    entry = "student_kd.training_states"
    catalog = DataCatalog({entry: TrainingStatesDataset(filepath=str(tmp_path / "states"))})
    catalog.load(entry).save("key", {"epoch": 3})
    os.utime(tmp_path / "states/key", (0, 0))
    hook, training = ResumeHook(), register_pipelines()["student_distillation"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        hook.before_pipeline_run(training, catalog)
        hook.before_node_run()
        hook.after_dataset_saved("student_kd.checkpoints", TRAINS)
        assert (tmp_path / "states/key").exists() == (rank == "1")
