"""The comparison of all students as one JSON-able dict: the content of comparison.json."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.costs import student_costs
from kd_pipeline.evaluation.metrics import METRICS
from kd_pipeline.evaluation.paired import (
    POWER,
    PairedDifference,
    gap_recovered,
    paired_difference,
)
from kd_pipeline.evaluation.roles import BASELINE, LABELS, PSEUDO, TEACHER, intermediate_students
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.significance import holm, mcnemar

_SUMMARISED = tuple(metric for metric in METRICS if metric.summarised)
PAIRED = {m.key: (m.per_example, m.lower_is_better) for m in METRICS if m.per_example}

Cells = dict[str, NDArray[np.float64]]
"""`accuracy`, `nll`, `nll_calibrated` of one role, each [num_replicates, num_examples]."""
Pair = dict[str, PairedDifference]
"""The same of one role minus those of another, where both have them."""


def compare(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    params: EvaluationParams,
    run_identity: Mapping[str, Any],
    *,
    num_training_examples: int,
) -> dict[str, Any]:
    """Measure every student against the baseline, and the distilled one against the controls.

    `predictions` and `metrics` are those of `read_test_set`; `run_identity` has `group` and `env`;
    `num_training_examples` goes into `method`, beside the size of the test set.

    Returns:
        `group`, `env`, `arms` (all students), `teacher`, `gains` (each compared student over the
        baseline; the p-values of their accuracy are one family of tests), and beside them
        `teacher_gap` (the teacher over the baseline), `distilled` (the first compared student with
        a teacher, or null), `distilled_over` (that one over every other), `learnt_from` (each
        student's teacher, or "labels"), `intermediate` (students that others learnt from: measured,
        not compared in pairs), `models` (their architectures and sizes), `costs` (seconds of each
        student) and `method`. What is not finite is null.

    Raises:
        DataError: If the baseline is missing, or students differ in replicates or examples.
    """
    first = metrics.drop_duplicates("role").set_index("role")
    learnt_from = first["learnt_from"].drop(TEACHER, errors="ignore").to_dict()
    intermediate = intermediate_students(learnt_from)
    others = [role for role in learnt_from if role not in (*intermediate, BASELINE)]
    cells = _cells(predictions)
    if BASELINE not in cells:
        raise DataError(f"`predictions` must hold {BASELINE}, got {list(cells)}")
    baseline, gap = cells[BASELINE], _teacher_gap(cells, params)
    distilled = next((r for r in others if learnt_from[r] != LABELS and r != PSEUDO), None)
    return {
        "group": run_identity["group"],
        "env": run_identity["env"],
        "arms": {role: _summary(metrics, role) for role in learnt_from},
        "teacher": _summary(metrics, TEACHER) if gap else None,
        "gains": _gains({role: cells[role] for role in others}, baseline, gap, params),
        "teacher_gap": gap,
        "distilled": distilled,
        "distilled_over": _over_controls(cells, distilled, others, params),
        "learnt_from": learnt_from,
        "intermediate": intermediate,
        "models": {str(role): _model(row) for role, row in first.iterrows()},
        "costs": student_costs(metrics, learnt_from),
        "method": {
            **_method(baseline, params),
            "num_comparisons": len(others),
            "num_training_examples": num_training_examples,
            "test_ids_fingerprint": _ids_fingerprint(predictions),
            "num_classes": int(predictions[["label", "predicted"]].to_numpy().max()) + 1,
            "teacher_data_known": gap is not None and bool(first.loc[TEACHER, "data_known"]),
        },
    }


def _over_controls(
    cells: Mapping[str, Cells], distilled: str | None, others: list[str], params: EvaluationParams
) -> dict[str, Pair]:
    if distilled is None:
        return {}
    controls = [role for role in others if role != distilled]
    return {role: _pair(cells[distilled], cells[role], params) for role in controls}


def _cells(predictions: pd.DataFrame) -> dict[str, Cells]:
    """Each role's values; columns are the examples of all roles by id, NaN where one has none."""
    cells: dict[str, Cells] = {role: {} for role in predictions["role"].unique()}
    for key, (value_of, _) in PAIRED.items():
        if (per_example := value_of(predictions)) is None:
            continue
        rows = predictions.assign(value=per_example.astype(np.float64))
        table = rows.pivot(index=["role", "replicate"], columns="example_id", values="value")
        for role, of_role in cells.items():
            values = table.loc[role].to_numpy()
            if not np.isnan(values).all():  # As where one role alone is not calibrated.
                of_role[key] = values
    return cells


