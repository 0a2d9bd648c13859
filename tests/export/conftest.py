"""Exported once for many tests: an export takes seconds."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.evaluation.exported import compare_files, measure_files
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.export.jobs import ExportedModel, export_models
from kd_pipeline.export.proof import run_models
from kd_pipeline.export.settings import Latency, ModelExportParams
from kd_pipeline.models.checkpoint import ModelCheckpoint

PARAMS = ModelExportParams(
    models=("student_kd",),
    replicates="all",
    num_calibration_rows=40,
    latency=Latency(num_warmup=1, num_repeats=2, batch_sizes=(1, 3)),
)


@pytest.fixture(scope="session")
def params() -> ModelExportParams:
    return PARAMS


@pytest.fixture(scope="session")
def students(
    data: LabelledImages,
    untrained: Callable[..., ModelCheckpoint],
    fitted: Callable[[ModelCheckpoint, int], ModelCheckpoint],
) -> list[ModelCheckpoint]:
    """Two replicates of these images and splits, of which the second is trained longer."""
    own = data.provenance
    facts = {"images": own["images"], "splits": own["splits"], "parameters": {"soft_weight": 1}}
    made = [untrained(seed, teacher=["t"], **facts) for seed in (0, 1)]
    return [fitted(one, num_steps) for one, num_steps in zip(made, (2, 40), strict=True)]


@pytest.fixture(scope="session")
def kept(
    data: LabelledImages, students: list[ModelCheckpoint], tmp_path_factory: Any
) -> list[ExportedModel]:
    folder = tmp_path_factory.mktemp("exported")
    return export_models(data, {"student_kd": students}, PARAMS, folder=folder)


@pytest.fixture
def exported(kept: list[ExportedModel], tmp_path: Path) -> list[ExportedModel]:
    """Copies, in a staging folder of the test's own: publishing removes it."""
    staging = tmp_path / "staging"
    shutil.copytree(kept[0].folder.parents[1], staging)
    root = kept[0].folder.parents[1]

    def moved(path: Path) -> Path:
        return staging / path.relative_to(root)

    return [
        replace(
            model,
            folder=moved(model.folder),
            files={k: replace(file, path=moved(file.path)) for k, file in model.files.items()},
        )
        for model in kept
    ]


@pytest.fixture(scope="session")
def proofs(data: LabelledImages, kept: list[ExportedModel]) -> list[tuple[dict[str, Any], Tensor]]:
    return run_models(data, kept, PARAMS)


@pytest.fixture(scope="session")
def measured(
    data: LabelledImages, proofs: list[tuple[dict[str, Any], Tensor]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    return measure_files(data, proofs, EvaluationParams())


@pytest.fixture(scope="session")
def comparison(measured: tuple[pd.DataFrame, pd.DataFrame]) -> dict[str, Any]:
    params = EvaluationParams(num_bootstrap_samples=100)
    return compare_files(*measured, params, {"student_kd": "teacher"})


@pytest.fixture(scope="session")
def noise() -> Tensor:
    """Pixels uint8 [5, 1, 8, 8]."""
    return torch.randint(
        0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """An empty folder to publish into."""
    return tmp_path / "export"
