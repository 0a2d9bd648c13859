"""Temporary copies of the project, run as users run it; one finished run serves many tests."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline import events

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NEVER_MEANT = {
    "MLFLOW_TRACKING_URI",
    "KD_SEED",
    "KEDRO_ENV",
    "KEDRO_LOGGING_CONFIG",
    "PYTHONWARNINGS",
}


@dataclass(frozen=True)
class Project:
    """A copy of the project, and what its last command printed."""

    path: Path
    stdout: str = ""
    stderr: str = ""

    def command(
        self, typed: str, *, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as typed in the project's root, with no terminal."""
        return subprocess.run(
            typed.split(),
            cwd=self.path,
            env=self.environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def after(self, typed: str) -> "Project":
        """The project after a command that must succeed."""
        done = self.command(typed)
        assert done.returncode == 0, f"{typed}\n{done.stdout}\n{done.stderr}"
        return Project(self.path, done.stdout, done.stderr)

    def copy(self, folder: Path) -> "Project":
        """A copy to be changed; its MLflow artifacts stay with the original."""
        return Project(shutil.copytree(self.path, folder / "project"))

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def environment(self) -> dict[str, str]:
        """Of its commands: none of the machine's own settings, and the copy's own source."""
        kept = {name: value for name, value in os.environ.items() if name not in NEVER_MEANT}
        return kept | {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.path / "src"),
        }


def copy_project(path: Path) -> Project:
    """What git would check out, as far as a run needs it."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("conf", "src"):
        shutil.copytree(ROOT / folder, path / folder, ignore=ignore)
    shutil.rmtree(path / "conf/local")
    (path / "conf/local").mkdir()
    for file in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / file, path / file)
    (path / "data").mkdir()
    return Project(path)


@pytest.fixture(autouse=True, scope="session")
def only_this_project() -> Iterator[None]:
    """Nothing of the machine's own settings reaches a run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NEVER_MEANT:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The main job, once, as a user types it. No test changes it."""
    project = copy_project(tmp_path_factory.mktemp("finished") / "project")
    return project.after("kedro run --pipelines=distill --env=smoke")


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The pipeline `teacher_assistant` of the smoke preset, once, but for most of its figures."""
    project = copy_project(tmp_path_factory.mktemp("chain") / "project")
    ends = ["write_report", "summarise_soft_targets", "assistant.summarise_soft_targets"]
    outcome = run_in_this_process(project, ["teacher_assistant"], tracked=True, to_nodes=ends)
    if outcome.error is not None:
        raise outcome.error
    return Project(project.path, outcome.stdout)


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project in which nothing has been run."""
    return copy_project(tmp_path / "project")


@pytest.fixture
def another() -> Callable[[Path], Project]:
    """Makes one more project in which nothing has been run."""
    return lambda folder: copy_project(folder / "project")


@pytest.fixture
def finished(finished_run: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, to be changed."""
    return finished_run.copy(tmp_path)


@pytest.fixture
def chained(finished_chain: Project, tmp_path: Path) -> Project:
    """A copy of the finished chain, to be changed."""
    return finished_chain.copy(tmp_path)


@dataclass
class Outcome:
    """What a run in this process did."""

    trained: list[int] = field(default_factory=list)
    """Replicates that began to train, in order."""
    num_epochs: int = 0
    """Epochs that were trained, of all models together."""
    error: BaseException | None = None
    stdout: str = ""

    def refused(self, kind: type[BaseException]) -> str:
        """The message of the error that stopped the run before anything trained an epoch."""
        assert self.error is not None, "the run went on"
        assert self.num_epochs == 0, f"epochs were trained before {self.error!r}"
        root = self.error
        while not isinstance(root, kind) and root.__cause__ is not None:
            root = root.__cause__
        assert isinstance(root, kind), repr(self.error)
        return str(root)


class TrainedTooEarlyError(Exception):
    """Raised in place of a training that a refusal should have come before."""


def run_in_this_process(
    project: Project,
    pipelines: Iterable[str] = ("distill",),
    *,
    env: str = "smoke",
    params: dict[str, Any] | None = None,
    stop_at_training: bool = False,
    tracked: bool = False,
    **selection: Any,
) -> Outcome:
    """Run pipelines of a project here, which spares the imports of a command.

    Args:
        project: Where.
        pipelines: By name.
        env: The preset.
        params: As after `--params`.
        stop_at_training: Whether the first epoch that is trained ends the run with an error.
        tracked: Whether MLflow has it too, which takes longer than to train such models.
        selection: Of nodes, as `KedroSession.run` takes it.
    """
    from kedro.framework.project import configure_project
    from kedro.framework.session import KedroSession

    outcome, printed = Outcome(), io.StringIO()

    def count(event: events.Event) -> None:
        if isinstance(event, events.TrainingStarted):
            outcome.trained.append(event.replicate)
        if isinstance(event, events.EpochEnded):
            outcome.num_epochs += 1
            if stop_at_training:
                raise TrainedTooEarlyError

    settings = project.path / "conf" / env / "mlflow.yml"
    settings.write_text(f"enabled: {str(tracked).lower()}\n")
    with warnings.catch_warnings(), chdir(project.path), events.listening(count):
        # Kedro's and MLflow's own, which pytest would turn into errors here.
        warnings.simplefilter("ignore")
        configure_project("kd_pipeline")
        try:
            with (
                redirect_stdout(printed),
                KedroSession.create(project.path, env=env, runtime_params=params) as session,
            ):
                session.run(pipeline_names=list(pipelines), **selection)
        except Exception as error:
            outcome.error = error
    outcome.stdout = printed.getvalue()
    return outcome


@pytest.fixture
def run_here() -> Callable[..., Outcome]:
    """`run_in_this_process`."""
    return run_in_this_process


@pytest.fixture(scope="session")
def fetch_runs() -> Callable[[Project], list[Any]]:
    """All MLflow runs of a project, oldest first."""

    def fetch(project: Project) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient

            client = MlflowClient(f"sqlite:///{project.path}/mlflow.db")
            experiment = client.get_experiment_by_name("kd_pipeline")
            found = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
            return list(found)

    return fetch


def find_free_port() -> int:
    """A port of this machine that nothing listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`find_free_port`."""
    return find_free_port


def wait(condition: Callable[[], bool], *, what: str, seconds: float = 600) -> None:
    """Return when the condition holds; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:g} s"
        time.sleep(0.1)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`wait`."""
    return wait


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server with a folder and a port of its own; a database is to follow."""
    psycopg = pytest.importorskip("psycopg", reason="the extra `postgresql` is not installed")
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))  # Not on PATH.
    initdb = shutil.which("initdb") or next(reversed(debian), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    # It refuses to run as root; Debian's package has made the user.
    user = "postgres" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="kd-postgresql-")), find_free_port()
    if user:
        shutil.chown(folder, user)
    programs, data = Path(initdb).resolve().parent, folder / "data"
    made = [initdb, "-D", data, "-U", "kd", "--auth=trust", "--encoding=UTF8"]
    subprocess.run(made, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    command = [programs / "postgres", "-D", data, "-k", folder, *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
    url = f"postgresql://kd@127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        with suppress(psycopg.OperationalError), psycopg.connect(f"{url}/postgres"):
            return True
        return False

    try:
        wait(answers, what="the start of PostgreSQL")
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # Its fast shutdown.
        server.wait(60)
        shutil.rmtree(folder)


@pytest.fixture
def database(postgresql: str) -> str:
    """URL of a new database, as SQLAlchemy has it."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgresql}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgresql}/{name}".replace("postgresql://", "postgresql+psycopg://")
