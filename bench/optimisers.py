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

from bench.experiment import SHIFT_AND_FLIP, SOURCES
from bench.variants import RESNET_8
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.ingest import ingest_images
from kd_pipeline.data.settings import DataIngestParams, TransferSplitParams
from kd_pipeline.data.splits import split_examples
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.settings import Optimiser, TeacherParams, Training
from kd_pipeline.training.teachers import train_teachers

_ADAMW = Optimiser(name="AdamW", arguments={"lr": 0.004, "weight_decay": 0.02})
_MUON = Optimiser(
    name="timm:Muon",
    arguments={"lr": 0.06, "weight_decay": 0.04, "nesterov": True, "fallback_lr_scale": 0.1},
)
# Of these presets: mlperf_tiny before it had Muon, and its teacher.
_SGD = {
    "resnet_8": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "fast_cnn": {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
}
MODELS = {"resnet_8": (RESNET_8, 128), "fast_cnn": (Model(name="fast_cnn"), 256)}
OPTIMISERS = ("SGD", "AdamW", "Muon")


def main() -> None:
    """Train with every optimiser from every seed, and print each run and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimisers", nargs="+", choices=OPTIMISERS, default=OPTIMISERS)
    given = parser.parse_args()
    data, rows = _data(), []
    for seed in range(given.seeds):
        for optimiser in given.optimisers:
            rows.append(_train(data, given.model, optimiser, given.epochs, seed))
            print(rows[-1], flush=True)
    print("\n" + pd.DataFrame(rows).groupby("optimiser", sort=False).mean().round(2).to_string())


def _data() -> LabelledImages:
    ingested = ingest_images(DataIngestParams(source=SOURCES["cifar10"]))
    images, examples = ingested.images, ingested.examples
    roles = {"teacher": {"fraction": 1.0}, "transfer": {"relation": "equal"}}
    params = TransferSplitParams(seed=0, validation_fraction=0.05, **roles)
    return LabelledImages(images, examples, split_examples(examples, images.class_names, params))


def _train(
    data: LabelledImages, name: str, optimiser: str, epochs: int, seed: int
) -> dict[str, Any]:
    model, batch_size = MODELS[name]
    sgd = Optimiser(name="SGD", arguments=_SGD[name])
    training = Training(
        num_epochs=epochs,
        batch_size=batch_size,
        optimiser=dict(zip(OPTIMISERS, (sgd, _ADAMW, _MUON), strict=True))[optimiser],
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
