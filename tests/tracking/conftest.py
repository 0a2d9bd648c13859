"""One database for all tests: making it takes seconds; each test has an experiment of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.runs import SOFT_TARGETS, RunBook
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams, Models
from kd_pipeline.tracking.store import Store, locate_store, open_client
from kd_pipeline.tracking.unsent import Unsent


@pytest.fixture(scope="session")
def tracked_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked_project")


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def store(tracked_project: Path, request: pytest.FixtureRequest) -> Store:
    params = MLflowParams(experiment=request.node.nodeid, max_wait_seconds=600)
    return locate_store(tracked_project, params)


@pytest.fixture
def sender(store: Store) -> Sender:
    return Sender(store)


@pytest.fixture
def begin_book(store: Store, tmp_path: Path) -> Iterator[Callable[..., RunBook]]:
    """Makes run books as hooks do, one per "Kedro run", all on one experiment."""
    journals: list[Journal] = []

    def begin(
        group: str, *, to: Store = store, models: Models = "best", stage: str = SOFT_TARGETS
    ) -> RunBook:
        unsent = Unsent(tmp_path / f"unsent-{group}.jsonl", to)
        journal = Journal(Sender(to), unsent, max_wait_seconds=60)
        journals.append(journal)
        tags = {"kd.pipeline": "distill", "kd.group": group}
        return RunBook(journal, tags, models=models, stage=stage)

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


class KilledError(BaseException):
    """As a kill: nothing of this project catches it."""


class ClientThatDies:
    """MLflow's client until its n-th call, which is carried out and never returns."""

    def __init__(self, client: Any, num_calls: int) -> None:
        self._client, self._left = client, num_calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = getattr(self._client, name)(*arguments, **named)
            self._left -= 1
            if self._left == 0:
                raise KilledError
            return answer

        return call


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], type[BaseException]]:
    """Lets the next sender die at its n-th call of MLflow, 0 for never; with which error."""

    def dies_after(num_calls: int) -> type[BaseException]:
        def open_dying(opened: Store) -> Any:
            return ClientThatDies(open_client(opened), num_calls)

        monkeypatch.setattr("kd_pipeline.tracking.sender.open_client", open_dying)
        return KilledError

    return dies_after


class Server(ThreadingHTTPServer):
    """The few answers of a tracking server that runs need, as slow as asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.delay, self.is_away = 0.0, False
        self.runs: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.query = self.authorization = ""
        self.uri = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        if path.startswith("experiments/"):
            return {"experiment": {"experiment_id": "1", "name": "e"}}
        if path == "runs/search":
            names = {f"'{run['info']['run_name']}'": run for run in self.runs}
            return {"runs": [run for name, run in names.items() if name in sent["filter"]]}
        if path == "runs/create":
            info = {"run_id": f"{len(self.runs):032x}", "experiment_id": "1", "status": "RUNNING"}
            info |= {"run_name": sent["run_name"], "artifact_uri": "mlflow-artifacts:/1"}
            self.runs.append({"info": info, "data": {"tags": sent["tags"]}})
            return {"run": self.runs[-1]}
        return {}


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        path, _, self.server.query = self.path.partition("/mlflow/")[2].partition("?")
        time.sleep(self.server.delay)
        status = 503 if self.server.is_away else 200
        answer = b"" if self.server.is_away else json.dumps(self.server.answer(path, sent)).encode()
        self.server.calls.append(path)
        self.server.authorization = self.headers.get("Authorization", "")
        with suppress(OSError):  # Who asked may have gone.
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def slow_store(server: Server) -> Iterator[Store]:
    """Answers after half a second that it is away; it is waited for a tenth of that."""
    server.delay, server.is_away = 0.5, True
    yield Store(server.uri, "e", None, max_wait_seconds=0.05)
    for thread in threading.enumerate():
        if thread.name == "mlflow-within":
            thread.join()


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
