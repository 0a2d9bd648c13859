"""The table of arms that a run ends with."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.roles import label

_TEACHER = "teacher"


def arms_table(comparison: Mapping[str, Any], report_path: str | None) -> str:
    """Line up what the teacher and every arm reached, and what each gained over the baseline.

    Args:
        comparison: As comparison.json holds it.
        report_path: Where the whole report lies; None says nothing of it.

    Returns:
        Plain text of several lines, columns aligned by spaces, no trailing newline.
    """
    gains = comparison["gains"]
    level = next((numbers.level(gain["accuracy"]) for gain in gains.values()), "95 %")
    header = [
        "",
        "accuracy %",
        "NLL",
        "ECE",
        "agreement %",
        f"gain in points [{level} interval]",
        "p",
    ]
    rows = [header]
    if comparison["teacher"] is not None:
        rows.append(_row(_TEACHER, comparison["teacher"], None))
    rows += [_row(arm, spreads, gains.get(arm)) for arm, spreads in comparison["arms"].items()]
    where = [] if report_path is None else ["", f"Report: {report_path}"]
    return "\n".join([*aligned(rows), *where])


def _row(role: str, spreads: Mapping[str, Any], gain: Mapping[str, Any] | None) -> list[str]:
    agreement = numbers.NOTHING
    if role != _TEACHER:
        agreement = numbers.percent({**spreads["teacher_agreement"], "std": None})
    return [
        label(role),
        numbers.percent(spreads["accuracy"]),
        numbers.decimals(spreads["nll"]),
        numbers.decimals(spreads["ece"]),
        agreement,
        numbers.NOTHING if gain is None else _gain(gain["accuracy"]),
        numbers.NOTHING if gain is None else numbers.p_value(gain["accuracy"]),
    ]


def _gain(difference: Mapping[str, Any]) -> str:
    low, high = (numbers.signed(100 * bound, places=2) for bound in difference["ci95"])
    return f"{numbers.points(difference)} [{low}, {high}]"


def aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, numbers to the right, and a rule under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
