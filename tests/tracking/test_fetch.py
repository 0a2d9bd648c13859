"""Teachers out of MLflow: our own checkpoints and ONNX are fetched, all else is refused."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from kd_pipeline.errors import CheckpointError
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint, read_checkpoint
from kd_pipeline.models.given import FetchedModel
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import GivenCheckpoint, GivenMlflow
from kd_pipeline.tracking.fetch import fetch_model, fetched
from kd_pipeline.tracking.fluent import fluent_uri
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.store import Store

NAMES = ("cat", "dog", "fox")


@pytest.fixture(scope="module")
def checkpoint() -> ModelCheckpoint:
    """Of another size than the images, so that the logged graph resizes."""
    arguments: dict[str, Any] = {"hidden": []}
    network = build_network("mlp", shape=(1, 6, 6), num_classes=3, arguments=arguments)
    preprocessing = Preprocessing((1, 6, 6), (0.5,), (0.25,))
    facts = {"image_shape": [1, 8, 8]}
    return ModelCheckpoint("mlp", arguments, NAMES, preprocessing, network.state_dict(), facts)


def test_our_own_logged_model_is_a_teacher_by_any_of_its_addresses(
    checkpoint: ModelCheckpoint,
    sender: Sender,
    store: Store,
    fetch_runs: Callable[[], dict[str, Any]],
) -> None:
    import mlflow

    sender.open_run("teacher-0", tags={"kd.group": "g"}, time_ms=1000)
    sender.log_model("teacher-0", content=checkpoint)
    run = fetch_runs()["teacher-0"]
    (output,) = run.outputs.model_outputs
    client = mlflow.MlflowClient(store.uri, registry_uri=store.uri)
    client.create_registered_model("teacher")
    source = client.get_logged_model(output.model_id).artifact_location
    version = client.create_model_version("teacher", source, run.info.run_id)
    client.set_registered_model_alias("teacher", "champion", version.version)
    for uri in (
        f"models:/{output.model_id}",
        f"models:/teacher/{version.version}",
        "models:/teacher@champion",
        f"runs:/{run.info.run_id}/model",
    ):
        given = [
            GivenCheckpoint(kind="checkpoint", folder="f"),
            GivenMlflow(kind="mlflow", uri=uri),
        ]
        with fetched(given, store) as (other, model):
            assert other is None
            assert model is not None
            assert (model.format, model.class_names) == ("checkpoint", NAMES)
            read = read_checkpoint(model.path)
        assert read.fingerprint == checkpoint.fingerprint
        assert read.facts == checkpoint.facts


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
    fetched_model = fetch_model_at(tmp_path / "saved", store, tmp_path)
    assert (fetched_model.format, fetched_model.class_names) == ("onnx", None)
    assert onnx.load(fetched_model.path) == model


def save(store: Store, folder: Path, flavor: str, **arguments: Any) -> None:
    with warnings.catch_warnings(), fluent_uri(store.uri):
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"mlflow.{flavor}")
        module.save_model(path=str(folder), pip_requirements=[], **arguments)


def fetch_model_at(folder: Path, store: Store, tmp_path: Path) -> FetchedModel:
    return fetch_model(folder.as_uri(), tmp_path / "fetched", store)


@pytest.mark.parametrize("serialization_format", ["pickle", "pt2"])
def test_other_formats_are_refused_with_advice_and_not_loaded(
    store: Store, tmp_path: Path, serialization_format: str
) -> None:
    model, example = torch.nn.Linear(2, 2), torch.zeros(2, 2).numpy()
    arguments = {"serialization_format": serialization_format, "input_example": example}
    save(store, tmp_path / "saved", "pytorch", pytorch_model=model, **arguments)
    with pytest.raises(CheckpointError, match="must be ONNX or one that this project has") as error:
        fetch_model_at(tmp_path / "saved", store, tmp_path)
    assert "give it as ONNX, or as an architecture with a state dict" in str(error.value)


def test_a_model_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"models:/missing/1 cannot be fetched from sqlite"):
        fetch_model("models:/missing/1", tmp_path, store)


def test_a_graph_is_not_logged_and_said(
    sender: Sender, fetch_runs: Callable[[], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = ModelCheckpoint("onnx", {}, NAMES, Preprocessing((1, 1, 1), (0.0,), (1.0,)), {})
    sender.open_run("teacher-0", tags={"kd.group": "g"}, time_ms=1000)
    with caplog.at_level("INFO", logger="kd_pipeline"):
        sender.log_model("teacher-0", content=teacher)
    assert "onnx is not logged as an MLflow model" in caplog.text
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
    sender.open_run("teacher-0", tags={"kd.group": "g"}, time_ms=1000)
    with caplog.at_level("INFO", logger="kd_pipeline"):
        sender.log_model("teacher-0", content=teacher)
    assert "torch.export cannot trace it" in caplog.text
    assert not fetch_runs()["teacher-0"].outputs.model_outputs


def test_a_store_that_answers_slowly_is_refused_with_the_setting(
    slow_store: Store, tmp_path: Path
) -> None:
    message = "more than 0.05 s, as long as `mlflow.max_wait_seconds` allows"
    with pytest.raises(CheckpointError, match=message):
        fetch_model("models:/teacher/1", tmp_path, slow_store)
