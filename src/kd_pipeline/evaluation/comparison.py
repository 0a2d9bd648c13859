"""The comparison of all arms as one JSON-able dict: what comparison.json holds."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.paired import PairedDifference, gap_recovered, paired_difference

TEACHER = "teacher"
BASELINE = "student_baseline"
DISTILLED = ("student_kd", "student_live")
"""The arms that soft targets teach, from the cache or live; the first at hand is the one."""
_SUMMARISED = ("accuracy", "nll", "ece", "errors", "teacher_agreement")
_USUAL_LEVEL = 0.95

Cells = Mapping[str, NDArray[np.float64]]
"""`accuracy` and `nll` of one role, each [num_replicates, num_examples]."""


def compare(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    num_samples: int,
    confidence_level: float,
    seed: int,
) -> dict[str, Any]:
    """Measure every arm against the baseline, and the distilled one against the controls.

    Args:
        predictions: One row per role, replicate and test example, with `label`, `predicted`, `nll`.
        metrics: One row per role and replicate, with the columns `test/...`.
        num_samples: Bootstrap samples of a paired difference.
        confidence_level: Of every interval.
        seed: Of the bootstrap.

    Returns:
        `group` and `env` (null, for whoever knows them), `arms`, `teacher`, `gains` (each arm over
        the baseline), and beside them `teacher_gap` (the teacher over the baseline),
        `distilled` (its name, or null), `distilled_over` (that arm over each control) and
        `method`. JSON-able: what is not finite is null.

    Raises:
        DataError: If the baseline is missing, or replicates or examples differ.
    """
    cells = {str(role): _cells(rows) for role, rows in predictions.groupby("role", sort=False)}
    if BASELINE not in cells:
        raise DataError(f"`predictions` must hold {BASELINE}, got {list(cells)}")
    settings: dict[str, Any] = {
        "num_samples": num_samples,
        "confidence_level": confidence_level,
        "seed": seed,
    }
    baseline, arms = cells[BASELINE], [role for role in cells if role != TEACHER]
    measured = TEACHER in cells
    gap = _pair(cells[TEACHER], baseline, settings) if measured else None
    gains = {arm: _pair(cells[arm], baseline, settings) for arm in arms if arm != BASELINE}
    return {
        "group": None,
        "env": None,
        "arms": {arm: _summary(metrics, arm) for arm in arms},
        "teacher": _summary(metrics, TEACHER) if measured else None,
        "gains": {arm: _gain(pair, gap, confidence_level) for arm, pair in gains.items()},
        "teacher_gap": None if gap is None else _described(gap, confidence_level),
        "distilled": _distilled(list(gains)),
        "distilled_over": _distilled_over_controls(cells, list(gains), settings),
        "method": {
            "num_test_examples": int(baseline["accuracy"].shape[1]),
            "num_replicates": int(baseline["accuracy"].shape[0]),
            "num_comparisons": len(gains),
            "num_bootstrap_samples": num_samples,
            "confidence_level": confidence_level,
            "teacher_measured": measured,
            "teacher_data_known": measured and _is_known(metrics),
        },
    }


def paired_gains(
    predictions: pd.DataFrame,
    *,
    arm: str,
    references: Iterable[str],
    num_samples: int,
    confidence_level: float,
    seed: int,
) -> dict[str, Any]:
    """Measure one arm against each reference, in pairs.

    Args:
        predictions: As `compare` takes them.
        arm: A role.
        references: Roles whose replicate r shares its seed with the arm's.
        num_samples: Bootstrap samples of a paired difference.
        confidence_level: Of every interval.
        seed: Of the bootstrap.

    Returns:
        `accuracy` and `nll` by reference, as under `gains` of comparison.json.
    """
    settings = {"num_samples": num_samples, "confidence_level": confidence_level, "seed": seed}
    asked = {role: _cells(predictions[predictions["role"] == role]) for role in [arm, *references]}
    return {
        reference: _described(_pair(asked[arm], asked[reference], settings), confidence_level)
        for reference in asked
        if reference != arm
    }


def _is_known(metrics: pd.DataFrame) -> bool:
    return bool(metrics.loc[metrics["role"] == TEACHER, "data_known"].all())


def _distilled_over_controls(
    cells: Mapping[str, Cells], arms: list[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    distilled = _distilled(arms)
    if distilled is None:
        return {}
    return {
        arm: _described(_pair(cells[distilled], cells[arm], settings), settings["confidence_level"])
        for arm in arms
        if arm != distilled
    }


def _distilled(arms: list[str]) -> str | None:
    return next((arm for arm in DISTILLED if arm in arms), None)


def _cells(rows: pd.DataFrame) -> Cells:
    """One role's predictions as matrices whose columns are ordered by example id."""
    rows = rows.assign(accuracy=(rows["predicted"] == rows["label"]).astype(np.float64))
    tables = {
        name: rows.pivot(index="replicate", columns="example_id", values=name)
        for name in ("accuracy", "nll")
    }
    return {name: table.to_numpy(dtype=np.float64) for name, table in tables.items()}


def _pair(arm: Cells, baseline: Cells, settings: Mapping[str, Any]) -> dict[str, PairedDifference]:
    """Both measures; a single model, as the teacher is, stands beside every replicate."""
    return {
        name: paired_difference(
            np.broadcast_to(arm[name], baseline[name].shape) if len(arm[name]) == 1 else arm[name],
            baseline[name],
            lower_is_better=name == "nll",
            **settings,
        )
        for name in ("accuracy", "nll")
    }


def _gain(
    pair: Mapping[str, PairedDifference],
    gap: Mapping[str, PairedDifference] | None,
    level: float,
) -> dict[str, Any]:
    recovered = None if gap is None else gap_recovered(pair["accuracy"], gap["accuracy"])
    return {**_described(pair, level), "gap_recovered": recovered}


def _described(pair: Mapping[str, PairedDifference], level: float) -> dict[str, Any]:
    """As JSON; the key `ci95` is fixed, so another level is named beside it."""
    beside = {} if level == _USUAL_LEVEL else {"confidence_level": level}
    return {
        name: {
            "mean": difference.mean,
            "ci95": [difference.ci_low, difference.ci_high],
            "p_value": difference.p_value,
            "wins": difference.wins,
            "replicates": difference.replicates,
            **beside,
        }
        for name, difference in pair.items()
    }


def _summary(metrics: pd.DataFrame, role: str) -> dict[str, Any]:
    """Mean, sample standard deviation and single values of one role's metrics."""
    rows = metrics[metrics["role"] == role].sort_values("replicate")
    return {name: _spread(rows[f"test/{name}"].tolist()) for name in _SUMMARISED}


def _spread(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {
        "mean": finite_or_none(float(np.mean(values))),
        "std": finite_or_none(std),
        "values": [finite_or_none(value) for value in values],
    }


def finite_or_none(value: float) -> float | None:
    """NaN and infinity are not JSON: null stands for them."""
    return value if math.isfinite(value) else None
