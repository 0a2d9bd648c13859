"""The table of roles in the report and in the terminal."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.metrics import METRICS, Metric
from kd_pipeline.evaluation.roles import TEACHER

Columns = dict[str, Callable[[str], str]]
"""By heading: the cell of a role."""


def table_rows(comparison: Mapping[str, Any], columns: Columns) -> list[list[str]]:
    """The headings, then a row per role: the teacher, if it was measured, and all students."""
    roles = [*([TEACHER] if comparison["teacher"] else []), *comparison["arms"]]
    return [list(columns), *([cell(role) for cell in columns.values()] for role in roles)]


def model_columns(comparison: Mapping[str, Any]) -> Columns:
    """The size of each role; also architecture and teacher where students teach students."""
    models, learnt_from = comparison["models"], comparison["learnt_from"]
    columns: Columns = {
        "learnt from": lambda role: learnt_from.get(role, numbers.NOTHING),
        "architecture": lambda role: models[role]["architecture"],
        "parameters": lambda role: numbers.size(models[role]["parameters"]),
        "MACs": lambda role: numbers.size(models[role]["macs"]),
    }
    return columns if comparison["intermediate"] else {"parameters": columns["parameters"]}


def metric_columns(comparison: Mapping[str, Any], *, short: bool) -> Columns:
    """The metrics that have a heading, or a short one."""
    measured = {**comparison["arms"], TEACHER: comparison["teacher"]}

    def cell(metric: Metric, role: str) -> str:
        if metric.against_teacher and role == TEACHER:
            return numbers.NOTHING
        spread = measured[role][metric.key]
        # A line of the terminal has room for one deviation.
        return metric.show({**spread, "std": None} if short and metric != METRICS[0] else spread)

    shown = (m for m in METRICS if comparison["method"]["num_classes"] >= m.min_classes)
    headings = {(m.short_heading if short else m.heading): m for m in shown}
    return {heading: partial(cell, metric) for heading, metric in headings.items() if heading}


def gain_column(
    comparison: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str]
) -> Callable[[str], str]:
    """The cells of a column about each student's gain in accuracy over the baseline."""
    gains = comparison["gains"]
    return lambda role: show(gains[role]["accuracy"]) if role in gains else numbers.NOTHING
