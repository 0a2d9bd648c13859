"""Models that train in processes side by side: as alone, and none is left behind."""

import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError, ProcessesError, TrainingDivergedError
from kd_pipeline.events import EpochEnded, Event, Progress, TrainingEnded, emit, listening
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import ArmParams, StudentParams, Training
from kd_pipeline.training.side_by_side import (
    MAX_MACS_PER_STEP,
    num_processes,
    train_side_by_side,
)
from kd_pipeline.training.students import train_students
from kd_pipeline.views.settings import ViewsParams

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process trains all")

TRAINING = {"num_epochs": 3, "batch_size": 16, "device": "cpu", "precision": "float32"}
ALONE = {"max_gradient_norm": 1e9}
"""What is not stacked."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def run(
    data: LabelledImages, folder: Path, **changes: Any
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    student = StudentParams(
        num_replicates=3,
        model={"name": "small_cnn", "arguments": {"channels": [4, 4]}},
        training={**TRAINING, **ALONE, **changes},
    )
    states, arm = StateFolder(folder), ArmParams()
    return train_students(data, student, arm, ViewsParams(), teacher=None, states=states)


def timeless(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="train/examples_per_second")


@pytest.mark.usefixtures("two_threads")
def test_weights_curves_and_events_are_those_of_one_process_bit_for_bit(
    data: LabelledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: dict[bool, list[Event]] = {True: [], False: []}
    with listening(seen[True].append):
        together, curves = run(data, tmp_path / "together")
    assert "3 models train in 2 processes side by side" in caplog.text
    torch.set_num_threads(1)
    with listening(seen[False].append):
        alone, its_curves = run(data, tmp_path / "alone")
    assert caplog.text.count("side by side") == 1
    assert [a.fingerprint for a in together] == [b.fingerprint for b in alone]
    pd.testing.assert_frame_equal(timeless(curves), timeless(its_curves), check_exact=True)
    for replicate in range(3):
        own = ([one for one in seen[both] if one.replicate == replicate] for both in seen)  # type: ignore[union-attr]
        for there, here in zip(*own, strict=True):
            assert type(there) is type(here)
            if isinstance(there, EpochEnded) and isinstance(here, EpochEnded):
                assert there.epoch == here.epoch
                assert there.metrics["train/loss"] == here.metrics["train/loss"]
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_threads")
def test_events_come_while_the_processes_train() -> None:
    """Two at once, each of which waits for what the other's event makes."""
    reading, writing = os.pipe()

    def listener(event: Event) -> None:
        if isinstance(event, Progress):
            os.write(writing, b"1")

    def train(number: int) -> list[int]:
        emit(Progress("begun", number, 2, "models"))
        os.read(reading, 1)
        return [number]

    with listening(listener):
        assert train_side_by_side([0, 1], train, num_processes=2) == [0, 1]


@pytest.mark.usefixtures("two_threads")
def test_a_process_takes_its_share_of_the_threads_and_uses_them() -> None:
    """More than one: OpenMP's threads are not copied, and must not be waited for."""

    def train(number: int) -> list[int]:
        torch.randn(64, 3, 32, 32).mul(2.0).sum()
        nn.Conv2d(3, 16, 3)(torch.randn(64, 3, 32, 32)).sum().backward()
        return [torch.get_num_threads()]

    train(0)
    torch.set_num_threads(4)
    assert train_side_by_side([0, 1], train, num_processes=2) == [2, 2]
    assert torch.get_num_threads() == 4


def test_results_are_in_the_order_of_the_groups() -> None:
    def train(number: int) -> list[int]:
        time.sleep(0.05 * (3 - number))
        return [number, 10 * number]

    expected = [0, 0, 1, 10, 2, 20, 3, 30]
    assert train_side_by_side(range(4), train, num_processes=3) == expected


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_one_ends_all_and_is_that_error(data: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"lower `training\.optimiser"):
        run(data, tmp_path, optimiser={"name": "SGD", "arguments": {"lr": 1e30}}, num_epochs=99)
    assert not multiprocessing.active_children()


