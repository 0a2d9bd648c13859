"""Training in several processes by torchrun: the page's commands, and one process's results."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.models.checkpoint import read_checkpoint

PAGE = Path(__file__).parents[2] / "docs/how-to/train-on-several-devices.md"
STUDENTS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")
NUM_REPLICATES = 2
FEW = ",student.training.stack_replicates=never"


def commands(where: str) -> str:
    """A block of the page, with the preset of the tests."""
    found = re.search(rf"<!-- where: {where} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return re.sub(r"(--pipelines=\S+)", r"\1 --env=smoke", found[1])


def run_block(project: Any, where: str, folder: Path) -> str:
    """What the commands of a block print."""
    script = folder / "commands.sh"
    script.write_text(f"set -e\n{commands(where)}")
    done = project.command(f"bash {script}")
    assert done.returncode == 0, done.stderr
    return str(done.stderr)


def largest_difference(project: Any, other: Any) -> float:
    """Of a weight of any student."""
    pairs = [
        (one.state[name], two.state[name])
        for student in STUDENTS
        for replicate in range(NUM_REPLICATES)
        for one, two in [
            [read_checkpoint(p.data / f"06_models/{student}/{replicate}") for p in (project, other)]
        ]
        for name in one.state
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_train_a_comparison_that_is_tracked_once(
    fresh: Any, tmp_path: Path, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    printed = run_block(fresh, "training", tmp_path)
    assert (fresh.data / "08_reporting/comparison.json").is_file()
    assert printed.count("batch norm: each of 2 processes") == 1
    assert printed.count("student_kd: train_student") == 1
    roles = Counter(
        run.data.tags["kd.role"]
        for run in fetch_runs(fresh)
        if run.data.tags["kd.pipeline"] in ("teacher_training", "student_distillation")
    )
    assert roles == {"teacher": 1, **dict.fromkeys(STUDENTS, NUM_REPLICATES)}
    states = [*fresh.data.glob("06_models/.interrupted/*/*")]
    assert all((state / "complete.json").is_file() for state in states)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 3])
def test_students_of_several_processes_are_those_of_one(
    finished: Any, finished_run: Any, count: int
) -> None:
    command = f"torchrun --standalone --nproc-per-node {count} -m kd_pipeline --env=smoke"
    done = finished.command(f"{command} --pipelines=student_distillation")
    assert done.returncode == 0, done.stderr
    assert 0 < largest_difference(finished, finished_run) < 1e-5


@pytest.mark.long
@pytest.mark.timeout(900)
def test_replicates_that_are_spread_have_the_bits_of_one_process(
    finished: Any, tmp_path: Path
) -> None:
    stage = "kedro run --pipelines=student_distillation --env=smoke"
    (tmp_path / "alone").mkdir()
    alone = finished.copy(tmp_path / "alone").after(f"{stage} --params={FEW[1:]}")
    script = tmp_path / "commands.sh"
    script.write_text(f"set -e\n{commands('replicas').strip()}{FEW}\n")
    done = finished.command(f"bash {script}")
    assert done.returncode == 0, done.stderr
    assert largest_difference(finished, alone) == 0


@pytest.mark.long
def test_a_whole_run_under_torchrun_is_refused(fresh: Any) -> None:
    command = "torchrun --standalone --nproc-per-node 2 -m kd_pipeline --env=smoke"
    done = fresh.command(f"{command} --pipelines=distill")
    assert done.returncode != 0
    assert "`WORLD_SIZE` must be 1 in a run of more than training" in done.stderr
