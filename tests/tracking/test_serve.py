"""The scoring server: answers are those of onnxruntime, rubbish gets a status and a message."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from kd_pipeline.tracking import serve
from kd_pipeline.tracking.registry import register_student
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store

Ask: TypeAlias = Callable[[Any], tuple[int, str]]
"""Posts a body, as JSON unless it is bytes; gives status and answer."""

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS.transpose(1, 2, 0))
NAMES = ["cat", "dog", "fox"]


def file(kind: str) -> bytes:
    IMAGE.save(content := io.BytesIO(), kind)
    return content.getvalue()


def records(*images: Any) -> dict[str, Any]:
    texts = [base64.b64encode(i).decode() if isinstance(i, bytes) else i for i in images]
    return {"dataframe_records": [{"image": image} for image in texts]}


RUBBISH: dict[str, tuple[Any, int, str]] = {
    "truncated file": (records(file("PNG")[:-40]), 400, "`image` of row 0 must be a whole PNG or"),
    "second row": (records(file("PNG"), file("JPEG")[:-40]), 400, "`image` of row 1 must be a who"),
    "other format": (records(file("GIF")), 400, "must be a PNG or JPEG file, got"),
    "no base64": (records("cat.png"), 400, "must be base64, got 'cat.png'"),
    "wrong shape": (records(PIXELS[:, :4].tolist()), 400, "of [3, 6, 8], got [3, 4, 8]"),
    "wrong range": (records((PIXELS / 255).tolist()), 400, "must hold whole numbers from 0 to 255"),
    "null": (records(None), 400, "in base64, or an array of pixels, got NoneType"),
    "texts in one row": ({"inputs": {"image": ["a", "b"]}}, 400, "must be an array [channels, hei"),
    "unknown column": ({"dataframe_records": [{"img": "a"}]}, 400, "extra inputs: ['img']"),
    "no row": ({"dataframe_records": []}, 400, "missing inputs ['image']"),
    "no JSON": (b"{not JSON", 400, "valid JSON formatted string"),
    "no text": (b"\xff\xfe\x00", 400, "valid JSON formatted string"),
    "no dictionary": ([1, 2], 400, "Received a list"),
    "no input": ({"pictures": []}, 400, "exactly one of the input fields"),
}


@pytest.fixture(scope="module")
def served_store(
    tmp_path_factory: pytest.TempPathFactory, onnx_student: Path, student_card: dict[str, Any]
) -> Iterator[Store]:
    """A project whose champion is `onnx_student`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # MLflow would leave it set.
        store = locate_store(tmp_path_factory.mktemp("served"), MLflowParams())
        registered = register_student(
            store,
            onnx_file=onnx_student,
            card=student_card,
            predictions=pd.DataFrame({"example_id": [1], "label": [0], "predicted": [0]}),
            paired_interval=lambda *_: (0.0, 0.0),
        )
        assert registered.is_champion
        yield store


@pytest.fixture(scope="module")
def ask(served_store: Store) -> Iterator[Ask]:
    """MLflow's application, without a socket."""
    from fastapi.testclient import TestClient

    with TestClient(serve.make_app(served_store)) as client:

        def post(body: Any) -> tuple[int, str]:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            answer = client.post("/invocations", content=content, headers=headers)
            return answer.status_code, answer.text

        yield post


