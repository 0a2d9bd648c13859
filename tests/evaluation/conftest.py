"""A comparison as a run makes it, from predictions that are drawn, not learnt."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.evaluation.comparison import compare

ARMS = ("student_kd", "student_baseline", "student_smoothed", "student_pseudo")
DEFAULT = {
    "teacher": 0.99,
    "student_kd": 0.95,
    "student_baseline": 0.90,
    "student_smoothed": 0.88,
    "student_pseudo": 0.95,
}


class Result(NamedTuple):
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    comparison: dict[str, Any]
    class_names: tuple[str, ...]


def draw_result(
    accuracy: Mapping[str, float] = DEFAULT,
    *,
    num_replicates: int = 5,
    num_examples: int = 600,
    num_classes: int = 10,
    confidence_level: float = 0.95,
    seed: int = 0,
    data_known: bool = True,
) -> Result:
    """Roles with about these accuracies; difficulty of examples is shared by all roles."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_examples) % num_classes
    difficulty = generator.random(num_examples)
    tables, rows = [], []
    for role, share in accuracy.items():
        for replicate in range(1 if role == "teacher" else num_replicates):
            blur = difficulty * 0.8 + 0.2 * generator.random(num_examples)
            right = blur < np.quantile(blur, share + generator.normal(0, 0.003))
            wrong = (labels + 1 + generator.integers(num_classes - 1, size=num_examples)) % (
                num_classes
            )
            confidence = np.clip(
                1 - 0.6 * blur**3 + generator.normal(0, 0.03, num_examples), 0.2, 1
            )
            tables.append(
                pd.DataFrame(
                    {
                        "role": role,
                        "replicate": replicate,
                        "example_id": np.arange(num_examples),
                        "label": labels,
                        "predicted": np.where(right, labels, wrong),
                        "confidence": confidence,
                        "nll": -np.log(np.where(right, confidence, (1.01 - confidence) / 2)),
                        "in_top5": True,
                    }
                )
            )
            rows.append(
                {
                    "role": role,
                    "replicate": replicate,
                    "checkpoint": f"{len(rows):016x}",
                    "data_known": data_known,
                    "test/accuracy": right.mean(),
                    "test/errors": int((~right).sum()),
                    "test/nll": tables[-1]["nll"].mean(),
                    "test/ece": abs(confidence.mean() - right.mean()),
                    "test/teacher_agreement": 1.0 if role == "teacher" else right.mean(),
                    "model/parameters": 66_000 if role == "teacher" else 2_410,
                }
            )
    predictions, metrics = pd.concat(tables, ignore_index=True), pd.DataFrame(rows)
    comparison = compare(
        predictions, metrics, num_samples=500, confidence_level=confidence_level, seed=0
    )
    return Result(
        predictions, metrics, comparison, tuple(f"class {index}" for index in range(num_classes))
    )


@pytest.fixture
def draw() -> Callable[..., Result]:
    return draw_result


@pytest.fixture(scope="session")
def result() -> Result:
    return draw_result()
