"""Teachers out of MLflow: graphs are fetched, pickles are refused."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.given import ImagesAtHand, read_given
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.tracking import store as store_module
from kd_pipeline.tracking.fetch import fetch_model, fetched
from kd_pipeline.tracking.models import fluent_uri
from kd_pipeline.tracking.operations import LogModel, OpenRun
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store, remember_store
from kd_pipeline.training.block_settings import TeacherParams

NAMES = ("cat", "dog", "fox")
PIXELS = torch.randint(
    0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
IMAGES = ImagesAtHand(("dog", "fox", "cat"), (1, 8, 8), PIXELS)


@pytest.fixture(autouse=True)
def project(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store_module, "_project_store", None)
    remember_store(store)
    yield


@pytest.fixture(scope="module")
def checkpoint() -> ModelCheckpoint:
    """Of another size than the images, so that the logged graph resizes."""
    classifier = build_untrained(
        architecture="mlp",
        arguments={"hidden": []},
        preprocessing=Preprocessing((1, 6, 6), (0.5,), (0.25,)),
        num_classes=3,
        seed=1,
    )
    facts = {"image_shape": [1, 8, 8]}
    return snapshot(
        classifier, architecture="mlp", arguments={"hidden": []}, class_names=NAMES, facts=facts
    )


def logits_of(checkpoint: ModelCheckpoint) -> torch.Tensor:
    with torch.inference_mode():
        return build_classifier(checkpoint)(PIXELS)


def entry(uri: str, **settings: Any) -> dict[str, Any]:
    params = TeacherParams.model_validate({"given": [{"kind": "mlflow", "uri": uri, **settings}]})
    dumped: dict[str, Any] = params.model_dump(mode="json")["given"][0]
    return dumped


def test_our_own_logged_model_is_a_teacher_by_any_of_its_addresses(
    checkpoint: ModelCheckpoint,
    sender: Sender,
    store: Store,
    fetch_runs: Callable[[], dict[str, Any]],
) -> None:
    import mlflow

    sender.send(OpenRun("teacher-0", {}))
    sender.send(LogModel("teacher-0", checkpoint))
    run = fetch_runs()["teacher-0"]
    (output,) = run.outputs.model_outputs
    client = mlflow.MlflowClient(store.uri, registry_uri=store.uri)
    client.create_registered_model("teacher")
    source = client.get_logged_model(output.model_id).artifact_location
    version = client.create_model_version("teacher", source, run.info.run_id)
    client.set_registered_model_alias("teacher", "champion", version.version)
    expected = logits_of(checkpoint)[:, [1, 2, 0]]
    for uri in (
        f"models:/{output.model_id}",
        f"models:/teacher/{version.version}",
        "models:/teacher@champion",
        f"runs:/{run.info.run_id}/model",
    ):
        with fetched([entry(uri)]) as given:
            read = read_given(given[0], IMAGES, name="teacher.given[0]")
        assert read.class_names == IMAGES.class_names
        torch.testing.assert_close(logits_of(read), expected, rtol=1e-4, atol=1e-5)


def test_an_onnx_model_is_a_teacher(store: Store, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["logits"]),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("from", 0), ("to", 3), ("axis", 1))
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "net", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(store, tmp_path / "saved", "onnx", onnx_model=model)
    fetched_model = fetch_model_at(tmp_path / "saved", tmp_path)
    assert fetched_model["format"] == "onnx"
    assert onnx.load(fetched_model["file"]) == model
    setting = entry(
        "models:/x/1", class_names=list(NAMES), preprocessing={"mean": [0.0], "std": [1.0]}
    )
    read = read_given({**setting, "model": fetched_model}, IMAGES, name="teacher.given[0]")
    expected = PIXELS.flatten(1)[:, [1, 2, 0]].float() / 255
    torch.testing.assert_close(logits_of(read), expected)


def save(store: Store, folder: Path, flavor: str, **arguments: Any) -> None:
    import importlib

    with warnings.catch_warnings(), fluent_uri(store.uri):
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"mlflow.{flavor}")
        module.save_model(path=str(folder), pip_requirements=[], **arguments)


def fetch_model_at(folder: Path, tmp_path: Path) -> dict[str, Any]:
    target = tmp_path / "fetched"
    target.mkdir()
    return fetch_model(folder.as_uri(), target)


def test_a_pickled_model_is_refused_and_not_loaded(store: Store, tmp_path: Path) -> None:
    save(
        store,
        tmp_path / "saved",
        "pytorch",
        pytorch_model=torch.nn.Linear(2, 2),
        serialization_format="pickle",
    )
    with pytest.raises(CheckpointError, match="as a pickle, which is never loaded"):
        fetch_model_at(tmp_path / "saved", tmp_path)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"models:/nobody/1 cannot be fetched from sqlite"):
        fetch_model("models:/nobody/1", tmp_path)


def test_other_kinds_pass_through_untouched() -> None:
    given = [{"kind": "checkpoint", "folder": "f"}]
    with fetched(given) as entries:
        assert entries == given


@pytest.mark.parametrize("architecture", ["imported_logits", "onnx", "exported_program"])
def test_what_cannot_be_exported_is_not_logged_and_said(
    architecture: str,
    sender: Sender,
    fetch_runs: Callable[[], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = ModelCheckpoint(architecture, {}, NAMES, Preprocessing((1, 1, 1), (0.0,), (1.0,)), {})
    sender.send(OpenRun("teacher-0", {}))
    with caplog.at_level("INFO", logger="kd_pipeline"):
        sender.send(LogModel("teacher-0", teacher))
    assert f"{architecture} is not logged as an MLflow model" in caplog.text
    assert not fetch_runs()["teacher-0"].outputs.model_outputs


def test_a_users_network_that_cannot_be_traced_is_not_logged_and_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sender: Sender,
    fetch_runs: Callable[[], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "untraceable.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1)[:, :3] if x.sum().item() > 0 else x.flatten(1)[:, 3:6]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    preprocessing = Preprocessing((1, 8, 8), (0.0,), (1.0,))
    teacher = ModelCheckpoint("module:untraceable:Net", {}, NAMES, preprocessing, {})
    sender.send(OpenRun("teacher-0", {}))
    with caplog.at_level("INFO", logger="kd_pipeline"):
        sender.send(LogModel("teacher-0", teacher))
    assert "torch.export cannot trace it" in caplog.text
    assert not fetch_runs()["teacher-0"].outputs.model_outputs
