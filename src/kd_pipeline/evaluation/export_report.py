"""The section of the report on exported files: what each holds, and what int8 costs."""

from collections.abc import Mapping
from typing import Any

from kd_pipeline.evaluation import numbers
from kd_pipeline.evaluation.exported import CHECKPOINT
from kd_pipeline.evaluation.roles import BASELINE, TEACHER, label, words
from kd_pipeline.evaluation.tables import markdown

_Json = Mapping[str, Any]

FIGURE = "figures/export_figure.png"
_LATENCY = "latency_{}_ms_batch_1_threads_1"
_PRECISIONS = {"int8_aware": "int8, fine-tuned"}


def export_section(comparison: _Json) -> str:
    """Markdown of export_comparison.json; empty where nothing was exported."""
    if not comparison["files"]:
        return ""
    parts = [
        "## Exported files",
        "\n\n".join(sentences(comparison)),
        table(comparison),
        "Accuracy, NLL and ECE are of all test examples. ± is the standard deviation over "
        "replicates; sizes, agreement with the checkpoint, the largest difference of a logit and "
        "latencies are the best replicate's, chosen on validation. Latency is of one image on one "
        "thread of this machine, median and 95th percentile; export_metrics.csv has the others. "
        "Bytes of C are flash as compiled by this machine's compiler, or the one in KD_DEVICE_CC.",
        f"![Accuracy against size and latency]({FIGURE})",
    ]
    return "\n\n".join(part for part in parts if part)


def export_report(comparison: _Json, registration: str | None = None) -> str:
    """The section by itself, as export_report.md, and what came of registering a file."""
    nothing = "Nothing was exported: `model_export.enabled` is false."
    registered = f"\n## MLflow's registry\n\n{registration}\n" if registration else ""
    return f"# Exported files\n\n{export_section(comparison) or nothing}\n{registered}"


def sentences(comparison: _Json) -> list[str]:
    """What int8 costs each model, and whether it costs the distilled student more."""
    distilled, roles = comparison["distilled"], {file["role"] for file in comparison["files"]}
    found = []
    for name, int8 in comparison["int8"].items():
        target, _, precision = name.partition(" ")
        kind = f"{_PRECISIONS.get(precision, precision)} ({target})"
        costs = [
            f"{words(role)} {numbers.points(cost)} ({numbers.points_interval(cost)})"
            for role, cost in int8["cost"].items()
        ]
        found.append(f"From float32 to {kind}, accuracy changes by, in points: {'; '.join(costs)}.")
        if int8["cost_difference"] is not None:
            found.append(_difference(kind, int8))
    if distilled is not None and BASELINE in roles and comparison["float32_gain"] is None:
        found.append(
            f"{label(distilled)} and {label(BASELINE)} are not compared: their best replicates "
            "have different seeds. `model_export.replicates: all` compares all of them in pairs."
        )
    if comparison["float32_gain"] is not None:
        gain = comparison["float32_gain"]
        found.append(
            f"In float32 the gain of {label(distilled)} over {label(BASELINE)} is "
            f"{numbers.points(gain)} points ({numbers.points_interval(gain)})."
        )
    return found


def _difference(kind: str, int8: _Json) -> str:
    difference, gain = int8["cost_difference"], int8["gain"]
    answer = {
        1: "int8 costs the distilled student less than the baseline",
        -1: "int8 costs the distilled student more than the baseline",
        0: "that int8 costs the distilled student more or less than the baseline is not shown",
    }[numbers.shown_sign(difference)]
    return numbers.running_text(
        f"**As {kind}, {answer}**: the difference of the two changes is "
        f"{numbers.points(difference)} points ({numbers.points_interval(difference)}).",
        numbers.detectable_points(difference),
        f"The gain over the baseline, both in int8: {numbers.points(gain)} points "
        f"({numbers.points_interval(gain)}), better in {numbers.wins(gain)} replicates.",
    )


def table(comparison: _Json) -> str:
    """A row per model, target and precision."""
    head = [
        "model", "file", "accuracy %", "NLL", "ECE", "agreement %", "logit difference",
        "bytes", "RAM bytes", "p50 ms", "p95 ms",
    ]  # fmt: skip
    rows = [_row(file) for file in comparison["files"]]
    return markdown([head, *rows], words=head[:2])


def _row(file: _Json) -> list[str]:
    kind = f"{file['target']}, {_PRECISIONS.get(file['precision'], file['precision'])}"
    taken = file.get("flash_bytes", file.get("size_bytes"))
    members = file.get("num_replicates", 1)
    is_member = file["role"] == TEACHER and members > 1
    return [
        f"{TEACHER}, one of {members} members" if is_member else label(file["role"]),
        "checkpoint (torch)" if file["target"] == CHECKPOINT else kind,
        numbers.percent(file["accuracy"]),
        numbers.decimals(file["nll"]),
        numbers.decimals(file["ece"]),
        _or_nothing(file.get("agreement"), lambda value: f"{100 * value:.2f}"),
        _or_nothing(file.get("max_logit_difference"), lambda value: f"{value:.2g}"),
        numbers.size(taken),
        numbers.size(file.get("ram_bytes")),
        _or_nothing(file.get(_LATENCY.format("p50")), lambda value: f"{value:.3g}"),
        _or_nothing(file.get(_LATENCY.format("p95")), lambda value: f"{value:.3g}"),
    ]


def _or_nothing(value: float | None, show: Any) -> str:
    return numbers.NOTHING if value is None else str(show(value))
