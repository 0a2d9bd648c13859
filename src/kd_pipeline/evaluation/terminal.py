"""What a run prints at its end."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from kd_pipeline.evaluation import numbers, tables
from kd_pipeline.evaluation.group_report import group_verdict
from kd_pipeline.evaluation.resplit_report import gain_rows, resplit_verdict
from kd_pipeline.evaluation.roles import label
from kd_pipeline.evaluation.verdict import too_few_replicates, verdict


def arms_table(comparison: Mapping[str, Any], report_path: str | None) -> str:
    """The table of all roles as plain text, with the verdict where students teach students.

    The last line is the path of the report; None leaves it out.
    """
    gained = partial(tables.gain_column, comparison)
    columns: tables.Columns = {
        "": label,
        **(tables.model_columns(comparison) if comparison["intermediate"] else {}),
        **tables.metric_columns(comparison, short=True),
        f"gain in points [{numbers.level(comparison['method'])} interval]": gained(_gain),
        "p (Holm)": gained(numbers.p_value_holm),
    }
    lines = _aligned(tables.table_rows(comparison, columns))
    if comparison["intermediate"]:
        lines += ["", *(sentence.replace("**", "") for sentence in verdict(comparison))]
    elif few := too_few_replicates(comparison):
        lines += ["", *few]
    if report_path is not None:
        lines += ["", f"Report: {report_path}"]
    return "\n".join(lines)


def exports_table(comparison: Mapping[str, Any], folder: str, report_path: str | None) -> str:
    """The table of exported files as plain text, and the folder of those that ship.

    The last line is the path of the report; None leaves it out.
    """
    head = ["", "file", "accuracy %", "bytes", "ms per image"]
    lines = [*_aligned([head, *map(_file_row, comparison["files"])]), "", f"Exported: {folder}"]
    if report_path is not None:
        lines.append(f"Report: {report_path}")
    return "\n".join(lines)


def groups_summary(compared: Mapping[str, Any], report_path: str | None) -> str:
    """What differs between past groups; the last line is the path of the report."""
    lines = [sentence.replace("**", "") for sentence in group_verdict(compared)]
    if report_path is not None:
        lines += ["", f"Report: {report_path}"]
    return "\n".join(lines)


def resplits_summary(combined: Mapping[str, Any], report_path: str) -> str:
    """The combined gains as plain text, the answer in words, and the path of the report."""
    answer = [sentence.replace("**", "") for sentence in resplit_verdict(combined)]
    lines = [*_aligned(gain_rows(combined, "gains")), "", *answer, "", f"Report: {report_path}"]
    return "\n".join(lines)


def _file_row(file: Mapping[str, Any]) -> list[str]:
    latency = file.get("latency_p50_ms_batch_1_threads_1")
    return [
        label(file["role"]),
        f"{file['target']} {file['precision']}",
        numbers.percent(file["accuracy"]),
        numbers.size(file.get("flash_bytes", file.get("size_bytes"))),
        numbers.NOTHING if latency is None else f"{latency:.3g}",
    ]


def _gain(difference: Mapping[str, Any]) -> str:
    interval = numbers.points_interval(difference, between=", ")
    return f"{numbers.points(difference)} [{interval}]"


def _aligned(rows: list[list[str]]) -> list[str]:
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
