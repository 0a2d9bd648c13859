"""Training speed from the cache and of the engine, each against its plain counterpart."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.gathering import GatheredTargets
from kd_pipeline.training.engine import TrainingPlan, train_classifier
from kd_pipeline.training.rows import TrainingRows
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.teacher_logits import CachedLogits
from kd_pipeline.training.validation import Validation


@dataclass(frozen=True)
class Setting:
    """One student on random images: speed does not depend on what they show."""

    name: str
    architecture: str
    arguments: dict[str, Any]
    shape: tuple[int, int, int]
    batch_size: int
    precision: str
    steps: int


SETTINGS = (
    Setting("digits MLP 64-32-10", "mlp", {"hidden": [32]}, (1, 8, 8), 64, "float32", 400),
    Setting("MLP 784-800-800-10", "mlp", {"hidden": [800, 800]}, (1, 28, 28), 256, "auto", 60),
    Setting(
        "small CNN 16-32-64, 32 px",
        "small_cnn",
        {"channels": [16, 32, 64]},
        (3, 32, 32),
        128,
        "auto",
        25,
    ),
)


def main(rounds: int) -> None:
    """Measure every setting and print a table."""
    header = f"{'student':28}{'precision':>10}{'examples/s':>12}{'cached/hard':>13}"
    print(header + f"{'hard/bare':>11}{'cached/bare':>13}")
    for setting in SETTINGS:
        print(_row(setting, rounds), flush=True)
    print("\ncached: soft targets from the cache; hard: the same engine on labels; bare: a plain")
    print("PyTorch loop over the same tensors at the same precision. Above 1 is faster.")


def speed(setting: Setting, rounds: int) -> float:
    """Median examples per second of the engine on labels."""
    rows, precision = _rows(setting), resolve_precision(setting.precision, resolve_device("cpu"))
    _engine(setting, rows, precision, soft_weight=0.0)
    return statistics.median(
        _engine(setting, rows, precision, soft_weight=0.0) for _ in range(rounds)
    )


def _row(setting: Setting, rounds: int) -> str:
    rows, precision = _rows(setting), resolve_precision(setting.precision, resolve_device("cpu"))
    contenders: dict[str, Callable[[], float]] = {
        "cached": lambda: _engine(setting, rows, precision, soft_weight=1.0),
        "hard": lambda: _engine(setting, rows, precision, soft_weight=0.0),
        "bare": lambda: _bare(setting, rows, precision),
    }
    for contender in contenders.values():
        contender()
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            speeds[name].append(contender())

    def ratio(first: str, second: str) -> float:
        pairs = zip(speeds[first], speeds[second], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return (
        f"{setting.name:28}{precision:>10}{statistics.median(speeds['cached']):>12,.0f}"
        f"{ratio('cached', 'hard'):>13.3f}{ratio('hard', 'bare'):>11.3f}"
        f"{ratio('cached', 'bare'):>13.3f}"
    )


def _rows(setting: Setting) -> TrainingRows:
    generator = torch.Generator().manual_seed(0)
    count = setting.batch_size * 8
    pixels = torch.randint(0, 256, (count, *setting.shape), generator=generator, dtype=torch.uint8)
    return TrainingRows(
        example_ids=torch.arange(count),
        pixels_of=lambda positions: pixels[positions],
        labels=torch.randint(0, 10, (count,), generator=generator),
    )


def _cache(rows: TrainingRows) -> CachedLogits:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, len(rows), 10, generator=generator).half().numpy()
    targets = GatheredTargets(logits, None, None, num_classes=10)
    return CachedLogits(targets, torch.arange(len(rows)), identity={}, device="cpu")


def _classifier(setting: Setting) -> Classifier:
    return build_untrained(
        architecture=setting.architecture,
        arguments=setting.arguments,
        preprocessing=Preprocessing(setting.shape, *([(0.5,) * setting.shape[0]] * 2)),
        num_classes=10,
        seed=0,
    )


def _engine(setting: Setting, rows: TrainingRows, precision: str, *, soft_weight: float) -> float:
    settings = TrainingSettings(
        num_epochs=1,
        batch_size=setting.batch_size,
        optimiser={"name": "AdamW", "arguments": {"lr": 0.001}},
        schedule={"name": "cosine", "arguments": {}, "warmup_fraction": 0.0},
        precision=precision,
        device="cpu",
    )
    plan = TrainingPlan(
        rows=rows,
        teacher=_cache(rows) if soft_weight > 0 else None,
        num_views=1,
        validation=Validation(rows.pixels_of, rows.labels[:1]),
        objective=Objective(soft_weight=soft_weight, temperature=4.0),
        settings=settings,
        steps_per_epoch=setting.steps,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        record = train_classifier(
            _classifier(setting), plan, states=StateFolder(Path(folder)), key="bench"
        )
    return record.history[0]["train/examples_per_second"]


def _bare(setting: Setting, rows: TrainingRows, precision: str) -> float:
    """What one would write by hand: a shuffle, a gather, a step, a running loss."""
    model = _classifier(setting).train()
    if setting.architecture != "mlp":
        model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, setting.steps)
    batches = len(rows) // setting.batch_size
    started, total = time.perf_counter(), torch.zeros(())
    for step in range(setting.steps):
        if step % batches == 0:
            order = torch.randperm(len(rows))
        at = step % batches * setting.batch_size
        batch = order[at : at + setting.batch_size]
        pixels = rows.pixels_of(batch)
        if setting.architecture != "mlp":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(model(pixels).float(), rows.labels[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.detach()
    return setting.steps * setting.batch_size / (time.perf_counter() - started)
