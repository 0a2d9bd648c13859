"""What `evaluate_models` takes."""

from collections.abc import Callable
from typing import Any

import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.models.checkpoint import DATA_FACTS, ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import TeacherParams, Training


@pytest.fixture
def given(
    tables: dict[str, Any], data: LabelledImages, untrained: Callable[..., ModelCheckpoint]
) -> dict[str, Any]:
    """An assistant between the untrained teacher and one of the students that are compared."""
    origin = {name: data.labelled_provenance[name] for name in DATA_FACTS}

    def make(first_seed: int, *teacher: ModelCheckpoint, count: int = 2) -> list[ModelCheckpoint]:
        learnt_from = [one.fingerprint for one in teacher]
        seeds = range(first_seed, first_seed + count)
        return [untrained(seed, teacher=learnt_from, **origin) for seed in seeds]

    teacher = [untrained(100, **origin)]
    assistant = make(30, *teacher, count=1)
    return tables | {
        "params": EvaluationParams(device="cpu", num_bootstrap_samples=100),
        "soft_target_params": SoftTargetsParams(),
        "teacher_params": TeacherParams(model=Model(name="mlp"), training=Training(num_epochs=1)),
        "teacher": teacher,
        "assistant": assistant,
        "student_assisted": make(0, *assistant),
        "student_kd": make(10, *teacher),
        "student_baseline": make(20),
    }
