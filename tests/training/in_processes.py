"""What test_distributed.py runs in processes of its own; it imports this file by its path."""

import logging
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import KdPipelineError
from kd_pipeline.events import EpochEnded, Event, emit, listening
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.checks import check_shared_loss, check_student
from kd_pipeline.training.distributed import Processes, join, leave
from kd_pipeline.training.engine import TrainingPlan, train_together
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import ArmParams, StudentParams, Training
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedLogits, LiveTeacher
from kd_pipeline.views.settings import ViewsParams

NUM_ROWS, BATCH_SIZE, STEPS_PER_EPOCH, NUM_EPOCHS = 40, 8, 5, 10
MLP = {"name": "mlp", "arguments": {"hidden": [16]}}


def plan_of(*, seed: int = 3, training: Mapping[str, Any] | None = None) -> TrainingPlan:
    """Half of the labels missing, a third of the soft targets, views that mix two images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (NUM_ROWS, 1, 8, 8), generator=generator, dtype=torch.uint8)
    logits = torch.randn(1, NUM_ROWS, 3, generator=generator).half()
    labels = (torch.arange(NUM_ROWS) % 3).where(torch.arange(NUM_ROWS) % 2 == 0, NO_LABEL)
    images = ImageSet(np.arange(NUM_ROWS), pixels.numpy(), ("a", "b", "c"))
    reader = images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20))
    rows = Rows(reader, labels, torch.arange(NUM_ROWS) % 3 > 0)
    views = ViewsParams(seed=1, transforms=[{"name": "shift", "max_pixels": 1}, {"name": "mixup"}])
    usual = {
        "num_epochs": NUM_EPOCHS,
        "batch_size": BATCH_SIZE,
        "optimiser": {"name": "AdamW", "arguments": {"lr": 0.01}},
        "max_gradient_norm": 0.5,
        "checkpoint_every": 4,
        "device": "cpu",
        "precision": "float32",
    }
    return TrainingPlan(
        rows=rows,
        validation=replace(rows, labels=torch.arange(NUM_ROWS) % 3),
        objective=ObjectiveParams(soft_weight=0.5, temperature=2.0, label_smoothing=0.1),
        training=Training(**{**usual, **(training or {})}),
        steps_per_epoch=STEPS_PER_EPOCH,
        seed=seed,
        teacher=CachedLogits(
            TeacherLogits(logits.numpy()), torch.arange(NUM_ROWS), identity={}, device="cpu"
        ),
        policy=views.policy,
        num_views=1,
        partners=rows,
    )


def classifier_of(model: Mapping[str, Any], seed: int = 0) -> Classifier:
    """With initial weights."""
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.3,))
    return build_untrained(Model(**model), preprocessing, num_classes=3, seed=seed)


def train(
    processes: Processes,
    folder: Path,
    *,
    model: Mapping[str, Any] = MLP,
    num_replicates: int = 1,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Weights by name, or those of all replicates in a list, with the history."""
    stacked = {"max_gradient_norm": None} if num_replicates > 1 else {}
    plans = [
        replace(plan_of(seed=3 + one, training={**stacked, **(training or {})}), replicate=one)
        for one in range(num_replicates)
    ]
    classifiers = [classifier_of(model, one) for one in range(num_replicates)]
    masks: list[Any] = []
    for layer in classifiers[0].modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda _, __, kept: masks.append((kept == 0).tolist()))
    states = StateFolder(folder / f"states of {processes.rank}")
    record = train_together(classifiers, plans, states=states, key="k", processes=processes)
    return {
        "weights": [one.network.state_dict() for one in classifiers],
        "history": record.history,
        "masks": masks,
        "states": sorted(path.name for path in states.folder.glob("*")),
    }


def train_with_a_kill(processes: Processes, folder: Path, *, epoch: int) -> dict[str, Any]:
    """Stop all processes in the same epoch, and train again."""

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            raise InterruptedError

    try:
        with listening(stop):
            train(processes, folder)
    except InterruptedError:
        return train(processes, folder)
    raise AssertionError


def die(processes: Processes, folder: Path) -> dict[str, Any]:
    """The last process is killed in the third epoch."""

    def kill(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    if processes.rank < processes.count - 1:
        with processes.naming_losses():
            return train(processes, folder)
    with listening(kill):
        return train(processes, folder)


def train_arm(
    processes: Processes,
    folder: Path,
    *,
    data: LabelledImages,
    placement: str,
    live: ModelCheckpoint | None = None,
    **student: Any,
) -> dict[str, Any]:
    """What the node of a student does."""
    heard: list[Event] = []
    training = {
        "num_epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        "precision": "float32",
        "placement": placement,
        "stack_replicates": "never",
    }
    teacher = None if live is None else LiveTeacher([live], SoftTargetsParams())
    with listening(heard.append):
        checkpoints, history = train_students(
            data,
            StudentParams(**{"num_replicates": 3, "model": MLP, "training": training, **student}),
            ArmParams(soft_weight=0.0 if live is None else 0.5),
            ViewsParams(),
            teacher=teacher,
            states=StateFolder(folder / "states"),
        )
    return {
        "weights": [one.state for one in checkpoints],
        "facts": [one.facts for one in checkpoints],
        "history": history.to_dict("records"),
        "heard": [(type(event).__name__, event.replicate) for event in heard],
    }


def check(
    processes: Processes,
    folder: Path,
    *,
    data: LabelledImages,
    student: dict[str, Any],
    arm: dict[str, Any],
) -> list[str]:
    """What is checked before a training; gives what is logged."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("kd_pipeline").addHandler(handler)
    training = {"num_epochs": 1, "device": "cpu", "precision": "float32", **student["training"]}
    params = StudentParams(**{"model": MLP, **student, "training": training})
    check_student(data, params)
    check_shared_loss(params, ArmParams(**arm), block="student_kd")
    return logged


def compare(processes: Processes, folder: Path, *, found: list[dict[str, str]]) -> None:
    """Each has facts of its own."""
    processes.check_alike(found[processes.rank])


def spread(processes: Processes, folder: Path, *, num_groups: int) -> dict[str, Any]:
    """What each process trained, and which events it got."""
    heard: list[Event] = []

    def one(group: int) -> list[tuple[int, int]]:
        emit(EpochEnded(group, 1, {}))
        return [(group, processes.rank)]

    with listening(heard.append):
        trained = processes.spread(range(num_groups), one)
    replicates = [event.replicate for event in heard if isinstance(event, EpochEnded)]
    return {"trained": trained, "heard": replicates}


def gradients_of_an_uneven_batch(processes: Processes, folder: Path) -> Any:
    """Of a linear layer by hand, as the engine weighs them."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    images = torch.arange(14.0).view(7, 2)
    own = processes.slice_of(7)
    model = processes.parallel(layer)
    share = (own.stop - own.start) / 7
    (model(images[own]).square().mean() * processes.count * share).backward()
    return layer.weight.grad


SCENARIOS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        train,
        train_with_a_kill,
        die,
        check,
        train_arm,
        compare,
        spread,
        gradients_of_an_uneven_batch,
    )
}


def main(
    scenario: str, rank: int, count: int, port: int, folder: Path, options: dict[str, Any]
) -> None:
    """Run one scenario as one process of several, and keep what it gives, or raises."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    facts = options.pop("facts", [{}] * count)[rank]
    wait = options.pop("wait_seconds", 60.0)
    try:
        processes = join(rank, count, facts, wait_seconds=wait) if count > 1 else Processes()
        result = SCENARIOS[scenario](processes, folder, **options)
        leave()
    except KdPipelineError as error:
        result = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))
