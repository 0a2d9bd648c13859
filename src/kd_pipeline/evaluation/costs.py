"""What the students of a comparison cost: seconds of their teacher, its cache and themselves."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import pandas as pd

from kd_pipeline.evaluation.roles import LABELS


class Cost(TypedDict):
    """Seconds of one student, as in comparison.json; null where a part is not on record."""

    teacher_seconds: float | None
    """Training of all models that it learnt from, and of those that these learnt from."""
    caching_seconds: float | None
    """Labelling the transfer set for it, and for those that it learnt from."""
    train_seconds: float | None
    """Its own training, the mean of the replicates; beside a live teacher, labelling included."""
    total_seconds: float | None


def student_costs(metrics: pd.DataFrame, learnt_from: Mapping[str, str]) -> dict[str, Cost]:
    """The cost of one student of each arm, with all that it rests on.

    Args:
        metrics: Those of `read_test_set`.
        learnt_from: The role that each student learnt from, or "labels".
    """
    trained = metrics["cost/train_seconds"].astype(float).groupby(metrics["role"])
    cached = metrics["cost/caching_seconds"].astype(float).groupby(metrics["role"]).first()
    single, of_role = trained.mean(), trained.sum(skipna=False)

    def before(role: str) -> tuple[float, float]:
        """Seconds of teachers and of caches that a role rests on; NaN where not on record."""
        source = learnt_from.get(role, LABELS)
        if source == LABELS:
            return 0.0, 0.0
        teachers, caches = before(source)
        return teachers + of_role.get(source, np.nan), caches + cached.get(role, np.nan)

    return {role: _cost(*before(role), single[role]) for role in learnt_from}


def _cost(teacher: float, caching: float, own: float) -> Cost:
    parts = [None if np.isnan(part) else float(part) for part in (teacher, caching, own)]
    known = [part for part in parts if part is not None]
    total = sum(known) if len(known) == len(parts) else None
    return {
        "teacher_seconds": parts[0],
        "caching_seconds": parts[1],
        "train_seconds": parts[2],
        "total_seconds": total,
    }
