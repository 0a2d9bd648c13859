"""The tables of the report and the terminal, as rows of text: the first row is the headings."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.metrics import ARMS, CALIBRATION, METRICS, Metric
from kd_pipeline.evaluation.roles import TEACHER, label, measured_roles

_Json = Mapping[str, Any]
Rows = list[list[str]]
Columns = dict[str, Callable[[str], str]]
"""By heading: the cell of a role."""

IN_WORDS = ("arm", "learnt from", "architecture")
"""Headings of columns that hold no numbers."""


def table_rows(comparison: _Json, columns: Columns) -> Rows:
    """The headings, then a row per role: the teacher, if it was measured, and all students."""
    roles = measured_roles(comparison)
    return [list(columns), *([cell(role) for cell in columns.values()] for role in roles)]


def markdown(rows: Rows, *, words: Collection[str] = IN_WORDS) -> str:
    """Rows as a table in Markdown; `words` are the headings of columns without numbers."""
    head, *others = rows
    rule = ["---" if heading in words else "---:" for heading in head]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in others]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *cells])


def arms_rows(comparison: _Json) -> Rows:
    """The report's main table: metrics of each role, and each arm's gain in accuracy."""
    gained = partial(gain_column, comparison)
    columns: Columns = {
        "arm": label,
        **model_columns(comparison),
        **metric_columns(comparison, short=False),
        "gain in points": gained(numbers.points),
        "interval": gained(numbers.points_interval),
        "p": gained(numbers.p_value),
        "p (Holm)": gained(numbers.p_value_holm),
        "wins": gained(numbers.wins),
    }
    return table_rows(comparison, columns)


def calibration_rows(comparison: _Json) -> Rows:
    """NLL and ECE of each role before and after its temperature."""
    metrics = metric_columns(comparison, short=False, table=CALIBRATION)
    return table_rows(comparison, {"arm": label, **metrics})


def replicate_rows(comparison: _Json) -> Rows:
    """McNemar's test of each replicate of each arm: "12 / 34 (p 0.002)"."""
    gains = comparison["gains"]
    tests = zip(*(gain["mcnemar"] for gain in gains.values()), strict=True)
    head = ["replicate", *map(label, gains)]
    return [head, *([str(at), *map(_discordant, row)] for at, row in enumerate(tests))]


def cost_rows(comparison: _Json) -> Rows:
    """Seconds of one student of each arm."""
    parts = ("teacher_seconds", "caching_seconds", "train_seconds", "total_seconds")
    rows = [
        [label(role), *(numbers.seconds(cost[part]) for part in parts)]
        for role, cost in comparison["costs"].items()
    ]
    return [["arm", "its teacher", "caching", "one student", "together"], *rows]


def model_columns(comparison: _Json) -> Columns:
    """The size of each role; also architecture and teacher where students teach students."""
    models, learnt_from = comparison["models"], comparison["learnt_from"]
    columns: Columns = {
        "learnt from": lambda role: learnt_from.get(role, numbers.NOTHING),
        "architecture": lambda role: models[role]["architecture"],
        "parameters": lambda role: numbers.size(models[role]["parameters"]),
        "MACs": lambda role: numbers.size(models[role]["macs"]),
    }
    return columns if comparison["intermediate"] else {"parameters": columns["parameters"]}


def metric_columns(comparison: _Json, *, short: bool, table: str = ARMS) -> Columns:
    """The metrics of a table that have a heading, or a short one."""
    measured = measured_roles(comparison)

    def cell(metric: Metric, role: str) -> str:
        if metric.against_teacher and role == TEACHER:
            return numbers.NOTHING
        spread = measured[role][metric.key]
        # A line of the terminal has room for one deviation.
        return metric.show({**spread, "std": None} if short and metric != METRICS[0] else spread)

    num_classes = comparison["method"]["num_classes"]
    shown = (m for m in METRICS if table in m.tables and num_classes >= m.min_classes)
    headings = {(m.short_heading if short else m.heading): m for m in shown}
    return {heading: partial(cell, metric) for heading, metric in headings.items() if heading}


def gain_column(comparison: _Json, show: Callable[[_Json], str]) -> Callable[[str], str]:
    """The cells of a column about each student's gain in accuracy over the baseline."""
    gains = comparison["gains"]
    return lambda role: show(gains[role]["accuracy"]) if role in gains else numbers.NOTHING


def _discordant(test: _Json) -> str:
    return f"{test['arm_only']} / {test['baseline_only']} (p {numbers.p_value(test)})"
