"""Optimisers of torch and timm, and learning-rate schedules of torch, by name."""

import copy
import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.architectures import TIMM
from kd_pipeline.models.libraries import require
from kd_pipeline.models.state_folder import check_storable
from kd_pipeline.training.settings import Optimiser, Schedule


def build_optimiser(parameters: Iterable[nn.Parameter], params: Optimiser) -> torch.optim.Optimizer:
    """Build an optimiser of torch.optim or timm.optim; a fused kernel is used where there is one.

    Raises:
        ParameterError: If there is no such optimiser, or it does not take the arguments.
    """
    kind = _find_optimiser(params.name)
    legal = _check_arguments(kind, params.arguments, "optimiser.arguments", own={"params"})
    chosen = dict(params.arguments)
    if "fused" in legal and not {"fused", "foreach"} & set(chosen):
        chosen["fused"] = True
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        optimiser: torch.optim.Optimizer = kind(trainable, **chosen)
    except Exception as error:  # Of any kind, from inside torch.
        rule = f"suit {params.name} ({error})"
        raise ParameterError("optimiser.arguments", rule, params.arguments) from error
    if any(group.get("lr") is None for group in optimiser.param_groups):
        rule = "have an `lr`, which the schedule scales"
        raise ParameterError("optimiser.arguments", rule, params.arguments)
    return optimiser


def try_optimiser(network: nn.Module, params: Optimiser) -> None:
    """Take a step with a copy of a network: some optimisers need more than gradients.

    Raises:
        ParameterError: If the step fails, or its state cannot be kept for resuming.
    """
    copied = copy.deepcopy(network)
    optimiser = build_optimiser(copied.parameters(), params)
    for parameter in copied.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    try:
        optimiser.step()
        check_storable(optimiser.state_dict())
    except Exception as error:  # Of any kind, from inside torch or timm.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        rule = f"train by gradients alone, with a state that can be stored ({reason})"
        raise ParameterError("optimiser.name", rule, params.name) from error


def scale_lr(params: Optimiser, factor: float) -> Optimiser:
    """The same optimiser with its learning rate, given or torch's default, times a factor."""
    kind = _find_optimiser(params.name)
    default = inspect.signature(kind).parameters["lr"].default
    lr = factor * float(params.arguments.get("lr", default))
    return params.model_copy(update={"arguments": {**params.arguments, "lr": lr}})


def build_schedule(
    optimiser: torch.optim.Optimizer, params: Schedule, *, num_steps: int
) -> LRScheduler:
    """Build a schedule that is stepped once per optimiser step, or by `step_on_validation`.

    `total_steps`, `total_iters` and `T_max` of torch's own schedules are the number of steps
    unless they are given.

    Args:
        optimiser: Whose learning rate is scheduled.
        params: `constant`, `cosine` (to zero at the last step), or one of torch's.
        num_steps: All optimiser steps of the training.
    """
    if params.name in _CURVES:
        return _curve(optimiser, params, num_steps)
    if params.warmup_fraction:
        rule = "be 0 for a schedule of torch, which brings its own"
        raise ParameterError("schedule.warmup_fraction", rule, params.warmup_fraction)
    kind = _find(lr_scheduler, params.name, LRScheduler, "schedule.name", extra=tuple(_CURVES))
    legal = _check_arguments(kind, params.arguments, "schedule.arguments", own={"optimizer"})
    lengths = {"total_steps", "total_iters", "T_max"} & legal
    filled = dict.fromkeys(lengths, num_steps) | params.arguments
    try:
        schedule: LRScheduler = kind(optimiser, **filled)
    except Exception as error:  # Of any kind, from inside torch.
        rule = f"suit {params.name} ({error})"
        raise ParameterError("schedule.arguments", rule, params.arguments) from error
    return schedule


def step_on_validation(schedule: LRScheduler, metrics: Mapping[str, float]) -> None:
    """Step ReduceLROnPlateau: by the loss, or, where its `mode` is max, by the accuracy."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(metrics[f"validation/{'loss' if schedule.mode == 'min' else 'accuracy'}"])


def _curve(optimiser: torch.optim.Optimizer, params: Schedule, num_steps: int) -> LRScheduler:
    if params.arguments:
        rule = f"be empty for {params.name}"
        raise ParameterError("schedule.arguments", rule, params.arguments)
    num_warmup = math.ceil(params.warmup_fraction * num_steps)
    shape = _CURVES[params.name]

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        return shape((step - num_warmup) / max(1, num_steps - num_warmup))

    return lr_scheduler.LambdaLR(optimiser, factor)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


_CURVES = {"constant": lambda _done: 1.0, "cosine": _cosine}
"""Factor of the learning rate by the share of the steps after the warm-up that are done."""


def _find_optimiser(name: str) -> Any:
    parameter, base = "optimiser.name", torch.optim.Optimizer
    if not name.startswith(TIMM):
        return _find(torch.optim, name, base, parameter)
    library = require("timm.optim", extra="timm", parameter=parameter)
    return _find(library, name, base, parameter, TIMM)


def _find(
    module: object,
    name: str,
    base: type,
    parameter: str,
    prefix: str = "",
    extra: tuple[str, ...] = (),
) -> Any:
    known = {
        f"{prefix}{key}": value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
        and key != "LBFGS"  # It needs the loss as a function.
    }
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