@pytest.fixture(scope="module")
def expected(onnx_student: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Softmax of onnxruntime's logits, of pixels [batch, 3, 6, 8]."""
    session = onnxruntime.InferenceSession(onnx_student)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        (logits,) = session.run(None, {"pixels": pixels})
        powers = np.exp(logits.astype(np.float64))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    return probabilities


def check(answer: tuple[int, str], probabilities: np.ndarray) -> None:
    status, body = answer
    assert status == 200, body
    rows = json.loads(body)["predictions"]
    assert len(rows) == len(probabilities)
    for row, expected_row in zip(rows, probabilities, strict=True):
        assert list(row["probabilities"]) == NAMES
        np.testing.assert_allclose(list(row["probabilities"].values()), expected_row, atol=1e-6)
        best = int(expected_row.argmax())
        assert row["class_name"] == NAMES[best]
        assert row["probability"] == row["probabilities"][NAMES[best]]


def test_files_and_arrays_get_the_probabilities_of_onnxruntime(
    ask: Ask, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    array, png, jpeg = PIXELS.tolist(), file("PNG"), file("JPEG")
    lossy = np.asarray(Image.open(io.BytesIO(jpeg))).transpose(2, 0, 1)
    batch = expected(np.stack([PIXELS, PIXELS, lossy]))
    check(ask(records(png, array, jpeg)), batch)
    check(ask({"instances": [{"image": array}, {"image": array}]}), batch[:2])
    text = base64.b64encode(png).decode()
    check(ask({"instances": [{"image": text}]}), batch[:1])
    check(ask({"dataframe_split": {"columns": ["image"], "data": [[text]]}}), batch[:1])
    assert not np.allclose(batch[0], batch[2], atol=1e-6)


def test_many_images_are_answered_in_their_order(
    ask: Ask, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    """More than one batch of onnxruntime's."""
    images = np.random.default_rng(1).integers(0, 256, (150, 3, 6, 8), dtype=np.uint8)
    check(ask(records(*images.tolist())), expected(images))


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_gets_a_status_and_a_message(ask: Ask, name: str) -> None:
    body, status, message = RUBBISH[name]
    got_status, answer = ask(body)
    assert got_status == status
    assert message in json.loads(answer)["message"]


def test_a_large_body_is_refused_in_a_few_words(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(records(PIXELS.tolist())).encode()
    monkeypatch.setattr(serve, "MAX_BODY_BYTES", len(body))
    assert ask(body)[0] == 200
    status, answer = ask(body + b" ")
    assert status == 413
    message = f"a request must have at most {len(body)} bytes, got {len(body) + 1}"
    assert json.loads(answer)["message"] == message


def test_the_example_and_the_signature_lie_with_the_model(
    ask: Ask, served_store: Store, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    import mlflow

    from kd_pipeline.tracking.fluent import fluent_uri

    with fluent_uri(served_store.uri):
        folder = Path(mlflow.artifacts.download_artifacts("models:/student@champion"))
    model = mlflow.models.Model.load(folder)
    assert model.signature.inputs.input_names() == ["image"]
    assert model.signature.outputs.input_names() == ["class_name", "probability", "probabilities"]
    example = json.loads((folder / "serving_input_example.json").read_text())
    ramp = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (3, 6, 1))
    check(ask(example), expected(ramp[None]))


def test_without_a_champion_it_says_what_to_do(
    tracked_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["--project", str(tracked_project), "--name", "missing"]) == 1
    message = capsys.readouterr().err
    assert "`missing` has no version with the alias `champion` in MLflow at sqlite" in message
    assert "`kedro run --pipelines=model_export` registers one" in message


def test_a_store_that_is_away_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert serve.main(["--project", str(tmp_path)]) == 1
    assert "MLflow at http://127.0.0.1:9 cannot be reached: " in capsys.readouterr().err


LOAD = """
import sys, mlflow
for name in ("kd_pipeline", "torch", "torchvision"):
    sys.modules[name] = None  # an import of it now fails
import mlflow.pyfunc, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/student@champion")
print(model.predict(pd.DataFrame({"image": [sys.argv[2]]})).to_json(orient="records"))
"""


@pytest.mark.long
def test_the_champion_predicts_in_a_process_without_this_project_and_without_torch(
    served_store: Store, expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    image = base64.b64encode(file("PNG")).decode()
    command = [sys.executable, "-c", LOAD, served_store.uri, image]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    np.testing.assert_allclose(
        list(row["probabilities"].values()), expected(PIXELS[None])[0], atol=1e-6
    )


@pytest.mark.long
def test_the_real_server_outlives_rubbish(
    served_store: Store, expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    project = Path(served_store.uri.removeprefix("sqlite:///")).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", serve.__name__, "--project", str(project)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], stderr=log, stdout=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)

        def post(body: Any) -> tuple[int, str]:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return send(f"http://127.0.0.1:{port}/invocations", content)

        good = expected(PIXELS[None])
        check(post(records(file("PNG"))), good)
        for body, status, message in RUBBISH.values():
            got_status, answer = post(body)
            assert (got_status, message in json.loads(answer)["message"]) == (status, True)
        for large in (bytes(100_000_000), records("A" * 100_000_000)):
            status, answer = post(large)
            assert (status, len(answer) < 200) == (413, True)
            assert "must have at most 32000000 bytes" in answer
        assert server.poll() is None
        check(post(records(PIXELS.tolist())), good)
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            assert server.poll() is None
            time.sleep(0.2)
    raise TimeoutError(url)


def send(url: str, content: bytes) -> tuple[int, str]:
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
