"""Numbers in the form of the report and the terminal.

A spread is `mean` and `std` over replicates, a difference that of two students in pairs; both are
those of comparison.json.
"""

from collections.abc import Mapping
from typing import Any

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


def p_value(difference: _Json) -> str:
    """A p-value: "0.032", or "< 0.001"."""
    value = difference["p_value"]
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def level(difference: _Json) -> str:
    """The level of an interval: "95 %"."""
    return f"{100 * difference.get('confidence_level', 0.95):g} %"


def side_of_zero(difference: _Json) -> int:
    """1 or -1 where the interval lies on one side of 0, else 0."""
    low, high = difference["ci95"]
    return int(low > 0) - int(high < 0)


def signed(value: float, *, places: int) -> str:
    """A number with its sign always shown, and no minus before a rounded zero."""
    return f"{round(value, places) + 0.0:+.{places}f}"
