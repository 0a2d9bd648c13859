"""A run with its data on object storage: what is fetched, what is sent, what is refused before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro_datasets.text import TextDataset

from kd_pipeline.datasets.folder import FolderDataset
from kd_pipeline.datasets.training_states import TrainingStatesDataset
from kd_pipeline.errors import DataError, ObjectStorageError, SettingsError
from kd_pipeline.hooks.object_storage_hook import ObjectStorageHook

FOLDERS = {"data": "s3://bucket/one", "data/models": "s3://bucket/two"}


def shout(text: str, states: object, export: Path) -> str:
    return text.upper()


NODE = Node(shout, ["text", "states", "export"], "shouted")
PIPELINE = Pipeline([NODE])


def catalog_of(project: Path) -> DataCatalog:
    data = project / "data"
    return DataCatalog(
        {
            "text": TextDataset(filepath=str(data / "text.txt")),
            "shouted": TextDataset(filepath=str(data / "models/shouted.txt")),
            "states": TrainingStatesDataset(filepath=str(data / "states")),
            "export": FolderDataset(
                filepath=str(data / "export"), metadata={"filled_by_nodes": True}
            ),
        }
    )


def hook_of(project: Path, given: dict[str, Any] | None = None) -> ObjectStorageHook:
    settings = {"folders": FOLDERS, "max_wait_seconds": 1} if given is None else given
    hook = ObjectStorageHook()
    hook.after_context_created(
        SimpleNamespace(project_path=project, config_loader={"object_storage": settings})
    )
    return hook


def run(project: Path) -> DataCatalog:
    """As Kedro runs the one node."""
    hook, catalog = hook_of(project), catalog_of(project)
    hook.before_pipeline_run(PIPELINE, catalog)
    catalog.load("states").save("key", {"epoch": 1})
    export = catalog.load("export")
    (export / "student").mkdir(parents=True, exist_ok=True)
    (export / "student/model.onnx").write_text("onnx")
    catalog.save("shouted", shout(catalog.load("text"), None, export))
    hook.after_node_run(NODE)
    hook.after_dataset_saved("shouted")
    return catalog


def test_another_checkout_has_what_a_run_read_made_and_was_given_to_fill(
    tmp_path: Path, object_server: Any
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "data").mkdir(parents=True)
    (one / "data/text.txt").write_text("hello")
    run(one)
    assert object_server.objects["one/text.txt"] == b"hello"
    assert object_server.objects["two/shouted.txt"] == b"HELLO"
    hook, catalog = hook_of(other), catalog_of(other)
    hook.before_pipeline_run(PIPELINE, catalog)
    assert catalog.load("text") == "hello"
    assert catalog.load("states").load("key") == {"epoch": 1}
    assert (catalog.load("export") / "student/model.onnx").read_text() == "onnx"
    catalog.load("states").clear()
    assert not [name for name in object_server.objects if name.startswith("one/states")]


def test_an_input_that_changed_there_is_fetched_anew(tmp_path: Path, object_server: Any) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for project in (one, other):
        (project / "data").mkdir(parents=True)
    (one / "data/text.txt").write_text("hello")
    run(one)
    assert run(other).load("shouted") == "HELLO"
    (one / "data/text.txt").write_text("goodbye")
    hook, catalog = hook_of(one), catalog_of(one)
    hook.before_pipeline_run(Pipeline([]), catalog)
    hook.after_dataset_saved("text")
    assert run(other).load("shouted") == "GOODBYE"


def test_an_unfinished_input_ends_the_run_before_its_first_node(
    tmp_path: Path, object_server: Any
) -> None:
    object_server.objects["one/text.txt"] = b"hello"
    with pytest.raises(ObjectStorageError, match=r"s3://bucket/one/text\.txt is unfinished there"):
        hook_of(tmp_path).before_pipeline_run(PIPELINE, catalog_of(tmp_path))
    assert not (tmp_path / "data/text.txt").exists()


def test_a_store_that_cannot_be_used_ends_the_run_before_its_first_node(
    tmp_path: Path, object_server: Any
) -> None:
    object_server.refusal = "NoSuchBucket"
    with pytest.raises(ObjectStorageError, match="the bucket is not there"):
        hook_of(tmp_path).before_pipeline_run(PIPELINE, catalog_of(tmp_path))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, object_server: Any) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(DataError, match="must be writable"):
        hook_of(tmp_path).before_pipeline_run(PIPELINE, catalog_of(tmp_path))


def test_without_a_folder_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    hook, catalog = hook_of(tmp_path, {}), catalog_of(tmp_path)
    hook.before_pipeline_run(PIPELINE, catalog)
    hook.after_node_run(NODE)
    hook.after_dataset_saved("shouted")
    assert catalog.get("states").mirror is None
    assert not list(tmp_path.iterdir())


def test_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`object_storage.folder` is not a setting; did you"):
        hook_of(tmp_path, {"folder": {}})
    with pytest.raises(SettingsError, match=r"`object_storage.folders` must have s3://<bucket>/"):
        hook_of(tmp_path, {"folders": {"data": "gs://bucket/x"}})


def test_processes_that_train_together_have_their_data_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    trains = Pipeline([Node(shout, ["text", "states", "export"], "teacher.checkpoints")])
    with pytest.raises(SettingsError, match=r"`object_storage\.folders` must be empty"):
        hook_of(tmp_path).before_pipeline_run(trains, catalog_of(tmp_path))
