"""States of interrupted trainings are removed after their checkpoints are saved, and not before."""

from pathlib import Path
from types import SimpleNamespace

from kedro.io import DataCatalog

from kd_pipeline.datasets.training_states import TrainingStatesDataset
from kd_pipeline.hooks.resume_hook import ResumeHook

TRAINS = SimpleNamespace(inputs=["images", "student_kd.training_states"])


def test_states_go_when_the_checkpoints_of_their_namespace_are_saved(tmp_path: Path) -> None:
    entry = "student_kd.training_states"
    catalog = DataCatalog({entry: TrainingStatesDataset(filepath=str(tmp_path / "states"))})
    states = catalog.load(entry)
    hook = ResumeHook()
    hook.before_pipeline_run(catalog)
    states.save("key", {"epoch": 3})
    hook.after_dataset_saved("student_kd.history", TRAINS)
    hook.after_dataset_saved("student_pseudo.checkpoints", TRAINS)
    assert states.load("key") == {"epoch": 3}
    hook.after_dataset_saved("student_kd.checkpoints", TRAINS)
    assert states.load("key") is None
