"""What several stages take, and the events of a test."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.events import Event, listening
from kd_pipeline.models.settings import GivenLogits
from kd_pipeline.training.settings import TeacherParams

WriteLogits = Callable[..., TeacherParams]


@pytest.fixture
def tables(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> dict[str, Any]:
    """By the names of the nodes' parameters."""
    return {"images": images, "examples": examples, "splits": splits}


@pytest.fixture
def events() -> Iterator[list[Event]]:
    """All events of the test."""
    emitted: list[Event] = []
    with listening(emitted.append):
        yield emitted


@pytest.fixture
def write_logits(tmp_path: Path) -> WriteLogits:
    """Write logits computed elsewhere, and make the block `teacher` that names the file."""

    def write(ids: Any, logits: Any, class_names: Sequence[str]) -> TeacherParams:
        file = tmp_path / "logits.npz"
        np.savez(file, example_ids=ids, logits=logits, class_names=class_names)
        return TeacherParams(given=(GivenLogits(kind="logits", file=str(file)),))

    return write
