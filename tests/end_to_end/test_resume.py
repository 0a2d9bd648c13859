"""A run that is killed, started again, equals one that was not."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from kd_pipeline.models.state_folder import StateFolder

TYPED = (
    "kedro run --pipelines=distill --env=smoke --params="
    "teacher.training.num_epochs=600,teacher.training.checkpoint_every=20,"
    "teacher.training.evaluate_every=50,student.num_replicates=1,"
    "student.training.num_epochs=60,student.training.checkpoint_every=5"
)
HEAD_START_SECONDS = 10_000.0


def kill_once_a_state_is_saved(project: Any, role: str) -> Path:
    """Run, `kill -9` as soon as the role has a state on disk, and give that state's folder."""
    folder = project.data / "06_models/.interrupted" / role
    process = subprocess.Popen(
        TYPED.split(), cwd=project.path, env=project.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (found := [p for p in folder.glob("*/state.json") if "." not in p.parts[-2]]):
            assert process.poll() is None, f"it ended before {role} could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return Path(found[0].parent)


def mark(state: Path) -> int:
    """Add seconds to those that the training took so far, and give its epoch.

    A training that starts over would end without them.
    """
    states = StateFolder(state.parent)
    found = states.load(state.name)
    assert found is not None
    found["record"]["seconds"] += HEAD_START_SECONDS
    states.save(state.name, found)
    return int(found["record"]["epoch"])


def measured(project: Any) -> pd.DataFrame:
    return pd.read_csv(project.data / "08_reporting/metrics.csv", dtype={"checkpoint": str})


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_twice_and_started_again_equals_an_unbroken_run(
    fresh: Any, tmp_path: Path, fetch_runs: Callable[[Any], list[Any]],
    another: Callable[[Path], Any],
) -> None:  # fmt: skip
    unbroken = measured(another(tmp_path / "unbroken").after(TYPED))
    teacher_epoch = mark(kill_once_a_state_is_saved(fresh, "teacher"))
    assert 0 < teacher_epoch < 600
    left = {run.info.run_name: run.info.status for run in fetch_runs(fresh)}
    # On a busy machine MLflow's own process may not have come so far.
    assert left.get("teacher-0", "RUNNING") == "RUNNING"
    student_epoch = mark(kill_once_a_state_is_saved(fresh, "student_kd"))
    assert 0 < student_epoch < 60
    resumed = measured(fresh.after(TYPED))

    costs = resumed.set_index("role")["cost/train_seconds"]
    assert costs["student_kd"] > HEAD_START_SECONDS, "it started over"
    assert_frame_equal(
        resumed.drop(columns="cost/train_seconds"),
        unbroken.drop(columns="cost/train_seconds"),
        check_exact=True,
    )
    states = [*(fresh.data / "06_models/.interrupted").glob("*/*")]
    assert all((state / "complete.json").is_file() for state in states)
    assert len(states) == 1 + 4
    statuses = [run.info.status for run in fetch_runs(fresh)]
    assert "RUNNING" not in statuses
    assert statuses.count("FINISHED") >= 1 + 4 + 1
