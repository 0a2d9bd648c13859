"""Training speed from the cache and of the engine, each against its plain counterpart."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.timing import alternate, seconds
from kd_pipeline.data.images import ImagePixels, ImageSet
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_precision
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.engine import TrainingPlan, train_classifier
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import Optimiser, Training
from kd_pipeline.training.teacher_sources import CachedLogits

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Setting:
    """One student on random images: speed does not depend on what they show."""

    name: str
    model: Model
    shape: Shape
    batch_size: int
    precision: str
    steps: int

    def classifier(self) -> Classifier:
        """Build the student, untrained."""
        preprocessing = Preprocessing(self.shape, *([(0.5,) * self.shape[0]] * 2))
        return build_untrained(self.model, preprocessing, num_classes=10, seed=0)


SMALL_MLP = Model(name="mlp", arguments={"hidden": [32]})
LARGE_MLP = Model(name="mlp", arguments={"hidden": [800, 800]})
SMALL_CNN = Model(name="small_cnn", arguments={"channels": [16, 32, 64]})
SETTINGS = (
    Setting("digits MLP 64-32-10", SMALL_MLP, (1, 8, 8), 64, "float32", 400),
    Setting("MLP 784-800-800-10", LARGE_MLP, (1, 28, 28), 256, "auto", 60),
    Setting("small CNN 16-32-64, 32 px", SMALL_CNN, (3, 32, 32), 128, "auto", 25),
)


def main(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure every setting and print a table; returns the examples per second of every round."""
    header = f"{'student':28}{'precision':>10}{'examples/s':>12}{'cached/hard':>13}"
    print(header + f"{'hard/bare':>11}{'cached/bare':>13}")
    measured = {}
    for setting in SETTINGS:
        measured[setting.name] = _speeds(setting, rounds)
        print(_row(setting, measured[setting.name]), flush=True)
    print("\ncached: soft targets from the cache; hard: the same engine on labels; bare: a plain")
    print("PyTorch loop over the same tensors at the same precision. Above 1 is faster.")
    return measured


def speed(setting: Setting, rounds: int) -> float:
    """Median examples per second of the engine on labels."""
    rows = _rows(setting)
    speeds = alternate({"hard": lambda: _engine(setting, rows, soft_weight=0.0)}, rounds)
    return statistics.median(speeds["hard"])


def random_pixels(count: int, shape: Shape, device: str = "cpu") -> ImagePixels:
    """Images of noise, in memory on the device."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    images = ImageSet(np.arange(count), pixels.numpy(), ("a", "b"))
    return images.reader(images.example_ids, device=device, budget=MemoryBudget(pixels.nbytes))


def plain_step(
    classifier: Classifier, optimiser: torch.optim.Optimizer, precision: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """One update as one would write it by hand, from pixels and labels to the loss."""

    def step(pixels: Tensor, labels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=classifier.layout)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(classifier(pixels).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def _speeds(setting: Setting, rounds: int) -> dict[str, list[float]]:
    rows, precision = _rows(setting), resolve_precision(setting.precision, "cpu")
    contenders: dict[str, Callable[[], float]] = {
        "cached": lambda: _engine(setting, rows, soft_weight=1.0),
        "hard": lambda: _engine(setting, rows, soft_weight=0.0),
        "bare": lambda: _bare(setting, rows, precision),
    }
    return alternate(contenders, rounds)


def _row(setting: Setting, speeds: dict[str, list[float]]) -> str:
    precision = resolve_precision(setting.precision, "cpu")

    def ratio(first: str, second: str) -> float:
        pairs = zip(speeds[first], speeds[second], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return (
        f"{setting.name:28}{precision:>10}{statistics.median(speeds['cached']):>12,.0f}"
        f"{ratio('cached', 'hard'):>13.3f}{ratio('hard', 'bare'):>11.3f}"
        f"{ratio('cached', 'bare'):>13.3f}"
    )


def _rows(setting: Setting) -> Rows:
    pixels = random_pixels(setting.batch_size * 8, setting.shape)
    generator = torch.Generator().manual_seed(0)
    return Rows(pixels, torch.randint(0, 10, pixels.example_ids.shape, generator=generator))


def _cache(rows: Rows) -> CachedLogits:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, len(rows), 10, generator=generator).half().numpy()
    return CachedLogits(TeacherLogits(logits), torch.arange(len(rows)), identity={}, device="cpu")


def make_plan(setting: Setting, rows: Rows | None = None, *, soft_weight: float) -> TrainingPlan:
    """One epoch of a setting's steps, on rows of noise unless others are given."""
    rows = rows or _rows(setting)
    training = Training(
        num_epochs=1,
        batch_size=setting.batch_size,
        optimiser=Optimiser(name="AdamW", arguments={"lr": 0.001}),
        precision=setting.precision,
        device="cpu",
    )
    return TrainingPlan(
        rows=rows,
        validation=Rows(random_pixels(1, setting.shape), rows.labels[:1]),
        objective=ObjectiveParams(soft_weight=soft_weight, temperature=4.0),
        training=training,
        steps_per_epoch=setting.steps,
        seed=0,
        teacher=_cache(rows) if soft_weight > 0 else None,
        num_views=1,
    )


def _engine(setting: Setting, rows: Rows, *, soft_weight: float) -> float:
    plan = make_plan(setting, rows, soft_weight=soft_weight)
    with tempfile.TemporaryDirectory() as folder:
        states = StateFolder(Path(folder))
        record = train_classifier(setting.classifier(), plan, states=states, key="bench")
    return record.history[0]["train/examples_per_second"]


def _bare(setting: Setting, rows: Rows, precision: str) -> float:
    """What one would write by hand: a shuffle, a gather, a step, a running loss."""
    model = setting.classifier().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, setting.steps)
    update = plain_step(model, optimiser, precision)
    batches = len(rows) // setting.batch_size

    def loop() -> None:
        total = torch.zeros(())
        for step in range(setting.steps):
            if step % batches == 0:
                order = torch.randperm(len(rows)).split(setting.batch_size)
            batch = order[step % batches]
            total += update(rows.pixels(batch), rows.labels[batch])
            schedule.step()

    return setting.steps * setting.batch_size / seconds(loop)
