"""Accuracy and seconds by optimiser: on CIFAR-10's validation images, from labels alone.

    CIFAR10_ROOT=/where/cifar10/lies python -m bench.optimisers resnet_8 --epochs 8 --seeds 3
    CIFAR10_ROOT=/where/cifar10/lies python -m bench.optimisers fast_cnn --epochs 4 --seeds 1

Images are shifted and flipped afresh in every epoch. Seeds are those of weights, batches and views;
split and validation images, 2,500, are the same. Muon is timm's (extra `timm`).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from bench.experiment import SHIFT_AND_FLIP, split_by_seeds
from bench.variants import RESNET_8
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import Optimiser, TeacherParams, Training
from kd_pipeline.training.teachers import train_teachers

SPLIT = {
    "validation_fraction": 0.05,
    "teacher": {"fraction": 1.0},
    "transfer": {"relation": "equal"},
}
MODELS = {"resnet_8": (RESNET_8, 128), "fast_cnn": (Model(name="fast_cnn"), 256)}
"""Each with its batch size."""
_ADAMW = Optimiser(name="AdamW", arguments={"lr": 0.004, "weight_decay": 0.02})
_MUON = Optimiser(
    name="timm:Muon",
    arguments={"lr": 0.06, "weight_decay": 0.04, "nesterov": True, "fallback_lr_scale": 0.1},
)


def _sgd(lr: float, weight_decay: float) -> Optimiser:
    arguments = {"lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": weight_decay}
    return Optimiser(name="SGD", arguments=arguments)


# SGD of the preset mlperf_tiny before it had Muon, and of its teacher.
OPTIMISERS = {
    "SGD": {"resnet_8": _sgd(0.1, 5e-4), "fast_cnn": _sgd(0.2, 1e-3)},
    "AdamW": dict.fromkeys(MODELS, _ADAMW),
    "Muon": dict.fromkeys(MODELS, _MUON),
}


def main() -> None:
    """Train with every optimiser from every seed, and print each run and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimisers", nargs="+", choices=OPTIMISERS, default=[*OPTIMISERS])
    given = parser.parse_args()
    (data,), rows = split_by_seeds("cifar10", SPLIT, 1), []
    for seed in range(given.seeds):
        for optimiser in given.optimisers:
            rows.append(_train(data, given.model, optimiser, given.epochs, seed))
            print(rows[-1], flush=True)
    print("\n" + pd.DataFrame(rows).groupby("optimiser", sort=False).mean().round(2).to_string())


def _train(
    data: LabelledImages, name: str, optimiser: str, epochs: int, seed: int
) -> dict[str, Any]:
    model, batch_size = MODELS[name]
    training = Training(
        num_epochs=epochs,
        batch_size=batch_size,
        optimiser=OPTIMISERS[optimiser][name],
        schedule={"name": "cosine", "warmup_fraction": 0.1},
        evaluate_every=epochs,
        checkpoint_every=epochs,
    )
    params = TeacherParams(seed=seed, model=model, transforms=SHIFT_AND_FLIP, training=training)
    with tempfile.TemporaryDirectory() as folder:
        (checkpoint,), history = train_teachers(data, params, StateFolder(Path(folder)))
    last = history.iloc[-1]
    return {
        "optimiser": optimiser,
        "seed": seed,
        "validation accuracy, %": round(float(100 * last["validation/accuracy"]), 2),
        "validation loss": round(float(last["validation/loss"]), 4),
        "train loss": round(float(last["train/loss"]), 4),
        "seconds": round(checkpoint.facts["costs"]["cost/train_seconds"]),
    }


if __name__ == "__main__":
    main()
