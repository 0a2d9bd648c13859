"""Settings and results in the form of MLflow: flat names, short text, finite numbers."""

import json
import math
from collections.abc import Mapping
from typing import Any

_MAX_CHARACTERS = 500
# Left out of names, so that a setting has the same name in the run of every role.
_BLOCKS = ("teacher.", "student.", "arm.", "training.")


def flat_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to `optimiser.arguments.lr`, without the names of blocks.

    Where two blocks share a name, the second keeps its block's. Values are in JSON but for plain
    text, and cut at 500 characters. A loss is `soft_loss`, with or without settings of its own.
    """
    params: dict[str, str] = {}
    for name, value in _leaves(settings):
        short = name
        while short.startswith(_BLOCKS):
            short = short.partition(".")[2]
        short = "soft_loss" if short == "soft_loss.name" else short
        params[name if short in params else short] = _text(value)
    return params


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_MAX_CHARACTERS]


def finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, as floats; null and NaN mean "not measured"."""
    numbers = {}
    for name, value in values.items():
        # float() takes booleans and digits in a string too.
        if value is None or isinstance(value, str | bool | list | dict | tuple):
            continue
        if math.isfinite(number := float(value)):
            numbers[name] = number
    return numbers


def soft_target_metrics(summary: Mapping[str, Any], *, namespace: str = "") -> dict[str, float]:
    """Name the numbers of a row of `soft_target_summary`: `soft_targets/entropy_at_4`.

    With a namespace, where several caches are made: `soft_targets/<namespace>/entropy_at_4`.
    """
    prefix = f"soft_targets/{namespace}/" if namespace else "soft_targets/"
    return {f"{prefix}{name}": value for name, value in finite_numbers(summary).items()}


def export_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an exported file: `export/onnx_int8/accuracy`.

    Args:
        row: Of the export's metrics.
    """
    prefix = f"export/{row['target']}_{row['precision']}"
    left_out = (
        "replicate",
        "is_best",
        "validation_accuracy",
        "parameters",
        "macs",
        "checkpoint",
        "num_replicates",
    )
    numbers = finite_numbers({k: v for k, v in row.items() if k not in left_out})
    return {f"{prefix}/{name}": value for name, value in numbers.items()}


def export_comparison_metrics(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Name what int8 costs, in export_comparison.json: `export/onnx_int8/cost_difference`."""
    metrics: dict[str, float] = {}
    for kind, int8 in comparison["int8"].items():
        prefix = f"export/{kind.replace(' ', '_')}"
        named = {f"cost/{role}": cost for role, cost in int8["cost"].items()}
        named |= {k: int8[k] for k in ("gain", "cost_difference") if int8[k] is not None}
        for name, difference in named.items():
            metrics |= _with_interval(f"{prefix}/{name}", difference)
    return metrics


def gain_metrics(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Name each student's gain over the baseline in comparison.json.

    The distilled student has the plain names `gain/accuracy`, `gain/accuracy_ci_low`,
    `gain/accuracy_ci_high`, `gain/p_value`, `gain/p_value_holm` and `gain/smallest_detectable` (of
    the accuracy), `gain/nll`, `gain/nll_calibrated` with its `_ci_low` and `_ci_high`, and
    `gain/gap_recovered`; the others have `gain/<name>/accuracy` and so on.
    """
    metrics: dict[str, Any] = {}
    for student, gain in comparison["gains"].items():
        prefix = "gain" if student == comparison["distilled"] else f"gain/{student}"
        metrics |= {
            **_with_interval(f"{prefix}/accuracy", gain["accuracy"]),
            f"{prefix}/p_value": gain["accuracy"]["p_value"],
            f"{prefix}/p_value_holm": gain["accuracy"]["p_value_holm"],
            f"{prefix}/smallest_detectable": gain["accuracy"]["smallest_detectable"],
            f"{prefix}/nll": gain["nll"]["mean"],
            f"{prefix}/gap_recovered": gain.get("gap_recovered"),
        }
        if "nll_calibrated" in gain:
            metrics |= _with_interval(f"{prefix}/nll_calibrated", gain["nll_calibrated"])
    return finite_numbers(metrics)


def _with_interval(name: str, difference: Mapping[str, Any]) -> dict[str, float]:
    low, high = difference["ci95"]
    return {name: difference["mean"], f"{name}_ci_low": low, f"{name}_ci_high": high}


def cost_metrics(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Name the cost of one student of each arm: `cost/student_kd/total_seconds`."""
    return finite_numbers(
        {
            f"cost/{student}/{name}": seconds
            for student, cost in comparison["costs"].items()
            for name, seconds in cost.items()
        }
    )
