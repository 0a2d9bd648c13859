"""Colours of the arms in MLflow's charts.

Runs have a colour of their own, the tag `mlflow.runColor`. Groups of runs have none: MLflow 3.17
colours a group by a hash of its name, which is the tag that it is grouped by and the tag's value.
See docs/decisions/0028-colours-in-mlflow.md.
"""

from collections.abc import Mapping

GROUPED_BY = "kd.arm"
"""The tag that saved views group by."""

_RUN_COLOUR = "mlflow.runColor"
_MOST_SPACES = 1000
_PALETTE = (
    "#a6630c", "#c83243", "#b45091", "#8a63bf", "#434a93", "#137dae", "#04867d", "#308613",
    "#facb66", "#1f272d", "#445461", "#5f7281", "#8396a5", "#93320b", "#be501e", "#de7921",
    "#f2be88", "#115026", "#277c43", "#3ba65e", "#8ddda8", "#9e102c", "#c82d4c", "#e65b77",
    "#f792a6", "#0e538b", "#2272b4", "#4299e0", "#8acaff",
)  # fmt: skip


def arm_tags(name: str, colour: str) -> Mapping[str, str]:
    """Tags of an arm's runs, by which charts of runs and of groups show it in one colour.

    Args:
        name: As charts are to show it.
        colour: Such as `#0072B2`; the nearest one of MLflow's palette is taken.
    """
    nearest = min(_PALETTE, key=lambda other: _distance(other, colour))
    return {GROUPED_BY: _named(name, nearest), _RUN_COLOUR: nearest}


def group_colour(value: str) -> str:
    """The colour that MLflow gives to the group of this value of `GROUPED_BY`."""
    low = high = 0
    for character in f"tag.{GROUPED_BY}.{value}":
        low = (low + ord(character)) % 255
        high = (high + low) % 255
    return _PALETTE[(low | high << 8) % len(_PALETTE)]


def _named(name: str, colour: str) -> str:
    """The name, followed by as many spaces as give its group the colour; no page shows them."""
    padded = (name + " " * count for count in range(_MOST_SPACES))
    return next((value for value in padded if group_colour(value) == colour), name)


def _distance(first: str, second: str) -> int:
    pairs = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return sum((a - b) ** 2 for a, b in pairs)
