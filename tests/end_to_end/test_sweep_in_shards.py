"""A sweep by four processes on one storage: each trial once, a killed process run again."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/tune-fairly.md"
LR = "student.training.optimiser.arguments.lr"
NUM_TRIALS = 6
SETTINGS = f"sweep.num_trials={NUM_TRIALS},student.training.num_epochs=200"
JOURNAL = "09_tracking/sweep/trials.log"
STAGE = "kedro run --pipelines=sweep --env=smoke --params="
ARMS = ("student_kd", "student_baseline")

pytestmark = pytest.mark.timeout(2400)


def shard_of(index: int, count: int) -> str:
    return f"{STAGE}{SETTINGS},sweep.num_shards={count},sweep.shard={index}"


def begin(project: Any, typed: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        typed.split(), cwd=project.path, env=project.environment | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def all_trials(project: Any, server: str) -> list[list[Any]]:
    """Of each arm, as Optuna has them; none before the first process has begun."""
    import optuna
    from optuna.storages import RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.pool import NullPool

    journal = project.data / JOURNAL
    if not server and not journal.exists():
        return []
    if server:  # Asked many times: a pool each time would take all the server's connections.
        storage: Any = RDBStorage(server, engine_kwargs={"poolclass": NullPool})
    else:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage).trials for name in names]


def training(project: Any, server: str, shard: str) -> list[Any]:
    """Trials of a shard that have trained some of their epochs."""
    return [
        trial
        for trials in all_trials(project, server)
        for trial in trials
        if trial.state.name == "RUNNING"
        and trial.user_attrs.get("shard") == shard
        and len(trial.intermediate_values) > 5
    ]


def trials_of(project: Any) -> pd.DataFrame:
    """The trials of the arms: as many as asked for, the same number of each, none twice."""
    trials = pd.read_csv(project.data / "08_reporting/sweep.csv")
    assert trials["arm"].value_counts().to_dict() == dict.fromkeys(ARMS, NUM_TRIALS)
    assert not trials.duplicated(["arm", "trial"]).any()
    assert not trials.duplicated(["arm", LR]).any()
    return trials


def test_shards_end_their_runs_and_the_stage_without_them_sums_up_what_they_ran(
    finished: Any,
    run_here: Callable[..., Any],
    fetch_runs: Callable[[Any], list[Any]],
    wait_until: Callable[..., None],
) -> None:
    """In this process; a `SystemExit` without a code is exit code 0."""
    before = len(fetch_runs(finished))
    for index in (1, 0):
        with pytest.raises(SystemExit) as ended:
            shard = {"num_shards": 2, "shard": index}
            run_here(finished, ["sweep"], params={"sweep": shard}, tracked=index == 0)
        assert not ended.value.code
        assert not list(finished.data.glob("08_reporting/sweep*"))
    # Trials 0 and 2 of three, of two arms.
    wait_until(lambda: len(fetch_runs(finished)) == before + 4, what="sending them", seconds=120)
    outcome = run_here(finished, ["sweep"], to_nodes=["tabulate_trials"])
    assert outcome.error is None
    assert outcome.trained == []
    trials = pd.read_csv(finished.data / "08_reporting/sweep.csv")
    assert trials["arm"].value_counts().to_dict() == dict.fromkeys(ARMS, 3)


@pytest.mark.long
@pytest.mark.parametrize("storage", ["journal", "PostgreSQL"])
def test_four_processes_of_which_one_is_killed_run_as_many_trials_as_asked_for(
    finished: Any, storage: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("database") if storage == "PostgreSQL" else ""
    environment = {"OPTUNA_STORAGE": server}
    processes = [begin(finished, shard_of(index, 4), environment) for index in range(4)]
    deadline = time.monotonic() + 600
    while not (found := training(finished, server, "1-of-4")):
        assert processes[1].poll() is None, processes[1].communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    again = begin(finished, shard_of(1, 4), environment)
    for process in (again, processes[0], *processes[2:]):
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    done = finished.command(f"{STAGE}{SETTINGS}", environment=environment)
    assert done.returncode == 0, done.stderr
    trials = trials_of(finished)
    assert set(trials["state"]) <= {"complete", "pruned"}
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials were there" in done.stdout + done.stderr
    every = [one for trials_of_arm in all_trials(finished, server) for one in trials_of_arm]
    assert len(every) == 2 * NUM_TRIALS + 1
    (lost,) = [one for one in every if one.state.name == "FAIL"]
    assert lost.params == found[0].params
    twice = [one for one in every if one.params == lost.params]
    assert [one.user_attrs["position"] for one in twice] == [lost.user_attrs["position"]] * 2
    assert (finished.data / JOURNAL).exists() != bool(server)


@pytest.mark.long
@pytest.mark.parametrize("where", ["torchrun", "batch"])
def test_the_commands_of_the_page_run_each_trial_once(
    finished: Any, tmp_path: Path, where: str
) -> None:
    found = re.search(rf"<!-- where: {where} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    script = tmp_path / "commands.sh"
    smoke = found[1].replace("--pipelines=sweep", "--pipelines=sweep --env=smoke")
    script.write_text(f"set -e\n{smoke}")
    done = finished.command(f"bash {script}")
    assert done.returncode == 0, done.stderr
    trials = pd.read_csv(finished.data / "08_reporting/sweep.csv")
    assert trials["arm"].value_counts().to_dict() == dict.fromkeys(ARMS, 3)
    assert "3 of 3 trials were there" in done.stdout + done.stderr
