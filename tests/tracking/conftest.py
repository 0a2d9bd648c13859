"""One database for all tests: making it takes seconds; each test has an experiment of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.runs import RunBook
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store
from kd_pipeline.tracking.unsent import Unsent


@pytest.fixture(scope="session")
def tracked_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked_project")


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def store(tracked_project: Path, request: pytest.FixtureRequest) -> Store:
    return locate_store(tracked_project, MLflowParams(experiment=request.node.nodeid))


@pytest.fixture
def sender(store: Store) -> Sender:
    return Sender(store)


@pytest.fixture
def begin_book(store: Store, tmp_path: Path) -> Iterator[Callable[..., RunBook]]:
    """Makes run books as hooks do, one per "Kedro run", all on one experiment."""
    journals: list[Journal] = []

    def begin(group: str, *, to: Store = store) -> RunBook:
        journal = Journal(Sender(to), Unsent(tmp_path / f"unsent-{group}.jsonl", to))
        journals.append(journal)
        return RunBook(journal, {"kd.pipeline": "distill", "kd.group": group})

    yield begin
    for journal in journals:
        journal.close()


@pytest.fixture
def fetch_runs(store: Store) -> Callable[[], dict[str, Any]]:
    """All runs of the test's experiment, by name."""

    def fetch() -> dict[str, Any]:
        import mlflow

        client = mlflow.MlflowClient(store.uri)
        experiment = client.get_experiment_by_name(store.experiment)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        return {run.info.run_name: run for run in runs}

    return fetch


@pytest.fixture(scope="session")
def onnx_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of three classes: uint8 pixels [batch, 3, 6, 8] to logits."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    weights = np.random.default_rng(0).normal(0, 1e-3, (3 * 6 * 8, 3)).astype(np.float32)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, 6, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    constants = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "student", [pixels], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.fixture(scope="session")
def student_card() -> dict[str, Any]:
    """The card of `onnx_student`."""
    return {
        "student": "student_kd",
        "class_names": ["cat", "dog", "fox"],
        "input_shape": [3, 6, 8],
        "checkpoint": "abc",
        "group": "monday",
        "test_fingerprint": "t1",
    }
