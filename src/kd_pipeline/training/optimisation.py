"""Optimisers and learning-rate schedules of torch, by name."""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from kd_pipeline.errors import ParameterError


def build_optimiser(
    parameters: Iterable[nn.Parameter], *, name: str, arguments: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Build an optimiser of torch.optim; its fused kernel is used where there is one."""
    kind = _find(torch.optim, name, torch.optim.Optimizer, "optimiser.name")
    legal = _check_arguments(kind, arguments, "optimiser.arguments", own={"params"})
    chosen = dict(arguments)
    if "fused" in legal and not {"fused", "foreach"} & set(chosen):
        chosen["fused"] = True
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        optimiser: torch.optim.Optimizer = kind(trainable, **chosen)
    except (TypeError, ValueError, RuntimeError) as error:
        rule = f"suit {name} ({error})"
        raise ParameterError("optimiser.arguments", rule, dict(arguments)) from error
    return optimiser


def build_schedule(
    optimiser: torch.optim.Optimizer,
    *,
    name: str,
    arguments: Mapping[str, Any],
    warmup_fraction: float,
    num_steps: int,
) -> LRScheduler:
    """Build a schedule that is stepped once per optimiser step.

    Args:
        optimiser: Whose learning rate is scheduled.
        name: `constant`, `cosine` (to zero at the last step), or a class of
            torch.optim.lr_scheduler; `total_steps`, `total_iters` and `T_max` are filled in from
            the number of steps unless given.
        arguments: The class's own arguments.
        warmup_fraction: Share of the steps over which the rate first rises linearly.
        num_steps: All optimiser steps of the training.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if name in ("constant", "cosine"):
        if arguments:
            raise ParameterError("schedule.arguments", f"be empty for {name}", dict(arguments))
        shape = _CURVES[name]

        def factor(step: int) -> float:
            if step < num_warmup:
                return (step + 1) / (num_warmup + 1)
            return shape((step - num_warmup) / max(1, num_steps - num_warmup))

        return lr_scheduler.LambdaLR(optimiser, factor)
    if num_warmup:
        rule = "be 0 for a schedule of torch, which brings its own"
        raise ParameterError("schedule.warmup_fraction", rule, warmup_fraction)
    kind = _find(lr_scheduler, name, LRScheduler, "schedule.name", extra=tuple(_CURVES))
    legal = _check_arguments(kind, arguments, "schedule.arguments", own={"optimizer"})
    lengths = {"total_steps", "total_iters", "T_max"} & legal
    try:
        filled = dict.fromkeys(lengths, num_steps) | dict(arguments)
        schedule: LRScheduler = kind(optimiser, **filled)
    except (TypeError, ValueError) as error:
        rule = f"suit {name} ({error})"
        raise ParameterError("schedule.arguments", rule, dict(arguments)) from error
    return schedule


def _constant(_done: float) -> float:
    return 1.0


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


_CURVES = {"constant": _constant, "cosine": _cosine}
"""Factor of the learning rate by the share of the steps after the warm-up that are done."""


def _find(
    module: object, name: str, base: type, parameter: str, extra: tuple[str, ...] = ()
) -> Any:
    known = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    # They need a metric, or the loss as a function, at each step.
    for name_of_other_kind in ("ReduceLROnPlateau", "LBFGS"):
        known.pop(name_of_other_kind, None)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *extra], n=4, cutoff=0.3)
        rule = f"be one of {getattr(module, '__name__', module)}'s"
        raise ParameterError(parameter, rule, name, legal=near or [*known, *extra])
    return known[name]


def _check_arguments(
    kind: Any, arguments: Mapping[str, Any], parameter: str, *, own: set[str]
) -> set[str]:
    legal = set(inspect.signature(kind).parameters) - own
    for argument in arguments:
        if argument not in legal:
            rule = f"be an argument of {kind.__name__}"
            raise ParameterError(parameter, rule, argument, legal=legal)
    return legal
