"""A real tracking server, MLflow on PostgreSQL with an artefact proxy, is killed in the middle."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

NUM_PROCESSES, RUNS_EACH, NUM_EPOCHS = 4, 50, 3
NUM_RUNS = NUM_PROCESSES * RUNS_EACH
SENDER = """
import sys
from pathlib import Path

from kd_pipeline.events import EpochEnded, TrainingEnded, TrainingStarted
from kd_pipeline.tracking.journal import Journal
from kd_pipeline.tracking.runs import RunBook
from kd_pipeline.tracking.sender import Sender
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import locate_store
from kd_pipeline.tracking.unsent import Unsent

project, group, num_runs, num_epochs = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
store = locate_store(project, MLflowParams())
unsent = Unsent(project / f"data/09_tracking/unsent-{group}.jsonl", store)
journal = Journal(Sender(store), unsent, max_wait_seconds=300)
book = RunBook(journal, {"kd.group": group, "kd.pipeline": "distill"}, models="none")
journal.start()
for replicate in range(num_runs):
    parameters = {"group": group, "replicate": replicate, "temperature": 4.0}
    book.training_started("student", TrainingStarted(replicate, parameters, num_epochs), [])
    for epoch in range(1, num_epochs + 1):
        metrics = {"train/loss": replicate / epoch, "validation/accuracy": epoch / num_epochs}
        book.epoch_ended("student", EpochEnded(replicate, epoch, metrics))
    costs = {"cost/train_seconds": 1.0}
    journal.put(
        Sender.log_artifact, f"student-{replicate}",
        path="export/about.txt", content=f"{group} {replicate}".encode(),
    )
    book.training_ended("student", TrainingEnded(replicate, f"{group}-{replicate}", costs))
print("measured", flush=True)
sys.stdin.readline()
book.end("FINISHED")
"""


@contextmanager
def mlflow_server(database: str, artifacts: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`mlflow server`, answering; killed at the end with all of its processes."""
    command = ["mlflow", "server", "--backend-store-uri", database, "--serve-artifacts"]
    command += ["--artifacts-destination", str(artifacts), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (artifacts.parent / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def is_up(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
        return True
    return False


def count(database: str, table: str) -> int:
    import psycopg

    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_four_processes_and_a_killed_server_leave_each_run_once(
    database: str,
    free_port: Callable[[], int],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    port, artifacts = free_port(), tmp_path / "artifacts"
    uri = f"http://127.0.0.1:{port}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    artifacts.mkdir()
    senders: list[subprocess.Popen[str]] = []
    pipe = subprocess.PIPE
    try:
        with mlflow_server(database, artifacts, port):
            wait_until(lambda: is_up(port), what="the start of MLflow")
            for group in range(NUM_PROCESSES):
                sizes = [str(RUNS_EACH), str(NUM_EPOCHS)]
                command = [sys.executable, "-c", SENDER, str(tmp_path), f"group-{group}", *sizes]
                senders.append(
                    subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe)
                )
            wait_until(lambda: count(database, "runs") >= NUM_RUNS // 3, what="a third of the runs")
        in_the_middle = count(database, "runs")
        assert in_the_middle < NUM_RUNS, "all was sent before the server was killed"
        # Two processes end while the server is away: what they could not send is on disk.
        for sender in senders[:2]:
            sender.communicate("\n")
        waiting = list((tmp_path / "data/09_tracking").glob("unsent-*.jsonl"))
        assert len(waiting) >= 2
        with mlflow_server(database, artifacts, port):
            wait_until(lambda: is_up(port), what="the second start of MLflow")
            for sender in senders[2:]:
                sender.communicate("\n")
            assert [sender.returncode for sender in senders] == [0] * NUM_PROCESSES
            command = [sys.executable, "-m", "kd_pipeline.tracking", "--project", str(tmp_path)]
            later = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            assert later.returncode == 0, later.stdout + later.stderr
            assert len(re.findall(r"[1-9]\d* operations sent", later.stdout)) == 2
            check_server(uri)
    finally:
        for sender in senders:
            sender.kill()
    assert count(database, "runs") == NUM_RUNS
    assert count(database, "params") == 3 * NUM_RUNS
    assert count(database, "metrics") == (2 * NUM_EPOCHS + 1) * NUM_RUNS
    assert len(list(artifacts.rglob("about.txt"))) == NUM_RUNS
    assert not list((tmp_path / "data/09_tracking").iterdir())


def check_server(uri: str) -> None:
    """What the server answers is what was sent, of each run once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kd_pipeline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = [(run.data.tags["kd.group"], run.info.run_name) for run in runs]
    groups = [f"group-{group}" for group in range(NUM_PROCESSES)]
    assert sorted(names) == sorted((g, f"student-{r}") for g in groups for r in range(RUNS_EACH))
    for run in runs:
        group, replicate = run.data.params["group"], run.data.params["replicate"]
        assert (run.data.tags["kd.checkpoint"], run.info.status) == (
            f"{group}-{replicate}",
            "FINISHED",
        )
        history = client.get_metric_history(run.info.run_id, "train/loss")
        losses = {point.step: point.value for point in history}
        assert len(history) == NUM_EPOCHS
        assert losses == {
            epoch: pytest.approx(int(replicate) / epoch) for epoch in range(1, NUM_EPOCHS + 1)
        }
    one = runs[0]
    text = client.download_artifacts(one.info.run_id, "export/about.txt")
    params = one.data.params
    assert Path(text).read_text() == f"{params['group']} {params['replicate']}"
