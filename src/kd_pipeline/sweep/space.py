"""The search space of an arm: values by dotted name, drawn by Optuna and put into blocks."""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.sweep.settings import SearchRange

if TYPE_CHECKING:
    from optuna import Trial

Blocks = dict[str, Any]
"""Blocks of parameters by name, as in YAML."""

SOFT_LOSS, TEMPERATURE = "soft_loss", "temperature"


def put(blocks: Mapping[str, Any], values: Mapping[str, Any]) -> Blocks:
    """A copy of the blocks with values at dotted names; blocks on the way are made."""
    changed = deepcopy(dict(blocks))
    for name, value in values.items():
        *above, last = name.split(".")
        block = changed
        for part in above:
            inner = block.get(part)
            if not isinstance(inner, dict):
                # A bare name, as `soft_loss: dkd`, stands for {name: dkd}.
                inner = {"name": inner} if isinstance(inner, str) else {}
            block[part] = inner
            block = inner
        block[last] = deepcopy(value)
    return changed


def apply_values(blocks: Mapping[str, Any], arm: str, values: Mapping[str, Any]) -> Blocks:
    """The blocks of a trial; an arm whose loss has no temperature gets none."""
    changed = put(blocks, values)
    if f"{arm}.{SOFT_LOSS}" in values and not _uses_temperature(changed[arm][SOFT_LOSS]):
        changed[arm].pop(TEMPERATURE, None)
    return changed


def _uses_temperature(soft_loss: Any) -> bool:
    return ObjectiveParams(soft_loss=soft_loss).soft_loss.record.uses_temperature


def look_up(blocks: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name; None where there is none."""
    value: Any = blocks
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def present_values(blocks: Mapping[str, Any], ranges: Mapping[str, SearchRange]) -> dict[str, Any]:
    """The settings at hand, as Optuna has them, as far as they lie in their ranges."""
    at_hand = {name: _as_given(name, look_up(blocks, name), ranges[name]) for name in ranges}
    return {n: _encode(value) for n, value in at_hand.items() if ranges[n].holds(value)}


def _as_given(name: str, value: Any, span: SearchRange) -> Any:
    """A soft loss as the choices have it: at hand it has all of its own settings."""
    if value is None or span.choices is None or not name.endswith(f".{SOFT_LOSS}"):
        return value
    wanted = ObjectiveParams(soft_loss=value)
    same = (one for one in span.choices if ObjectiveParams(soft_loss=one) == wanted)
    return next(same, value)


def suggest(trial: "Trial", ranges: Mapping[str, SearchRange], arm: str) -> dict[str, Any]:
    """Draw a value for each parameter; no temperature where the loss that was drawn has none."""
    loss, temperature = f"{arm}.{SOFT_LOSS}", f"{arm}.{TEMPERATURE}"
    values: dict[str, Any] = {}
    for name in sorted(ranges, key=lambda one: one != loss):
        if name == temperature and loss in values and not _uses_temperature(values[loss]):
            continue
        values[name] = _draw(trial, name, ranges[name])
    return values


def _draw(trial: "Trial", name: str, span: SearchRange) -> Any:
    if span.choices is not None:
        return _decode(trial.suggest_categorical(name, [_encode(one) for one in span.choices]))
    low, high = span.extremes
    if span.integer:
        return trial.suggest_int(name, low, high, log=span.log)
    return trial.suggest_float(name, low, high, log=span.log)


def decode_values(params: Mapping[str, Any], ranges: Mapping[str, SearchRange]) -> dict[str, Any]:
    """The values of a trial as in YAML, from those that Optuna has kept."""
    return {n: _decode(v) if ranges[n].choices is not None else v for n, v in params.items()}


_MARK = "json:"


def _encode(value: Any) -> Any:
    """Optuna keeps plain choices alone: blocks and lists are text to it."""
    return _MARK + json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _decode(value: Any) -> Any:
    is_text = isinstance(value, str) and value.startswith(_MARK)
    return json.loads(value.removeprefix(_MARK)) if is_text else value