def _teacher_gap(cells: Mapping[str, Cells], params: EvaluationParams) -> Pair | None:
    """The teacher over the baseline: one model, paired with each replicate."""
    if TEACHER not in cells:
        return None
    baseline = cells[BASELINE]
    shape = baseline["accuracy"].shape
    teacher = {key: np.broadcast_to(values, shape) for key, values in cells[TEACHER].items()}
    return _pair(teacher, baseline, params)


def _gains(
    arms: Mapping[str, Cells], baseline: Cells, gap: Pair | None, params: EvaluationParams
) -> dict[str, dict[str, Any]]:
    """Each arm over the baseline; p-values of accuracy are adjusted for the number of arms."""
    pairs = {
        role: _pair(cells, baseline, params, num_comparisons=len(arms))
        for role, cells in arms.items()
    }
    adjusted = holm({role: pair["accuracy"]["p_value"] for role, pair in pairs.items()})
    for role, pair in pairs.items():
        pair["accuracy"]["p_value_holm"] = adjusted[role]
    return {
        role: {
            **pair,
            "gap_recovered": gap and gap_recovered(pair["accuracy"], gap["accuracy"]),
            "mcnemar": mcnemar(arms[role]["accuracy"], baseline["accuracy"]),
        }
        for role, pair in pairs.items()
    }


def _method(baseline: Cells, params: EvaluationParams) -> dict[str, Any]:
    num_replicates, num_test_examples = baseline["accuracy"].shape
    return {
        "num_replicates": num_replicates,
        "num_test_examples": num_test_examples,
        "num_bootstrap_samples": params.num_bootstrap_samples,
        "confidence_level": params.confidence_level,
        "power": POWER,
    }


def _ids_fingerprint(predictions: pd.DataFrame) -> str:
    """16 hex digits over the ids of the test examples: equal where runs share a test set."""
    ids = np.unique(predictions["example_id"].to_numpy(np.int64))
    return hashlib.sha256(ids.tobytes()).hexdigest()[:16]


def _pair(
    arm: Cells, baseline: Cells, params: EvaluationParams, *, num_comparisons: int = 1
) -> Pair:
    """Compare by each metric that both have; `num_comparisons` is the family of the accuracies."""
    return {
        key: paired_difference(
            arm[key],
            baseline[key],
            params,
            lower_is_better=lower_is_better,
            num_comparisons=num_comparisons if key == "accuracy" else 1,
        )
        for key, (_, lower_is_better) in PAIRED.items()
        if key in arm and key in baseline
    }


def _summary(metrics: pd.DataFrame, role: str) -> dict[str, Any]:
    """Mean, sample standard deviation and single values of one role's metrics."""
    rows = metrics[metrics["role"] == role].sort_values("replicate")
    return {metric.key: spread(rows[metric.name].tolist()) for metric in _SUMMARISED}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and single values; what is not finite is null."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {
        "mean": _finite_or_none(float(np.mean(values))),
        "std": _finite_or_none(std),
        "values": [_finite_or_none(value) for value in values],
    }


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _model(row: pd.Series) -> dict[str, Any]:
    sizes = {name: row[f"model/{name}"] for name in ("parameters", "macs")}
    known = {name: None if pd.isna(value) else int(value) for name, value in sizes.items()}
    return {"architecture": row["architecture"], **known}
