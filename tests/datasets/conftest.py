"""Every kind of artefact that crosses stages, tiny: how it is written, and what is read of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.datasets.checked import (
    CheckedJSONDataset,
    CheckedParquetDataset,
)
from kd_pipeline.datasets.checkpoints import CheckpointsDataset
from kd_pipeline.datasets.images import ImageSetDataset
from kd_pipeline.datasets.soft_targets import SoftTargetsDataset
from kd_pipeline.datasets.tables import TableDataset
from kd_pipeline.datasets.training_states import TrainingStatesDataset
from kd_pipeline.soft_targets.store import check_store


@dataclass(frozen=True)
class Kind:
    """One kind of artefact."""

    save: Callable[[Path, int], None]
    """Write the artefact of this number to a path, over what is there."""
    read: Callable[[Path], Any]
    """All that a stage reads of it, to be compared by `==`."""


def frame(table: pd.DataFrame) -> Any:
    text = table.to_csv(index=False, na_rep="null")
    return text, [str(kind) for kind in table.dtypes]


def tensors(value: Any) -> Any:
    """Nested values with the bytes of their tensors."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    return value


def of_dataset(make: type, content: Callable[[int], Any], compared: Callable[[Any], Any]) -> Kind:
    return Kind(
        lambda path, number: make(filepath=str(path)).save(content(number)),
        lambda path: compared(make(filepath=str(path)).load()),
    )


def image_set(number: int) -> ImageSet:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    return ImageSet(np.arange(5, dtype=np.int64) * 7, pixels, ("a", "ü"))


def every_pixel(images: ImageSet) -> Any:
    computed = ImageSet(images.example_ids, images.pixels, images.class_names).fingerprint
    return images.fingerprint, computed


def table(number: int) -> pd.DataFrame:
    ids = np.arange(40, dtype=np.int64) + number
    return pd.DataFrame(
        {
            "example_id": ids,
            "label": pd.array([None if i % 5 == 0 else i % 3 for i in ids], dtype="Int64"),
            "class_name": pd.array([f"class {i % 3}" for i in ids], dtype="string"),
            "nll": ids / 7,
        }
    )


def state(number: int) -> dict[str, Any]:
    weights = torch.arange(30, dtype=torch.float32) + number
    record = {"epoch": number, "history": [{"validation/loss": 0.1 * number}]}
    return {"network": {"weight": weights}, "optimiser": {0: weights / 3}, "record": record}


def save_state(path: Path, number: int) -> None:
    TrainingStatesDataset(filepath=str(path)).load().save("key", state(number))


def read_state(path: Path) -> Any:
    return tensors(TrainingStatesDataset(filepath=str(path)).load().load("key"))


def read_cache(path: Path) -> Any:
    cache = SoftTargetsDataset(filepath=str(path)).load()
    check_store(cache)
    rows = [part.rows.logits.tobytes() for part in cache.parts()]
    return cache.manifest, cache.example_ids.tobytes(), rows


@pytest.fixture(scope="session")
def kinds(
    untrained: Callable[..., Any],
    make_cache: Callable[..., Any],
    images: ImageSet,
    splits: pd.DataFrame,
) -> dict[str, Kind]:
    def save_cache(path: Path, number: int) -> None:
        make_cache(path, images, splits, teacher_fingerprints=(f"{number}",), rows_per_part=40)

    def checkpoints(number: int) -> Any:
        facts = {"images": "1f", "labels": f"{number}", "costs": {"cost/train_seconds": 0.5}}
        one, other = (untrained(seed, **facts) for seed in (number, number + 50))
        return [one, replace(one, quantised_state=other.state)]

    def card(number: int) -> dict[str, Any]:
        return {"fingerprints": [f"{number:016x}"], "class_names": ["a", "ü"]}

    def facts(loaded: Any) -> Any:
        return [(one.fingerprint, one.facts) for one in loaded]

    return {
        "images": of_dataset(ImageSetDataset, image_set, every_pixel),
        "checkpoints": of_dataset(CheckpointsDataset, checkpoints, facts),
        "table.parquet": of_dataset(CheckedParquetDataset, table, frame),
        "metrics.csv": of_dataset(TableDataset, table, frame),
        "card.json": of_dataset(CheckedJSONDataset, card, lambda loaded: loaded),
        "states": Kind(save_state, read_state),
        "cache": Kind(save_cache, read_cache),
    }
