"""Exported files on the test set: metrics of each, and what int8 costs, in pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.evaluation.comparison import spread
from kd_pipeline.evaluation.metrics import LabelledLogits, example_table, measure
from kd_pipeline.evaluation.paired import PairedDifference, paired_difference
from kd_pipeline.evaluation.roles import (
    BASELINE,
    LABELS,
    PSEUDO,
    TEACHER,
    intermediate_students,
)
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.evaluation.test_set import labelled_test_rows

METRICS = ("test/accuracy", "test/nll", "test/ece", "test/errors")
"""Of those of a model, the ones that files are measured by; in tables without `test/`."""
CHECKPOINT = "checkpoint"
"""In place of a target: the trained model in float32."""
FLOAT = (CHECKPOINT, "float32")

_FILE = ["role", "replicate", "target", "precision"]
_Cells = NDArray[np.float64]


def measure_files(
    data: LabelledImages,
    files: Sequence[tuple[Mapping[str, Any], Tensor]],
    params: EvaluationParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure files, and the checkpoints that they are of, on the test set.

    Args:
        data: With the labels.
        files: Columns of a file (role, replicate, target, precision and others) and its logits
            float32 [num_examples, num_classes], in the order of the test ids.
        params: `evaluation`.

    Returns:
        predictions: role, replicate, target, precision, example_id, label, predicted, confidence,
            nll, in_top5.
        metrics: a row per file with its columns, accuracy, nll, ece and errors.
    """
    if not files:
        return pd.DataFrame(columns=[*_FILE, "example_id"]), pd.DataFrame(columns=_FILE)
    ids, labels = labelled_test_rows(data)
    tables, rows = [], []
    for columns, logits in files:
        read = LabelledLogits(logits, labels, None, params.num_calibration_bins)
        identity = {name: columns[name] for name in _FILE}
        tables.append(pd.DataFrame({**identity, "example_id": ids}).join(example_table(read)))
        measured = measure(read)
        rows.append({**columns, **{name.removeprefix("test/"): measured[name] for name in METRICS}})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def compare_files(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    params: EvaluationParams,
    learnt_from: Mapping[str, str],
) -> dict[str, Any]:
    """Summarise files over replicates, and what int8 costs each student and the distilled one more.

    Args:
        predictions: Those of `measure_files`.
        metrics: Likewise.
        params: `evaluation`.
        learnt_from: The role that each student learnt from, or "labels".

    Returns:
        `files`: a list with a dict per role, target and precision, the checkpoint's first: spreads
        of accuracy, nll, ece and errors over replicates, and the best replicate's sizes, parity and
        latency.
        `int8`: by "<target> <precision>", `cost` (int8 minus the checkpoint, by role), `gain` (the
        distilled student over the baseline, in int8), and `cost_difference` (the cost to the
        distilled student minus that to the baseline); the last two null unless there are the same
        replicates of both.
        `float32_gain`: of the checkpoints, or null. `distilled`: its name, or null.
        Each difference is of accuracy, in pairs of replicates and examples.
    """
    if metrics.empty:
        return {"files": [], "int8": {}, "float32_gain": None, "distilled": None}
    cells = _cells(predictions)
    roles = list(metrics["role"].unique())
    distilled = _distilled(roles, learnt_from)
    replicates = {role: set(rows["replicate"]) for role, rows in metrics.groupby("role")}
    # Replicate r of both has the same seed; others are no pairs.
    compared = distilled is not None and replicates[distilled] == replicates.get(BASELINE)
    quantised = [key for key in dict.fromkeys(k[1:] for k in cells) if key[1] != "float32"]
    return {
        "files": [_summary(rows, key) for key, rows in _groups(metrics)],
        "int8": {
            " ".join(key): _int8(cells, key, roles, distilled if compared else None, params)
            for key in quantised
        },
        "float32_gain": _minus(cells, (distilled, *FLOAT), (BASELINE, *FLOAT), params)
        if compared
        else None,
        "distilled": distilled,
    }


def _distilled(roles: Sequence[str], learnt_from: Mapping[str, str]) -> str | None:
    excluded = (TEACHER, BASELINE, PSEUDO, *intermediate_students(learnt_from))
    taught = [role for role in roles if learnt_from.get(role, LABELS) != LABELS]
    return next((role for role in taught if role not in excluded), None)


def _groups(metrics: pd.DataFrame) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    grouped = metrics.groupby(_FILE[:1] + _FILE[2:], sort=False)
    return [(tuple(map(str, key)), rows) for key, rows in grouped]


def _summary(rows: pd.DataFrame, key: tuple[str, ...]) -> dict[str, Any]:
    role, target, precision = key
    best = rows[rows["is_best"]].iloc[0]
    single = {k: _number(v) for k, v in best.items() if k not in (*_FILE, "checkpoint", "is_best")}
    names = [name.removeprefix("test/") for name in METRICS]
    return {
        "role": role,
        "target": target,
        "precision": precision,
        "best_replicate": int(best["replicate"]),
        "position_of_best": rows["is_best"].tolist().index(True),
        **{name: value for name, value in single.items() if value is not None},
        **{name: spread(rows[name].tolist()) for name in names},
    }


def _number(value: Any) -> float | int | None:
    """As JSON has it; null where a file has no such number."""
    if pd.isna(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def _cells(predictions: pd.DataFrame) -> dict[tuple[str, ...], _Cells]:
    """1 where right, [num_replicates, num_examples], by role, target and precision."""
    right = predictions.assign(right=predictions["predicted"] == predictions["label"])
    cells = {}
    for key, rows in right.groupby(_FILE[:1] + _FILE[2:], sort=False):
        table = rows.pivot(index="replicate", columns="example_id", values="right")
        cells[tuple(map(str, key))] = table.to_numpy(np.float64)
    return cells


def _int8(
    cells: Mapping[tuple[str, ...], _Cells],
    key: tuple[str, ...],
    roles: Sequence[str],
    distilled: str | None,
    params: EvaluationParams,
) -> dict[str, Any]:
    having = [role for role in roles if (role, *key) in cells]
    found: dict[str, Any] = {
        "cost": {role: _minus(cells, (role, *key), (role, *FLOAT), params) for role in having},
        "gain": None,
        "cost_difference": None,
    }
    if distilled is not None and {distilled, BASELINE} <= set(having):
        found["gain"] = _minus(cells, (distilled, *key), (BASELINE, *key), params)
        costs = [cells[role, *key] - cells[role, *FLOAT] for role in (distilled, BASELINE)]
        found["cost_difference"] = paired_difference(costs[0], costs[1], params)
    return found


def _minus(
    cells: Mapping[tuple[str, ...], _Cells],
    one: tuple[Any, ...],
    other: tuple[Any, ...],
    params: EvaluationParams,
) -> PairedDifference:
    return paired_difference(cells[one], cells[other], params)
