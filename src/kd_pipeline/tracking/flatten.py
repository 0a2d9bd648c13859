"""Settings and results as MLflow takes them: flat names, short text, finite numbers."""

import json
import math
from collections.abc import Mapping
from typing import Any

_MAX_CHARACTERS = 500
# Blocks that only say whose settings these are: the same knob has one name in every arm.
_BLOCKS = ("teacher.", "student.", "arm.", "training.")
BASELINE_RIVALS = ("student_kd", "student_live")
"""The arm whose gains need no name: `gain/accuracy`."""


def flat_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to `optimiser.arguments.lr`, without the names of blocks.

    A name that two blocks share keeps its block in the second one. Values are spelt as in YAML,
    cut at 500 characters.
    """
    params: dict[str, str] = {}
    for name, value in _leaves(settings):
        short = name
        while short.startswith(_BLOCKS):
            short = short.partition(".")[2]
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
    """The values that can be drawn, as floats; null and NaN mean "not measured"."""
    numbers = {}
    for name, value in values.items():
        # numpy's scalars have float() too, and so have booleans and digits in a string.
        if value is None or isinstance(value, str | bool | list | dict | tuple):
            continue
        if math.isfinite(number := float(value)):
            numbers[name] = number
    return numbers


def soft_target_metrics(summary: Mapping[str, Any], *, namespace: str = "") -> dict[str, float]:
    """Name what a row of `soft_target_summary` says as a run shows it: `soft_targets/entropy_at_4`.

    Args:
        summary: The row of what the students hear.
        namespace: Of the caching, where there is more than one; it stands between.
    """
    prefix = f"soft_targets/{namespace}/" if namespace else "soft_targets/"
    return {f"{prefix}{name}": value for name, value in finite_numbers(summary).items()}


def gain_metrics(gains: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Name each arm's gain over the baseline as the comparison run shows it.

    The distilled arm, from the cache or live, has the plain names `gain/accuracy`,
    `gain/accuracy_ci_low`, `gain/accuracy_ci_high`, `gain/p_value` (of the accuracy), `gain/nll`
    and `gain/gap_recovered`; every other arm the same with its name between:
    `gain/<arm>/accuracy`.

    Args:
        gains: `gains` of comparison.json.
    """
    metrics: dict[str, Any] = {}
    for arm, gain in gains.items():
        prefix = "gain" if arm in BASELINE_RIVALS else f"gain/{arm}"
        accuracy = gain.get("accuracy") or {}
        low, high = accuracy.get("ci95") or (None, None)
        metrics |= {
            f"{prefix}/accuracy": accuracy.get("mean"),
            f"{prefix}/accuracy_ci_low": low,
            f"{prefix}/accuracy_ci_high": high,
            f"{prefix}/p_value": accuracy.get("p_value"),
            f"{prefix}/nll": (gain.get("nll") or {}).get("mean"),
            f"{prefix}/gap_recovered": gain.get("gap_recovered"),
        }
    return finite_numbers(metrics)
