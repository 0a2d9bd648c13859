"""Training in several processes is training in one: weights, metrics, states; and what is refused.

The processes are real ones, which exchange gradients by gloo.
"""

import importlib
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.training.distributed import Processes, check_own_device, has_batch_norm

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="imports torch once for all"
)
CNN = {"name": "small_cnn", "arguments": {"channels": [4, 4]}}


Together = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Run a scenario of in_processes.py in several processes; gives what each of them gave.

    None stands for one that ended without.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        main = importlib.import_module("in_processes").main
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kd_pipeline.training.students", "torch._dynamo"])

    def run(
        count: int,
        scenario: str,
        *,
        present: Sequence[int] | None = None,
        port: int | None = None,
        **options: Any,
    ) -> list[Any]:
        folder = tmp_path_factory.mktemp("together")
        # As torchrun keeps it; the system chooses a port.
        store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
        port = store.port if port is None else port
        started = [
            context.Process(target=main, args=(scenario, rank, count, port, folder, options))
            for rank in (range(count) if present is None else present)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
            for process in started:
                process.start()
        for process in started:
            process.join(timeout=100)
            process.kill()
        files = [folder / f"{rank}.pickle" for rank in range(count)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]

    return run


@pytest.fixture(scope="module")
def alone(together: Together) -> Any:
    return together(1, "train")[0]


def largest_difference(one: Any, other: Any) -> float:
    pairs = [
        (first[name], second[name])
        for first, second in zip(one["weights"], other["weights"], strict=True)
        for name in first
    ]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in history]


@pytest.mark.parametrize("count", [2, 3])
def test_fifty_steps_of_several_processes_are_those_of_one(
    count: int, together: Together, alone: Any
) -> None:
    """Batches of 8, so that three processes have 2, 3 and 3 of them."""
    found = together(count, "train")
    for one in found:
        assert largest_difference(one, alone) < 1e-6
        assert largest_difference(one, found[0]) == 0
    for row, own in zip(timeless(found[0]["history"]), timeless(alone["history"]), strict=True):
        assert row == pytest.approx(own, rel=1e-5)
    assert [one["states"] for one in found] == [["k"], *[[]] * (count - 1)]


def test_the_gradient_is_that_of_the_whole_batch_where_slices_are_uneven(
    together: Together,
) -> None:
    """Images (0, 1), (2, 3) ... (12, 13) and weights 1: the mean of 2 (a + b) a and 2 (a + b) b."""
    pairs = [(2 * at, 2 * at + 1) for at in range(7)]
    by_hand = [sum(2 * (a + b) * x for (a, b), x in zip(pairs, column, strict=True)) / 7
               for column in zip(*pairs, strict=True)]  # fmt: skip
    for gradient in together(3, "gradients_of_an_uneven_batch"):
        assert gradient.flatten().tolist() == pytest.approx(by_hand)


@given(batch_size=st.integers(1, 200), count=st.integers(1, 40))
def test_the_slices_are_the_batch_and_differ_by_one_example_at_most(
    batch_size: int, count: int
) -> None:
    batch = list(range(batch_size))
    slices = [batch[Processes(rank, count).slice_of(batch_size)] for rank in range(count)]
    assert [at for one in slices for at in one] == batch
    sizes = {len(one) for one in slices}
    assert max(sizes) - min(sizes) <= 1


def test_stacked_replicates_are_trained_by_several_processes_too(together: Together) -> None:
    stack: dict[str, Any] = {"num_replicates": 3, "training": {"num_epochs": 4}}
    found, alone = (together(count, "train", **stack)[0] for count in (2, 1))
    assert largest_difference(found, alone) < 1e-6
    for row, own in zip(timeless(found["history"]), timeless(alone["history"]), strict=True):
        assert row == pytest.approx(own, rel=1e-5)