def test_an_unforeseen_error_has_the_traceback_of_its_process() -> None:
    def train(number: int) -> list[int]:
        return [1 // number]

    with pytest.raises(ZeroDivisionError) as found:
        train_side_by_side([0, 0], train, num_processes=2)
    assert "return [1 // number]" in "".join(found.value.__notes__)


class TwoPartsError(Exception):
    """Its message is not what it is made from, so that it cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_that_no_other_process_can_raise_is_told_in_words() -> None:
    def train(number: int) -> list[int]:
        raise TwoPartsError("this", f"and {number}")

    with pytest.raises(RuntimeError, match="TwoPartsError: this and 0"):
        train_side_by_side([0, 0], train, num_processes=2)


def test_a_killed_process_is_named_and_its_cause_guessed() -> None:
    def train(number: int) -> list[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return [number]

    with pytest.raises(ProcessesError, match=r"exit code -9.*memory.*side_by_side: never"):
        train_side_by_side([0, 1], train, num_processes=2)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_threads")
def test_a_stopped_run_goes_on_bit_for_bit(data: LabelledImages, tmp_path: Path) -> None:
    """Stopped by a listener, as the pruner and Ctrl-C do it, after one model and in another."""
    unbroken, curves = run(data, tmp_path / "unbroken")

    class StoppedError(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, TrainingEnded):
            raise StoppedError

    with pytest.raises(StoppedError), listening(stop):
        run(data, tmp_path / "stopped", checkpoint_every=1)
    assert not multiprocessing.active_children()
    resumed, again = run(data, tmp_path / "stopped", checkpoint_every=1)
    assert [a.fingerprint for a in resumed] == [b.fingerprint for b in unbroken]
    pd.testing.assert_frame_equal(timeless(curves), timeless(again), check_exact=True)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from kd_pipeline.training.side_by_side import train_side_by_side

def train(number):
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(600)

train_side_by_side([0, 1], train, num_processes=2)
"""
    first = subprocess.Popen([sys.executable, "-c", script])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    others = [int(file.name) for file in tmp_path.iterdir()]
    assert all(map(is_alive, others))
    first.kill()
    first.wait()
    wait_until(lambda: not any(map(is_alive, others)))


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class TestNumProcesses:
    """How many train side by side."""

    def number(
        self, tmp_path: Path, *, groups: int = 3, states: Any = None, width: int = 4, **changes: Any
    ) -> int:
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, 3))
        classifier = Classifier(network, Preprocessing((3, 2, 2), (0.5,) * 3, (0.2,) * 3))
        training = Training(**TRAINING | changes)
        return num_processes(groups, classifier, training, states or StateFolder(tmp_path))

    def test_one_without_a_second_thread(self, tmp_path: Path) -> None:
        assert self.number(tmp_path) == 1

    @pytest.mark.usefixtures("two_threads")
    def test_as_many_as_threads_and_groups(self, tmp_path: Path) -> None:
        assert self.number(tmp_path) == 2
        assert self.number(tmp_path, groups=1) == 1
        torch.set_num_threads(8)
        assert self.number(tmp_path) == 3

    @pytest.mark.usefixtures("two_threads")
    def test_one_where_a_setting_says_so(self, tmp_path: Path) -> None:
        assert self.number(tmp_path, side_by_side="never") == 1

    @pytest.mark.usefixtures("two_threads")
    def test_one_for_large_steps(self, tmp_path: Path) -> None:
        width = MAX_MACS_PER_STEP // (12 + 3) // 1_000_000
        assert self.number(tmp_path, width=width, batch_size=1_000_000) == 2
        assert self.number(tmp_path, width=width + 1, batch_size=1_000_000) == 1

    @pytest.mark.usefixtures("two_threads")
    def test_one_where_a_fork_would_not_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mirrored = StateFolder(tmp_path, mirror=object())  # type: ignore[arg-type]
        assert self.number(tmp_path, states=mirrored) == 1
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        assert self.number(tmp_path) == 1


def test_errors_of_parameters_pass_between_processes() -> None:
    error = ParameterError("a", "be b", 3, legal=iter(["y", "x"])).within("block")
    passed = pickle.loads(pickle.dumps(error))
    assert str(passed) == str(error) == "`block.a` must be b, got 3; legal: x, y"
    assert passed.legal == ["x", "y"]
    assert isinstance(passed, ParameterError)
