"""Numbers in the form of the report and the terminal.

A spread is `mean` and `std` over replicates, a difference that of two students in pairs; both are
those of comparison.json.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kd_pipeline.evaluation.paired import POWER

NOTHING = "-"
_Json = Mapping[str, Any]


def percent(spread: _Json) -> str:
    """A share's mean and standard deviation in percent: "89.88 ± 1.94"."""
    if spread["mean"] is None:
        return NOTHING
    deviation = "" if spread["std"] is None else f" ± {100 * spread['std']:.2f}"
    return f"{100 * spread['mean']:.2f}{deviation}"


def decimals(spread: _Json) -> str:
    """A mean with three decimals."""
    return NOTHING if spread["mean"] is None else f"{spread['mean']:.3f}"


def count(spread: _Json) -> str:
    """A mean count with one decimal where it has one."""
    return NOTHING if spread["mean"] is None else f"{spread['mean']:.1f}".removesuffix(".0")


def size(value: int | None) -> str:
    """A large whole number: "66,000"."""
    return NOTHING if value is None else f"{value:,}"


def points(difference: _Json) -> str:
    """A difference of shares in percentage points: "+4.85"."""
    return signed(100 * difference["mean"], places=2)


def points_interval(difference: _Json, *, between: str = " to ") -> str:
    """Its interval: "+4.10 to +5.60"."""
    return between.join(signed(100 * bound, places=2) for bound in difference["ci95"])


def nats(difference: _Json) -> str:
    """A difference of NLL and its interval: "-0.231 (-0.250 to -0.212)"."""
    interval = " to ".join(signed(bound, places=3) for bound in difference["ci95"])
    return f"{signed(difference['mean'], places=3)} ({interval})"


def p_value(difference: _Json, *, name: str = "p_value") -> str:
    """A p-value: "0.032", or "< 0.001"."""
    value = difference[name]
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


p_value_holm = partial(p_value, name="p_value_holm")
"""That after Holm's adjustment."""


def seconds(value: float | None) -> str:
    """A duration: "41.3"."""
    return NOTHING if value is None else f"{value:,.1f}"


def wins(difference: _Json) -> str:
    """Replicates in which the arm is better: "4 of 5"."""
    return f"{difference['wins']} of {difference['replicates']}"


def level(difference: _Json) -> str:
    """The level of an interval: "95 %"."""
    return f"{100 * difference.get('confidence_level', 0.95):g} %"


def shown_sign(difference: _Json) -> int:
    """1 or -1 where a difference is shown, else 0.

    Its interval lies on one side of 0 and, where it is one of several tests, its p-value is below
    the level after Holm's adjustment.
    """
    level = 1 - difference.get("confidence_level", 0.95)
    if "num_comparisons" in difference and difference["p_value_holm"] >= level:
        return 0
    low, high = difference["ci95"]
    return int(low > 0) - int(high < 0)


def detectable_points(difference: _Json) -> str:
    """Beside a null result, the smallest difference of shares that would have been shown."""
    smallest = difference["smallest_detectable"]
    if smallest is not None and smallest >= 1 and not shown_sign(difference):
        found = "With this spread no difference would have been shown, however large"
        return f"{found} ({_power(difference)})."
    return _detectable(difference, lambda value: f"{100 * value:.2f} points")


def detectable_nats(difference: _Json) -> str:
    """The same of NLL."""
    return _detectable(difference, lambda value: f"{value:.3f} nats")


def _detectable(difference: _Json, show: Callable[[float], str]) -> str:
    """A sentence; empty where the difference is shown, or nothing varied."""
    smallest = difference["smallest_detectable"]
    if shown_sign(difference) or smallest is None:
        return ""
    return (
        f"The smallest difference that this run could have shown is {show(smallest)} "
        f"({_power(difference)})."
    )


def _power(difference: _Json) -> str:
    """What it holds for, such as "power 80 %, level 5 % / 3 arms" where 3 gains are tested."""
    alpha, arms = 1 - difference.get("confidence_level", 0.95), difference.get("num_comparisons")
    return f"power {100 * POWER:g} %, level {100 * alpha:g} %" + (f" / {arms} arms" if arms else "")


def running_text(*sentences: str) -> str:
    """The sentences that are not empty, one after the other."""
    return " ".join(sentence for sentence in sentences if sentence)


def signed(value: float, *, places: int) -> str:
    """A number with its sign always shown, and no minus before a rounded zero."""
    return f"{round(value, places) + 0.0:+.{places}f}"