def test_with_batch_norm_processes_have_one_network_and_another_than_one_process_has(
    together: Together,
) -> None:
    """Each normalises by its slice; what is learnt stays the same in both."""
    first, second = together(2, "train", model=CNN)
    learnt = [name for name in first["weights"][0] if "running" not in name]
    for name in learnt:
        assert torch.equal(first["weights"][0][name], second["weights"][0][name])
    assert largest_difference(first, second) > 1e-3
    assert largest_difference(first, together(1, "train", model=CNN)[0]) > 1e-3
    assert timeless(first["history"]) == timeless(second["history"])


def test_processes_drop_other_units_and_keep_one_network(together: Together) -> None:
    dropping = {"name": "mlp", "arguments": {"input_dropout": 0.5}}
    first, second = together(2, "train", model=dropping)
    assert largest_difference(first, second) == 0
    # The first is of an image whose multiply-accumulates are counted.
    assert first["masks"][1] != second["masks"][1]
    # Of pixels, which are hardly ever 0 by themselves: half of them each.
    assert np.mean(second["masks"][1]) == pytest.approx(0.5, abs=0.1)


def test_a_killed_training_goes_on_bit_for_bit(together: Together) -> None:
    unbroken = together(2, "train")[0]
    resumed = together(2, "train_with_a_kill", epoch=6)
    for one in resumed:
        assert largest_difference(one, unbroken) == 0
        assert timeless(one["history"]) == timeless(unbroken["history"])


def test_a_plateau_and_early_stopping_go_by_the_first_process(together: Together) -> None:
    stopping = {
        "num_epochs": 60,
        "optimiser": {"name": "SGD", "arguments": {"lr": 0.5}},
        "schedule": {"name": "ReduceLROnPlateau", "arguments": {"patience": 1}},
        "early_stopping": {"patience": 3},
    }
    found = together(2, "train", model=CNN, training=stopping)
    assert timeless(found[0]["history"]) == timeless(found[1]["history"])
    assert len(found[0]["history"]) < 60


def test_a_loss_that_is_not_finite_stops_all_processes(together: Together) -> None:
    wild = {"optimiser": {"name": "SGD", "arguments": {"lr": 1e30}}, "max_gradient_norm": None}
    for error in together(2, "train", training=wild):
        assert error.startswith("TrainingDivergedError: the training loss became")


def test_a_process_that_is_killed_ends_the_others(together: Together) -> None:
    *others, killed = together(3, "die")
    assert killed is None
    for rank, error in enumerate(others):
        assert error.startswith(f"ProcessesError: process {rank} of 3 has lost another one")


def test_a_process_that_does_not_come_is_named(together: Together) -> None:
    first, _, last = together(3, "train", present=(0, 2), wait_seconds=5.0)
    for error in (first, last):
        assert error == "ProcessesError: process 1 of 3 did not answer within 5 s"
    _, second = together(2, "train", present=(1,), port=1, wait_seconds=2.0)
    assert second.startswith("ProcessesError: `MASTER_ADDR` and `MASTER_PORT` must be where")


def test_processes_with_other_settings_or_code_are_refused(together: Together) -> None:
    facts = [{"code": "1", "student": "a"}, {"code": "1", "student": "b"}, {"code": "1"}]
    for error in together(3, "train", facts=facts):
        assert error == (
            "ProcessesError: all processes must be alike; these differ: "
            "student (process 1 b, process 0 a)"
        )


def test_processes_with_other_data_are_refused(together: Together) -> None:
    one, other = {"data": "a", "device": "cpu"}, {"data": "b", "device": "cuda"}
    assert together(2, "compare", found=[one, one]) == [None, None]
    for error in together(3, "compare", found=[one, one, other]):
        assert error.endswith(
            "data (process 2 b, process 0 a), device (process 2 cuda, process 0 cpu)"
        )


@pytest.mark.parametrize("num_groups", [1, 2, 5])
def test_spread_work_is_done_once_and_known_to_all(num_groups: int, together: Together) -> None:
    """The first process gets the events of all, its own as they come."""
    first, second = together(2, "spread", num_groups=num_groups)
    assert first["trained"] == second["trained"] == [(at, at % 2) for at in range(num_groups)]
    groups = range(num_groups)
    assert first["heard"] == [*groups[::2], *groups[1::2]]
    assert second["heard"] == []


def test_replicates_that_are_spread_are_those_of_one_process_bit_for_bit(
    together: Together, data: LabelledImages
) -> None:
    arm = {"data": data, "placement": "replicas"}
    (alone,), found = together(1, "train_arm", **arm), together(2, "train_arm", **arm)
    for one in found:
        assert largest_difference(one, alone) == 0
        assert timeless(one["history"]) == timeless(alone["history"])
        assert all("data_parallel" not in facts for facts in one["facts"])
    assert sorted(found[0]["heard"]) == sorted(alone["heard"])


def test_an_arm_is_trained_by_all_and_states_by_how_many(
    together: Together, data: LabelledImages, untrained: Callable[..., Any]
) -> None:
    """A teacher runs beside it, in each process on its own slice."""
    teacher = {"data": data, "live": untrained(0)}
    arm = {"placement": "data_parallel", "num_replicates": 1, **teacher}
    (alone,), found = together(1, "train_arm", **arm), together(2, "train_arm", **arm)
    for one in found:
        assert largest_difference(one, alone) < 1e-6
        assert one["facts"][0]["data_parallel"] == 2
        assert one["facts"] == found[0]["facts"]
        assert "data_parallel" not in one["facts"][0]["shared"]
    assert found[0]["heard"] == alone["heard"]
    of_slices = together(2, "train_arm", **arm, model=CNN)[1]
    assert of_slices["facts"][0]["shared"]["data_parallel"] == 2


def test_frozen_batch_norm_depends_on_no_batch() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert has_batch_norm(network)
    network[1].requires_grad_(False)
    assert not has_batch_norm(network)
    assert has_batch_norm(nn.BatchNorm2d(3, affine=False))
    assert not has_batch_norm(nn.GroupNorm(1, 3))


SLICES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"training": {"batch_size": 2}},
        {},
        "`student.training.batch_size` must be at least 3 in 3 processes, got 2",
    ),
    (
        {"training": {"batch_size": 5}, "model": CNN},
        {},
        "`student.training.batch_size` must be at least 6 in 3 processes, got 5",
    ),
    (
        {"training": {}, "quantisation": "int8"},
        {},
        "`student.quantisation` must be null where several processes share a batch",
    ),
    (
        {"training": {}},
        {"soft_weight": 0.5, "soft_loss": "dist"},
        "`student_kd.soft_loss` must compare no examples of a batch where several processes",
    ),
]


@pytest.mark.parametrize(("student", "arm", "message"), SLICES)
def test_what_slices_of_a_batch_cannot_give_is_refused_before_the_training(
    student: dict[str, Any],
    arm: dict[str, Any],
    message: str,
    together: Together,
    data: LabelledImages,
) -> None:
    for error in together(3, "check", data=data, student=student, arm=arm):
        assert error.startswith(f"ParameterError: {message}")
    if "quantisation" not in student:
        student = {**student, "training": {**student["training"], "placement": "replicas"}}
        assert together(2, "check", data=data, student=student, arm=arm) == [[], []]


def test_batch_norm_is_warned_of_once(together: Together, data: LabelledImages) -> None:
    student = {"training": {"batch_size": 6}, "model": CNN}
    first, *others = together(3, "check", data=data, student=student, arm={})
    assert len(first) == 1
    assert first[0].startswith("batch norm: each of 3 processes normalises by its slice")
    assert others == [[], []]


def test_a_cuda_device_is_shared_with_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_own_device("cpu")
    with pytest.raises(ParameterError, match=r"`LOCAL_RANK` must be below .* devices, 1, got 1"):
        check_own_device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_own_device("cuda")
