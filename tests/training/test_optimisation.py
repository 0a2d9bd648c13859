"""Optimisers and schedules by name: torch's own, filled in, and refused by name."""

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import nn

from kd_pipeline.errors import ParameterError
from kd_pipeline.training.optimisation import (
    build_optimiser,
    build_schedule,
    scale_lr,
    step_on_validation,
)
from kd_pipeline.training.settings import Optimiser, Schedule


def optimiser(name: str = "SGD", **arguments: Any) -> torch.optim.Optimizer:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    params = Optimiser(name=name, arguments={"lr": 1.0} | arguments)
    return build_optimiser(layer.parameters(), params)


def rates(name: str, *, steps: int = 10, warmup: float = 0.0, **arguments: Any) -> list[float]:
    opt = optimiser()
    params = Schedule(name=name, arguments=arguments, warmup_fraction=warmup)
    schedule = build_schedule(opt, params, num_steps=steps)
    found = []
    for _ in range(steps):
        found.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adam", "RMSprop", "NAdam", "Adadelta"])
def test_torchs_optimisers_step_and_frozen_weights_are_left_out(name: str) -> None:
    built = optimiser(name)
    assert sum(len(group["params"]) for group in built.param_groups) == 1
    assert type(built).__name__ == name
    built.step()


def test_timms_muon_makes_matrices_orthogonal_and_passes_other_weights_to_adamw() -> None:
    kernels, bias = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.zeros(4))
    before = kernels.detach().clone()
    arguments = {"lr": 1.0, "adjust_lr_fn": "original", "fallback_lr_scale": 0.5}
    built = build_optimiser([kernels, bias], Optimiser(name="timm:Muon", arguments=arguments))
    kernels.grad, bias.grad = torch.randn(4, 2, 3, 3), torch.tensor([1.0, -2.0, 3.0, 4.0])
    built.step()
    singular = torch.linalg.svdvals((kernels - before).flatten(1))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    assert bias.tolist() == pytest.approx([-0.5, 0.5, -0.5, -0.5])


def test_without_timm_its_optimisers_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    message = r"`optimiser.name` must have timm.optim installed: pip install 'kd_pipeline\[timm\]'"
    with pytest.raises(ParameterError, match=message):
        optimiser("timm:Muon")


def test_cosine_falls_from_one_to_nearly_zero_after_a_linear_rise() -> None:
    found = rates("cosine", steps=12, warmup=0.25)
    assert found[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert found[3] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(found[3:]))
    assert found[-1] < 0.05


def test_constant_is_constant() -> None:
    assert rates("constant") == [1.0] * 10


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("OneCycleLR", {"max_lr": 1.0}),
        ("CosineAnnealingLR", {}),
        ("LinearLR", {"end_factor": 0.1}),
        ("StepLR", {"step_size": 3}),
        ("MultiStepLR", {"milestones": [2, 5]}),
    ],
)
def test_torchs_schedules_by_name_span_the_whole_training(
    name: str, arguments: dict[str, Any]
) -> None:
    assert min(rates(name, steps=20, **arguments)) < 1.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("AdamWW", {}, "`optimiser.name` must be one of torch.optim's, got 'AdamWW'; .*AdamW"),
        ("timm:Muo", {}, "must be one of timm.optim's, got 'timm:Muo'; legal: .*timm:Muon"),
        ("timm:Muon", {"l": 1}, "must be an argument of Muon, got 'l'; legal: .*lr"),
        ("LBFGS", {}, "`optimiser.name` must be one of torch.optim's, got 'LBFGS'"),
        ("SGD", {"betas": 1}, "`optimiser.arguments` must be an argument of SGD, got 'betas'"),
        ("SGD", {"lr": -1.0}, "`optimiser.arguments` must suit SGD"),
    ],
)
def test_rejects_optimisers(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        optimiser(name, **arguments)


@pytest.mark.parametrize(
    ("name", "warmup", "arguments", "message"),
    [
        ("cosin", 0.0, {}, "`schedule.name` must be one of .*cosine"),
        ("ReduceLROnPlateau", 0.1, {}, "`schedule.warmup_fraction` must be 0"),
        ("ReduceLROnPlateau", 0.0, {"mode": "least"}, "must suit ReduceLROnPlateau"),
        ("ReduceLRonPlateau", 0.0, {}, "legal: .*ReduceLROnPlateau"),
        ("StepLR", 0.1, {"step_size": 1}, "`schedule.warmup_fraction` must be 0"),
        ("StepLR", 0.0, {"size": 1}, "must be an argument of StepLR, got 'size'"),
        ("StepLR", 0.0, {}, "must suit StepLR"),
        ("cosine", 0.0, {"T_max": 3}, "must be empty for cosine"),
    ],
)
def test_rejects_schedules(
    name: str, warmup: float, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        rates(name, warmup=warmup, **arguments)


@pytest.mark.parametrize(
    ("params", "lr"),
    [
        (Optimiser(name="SGD", arguments={"lr": 0.5, "momentum": 0.9}), 0.05),
        (Optimiser(name="AdamW"), 1e-4),  # torch's default is 1e-3
    ],
)
def test_a_learning_rate_is_scaled_whether_given_or_default(params: Optimiser, lr: float) -> None:
    scaled = scale_lr(params, 0.1)
    assert scaled.arguments == params.arguments | {"lr": pytest.approx(lr)}
    assert (
        build_optimiser([nn.Parameter(torch.zeros(2))], scaled).defaults["lr"]
        == scaled.arguments["lr"]
    )


@pytest.mark.parametrize(("mode", "metric"), [("min", "loss"), ("max", "accuracy")])
def test_a_plateau_of_validation_lowers_the_rate(mode: str, metric: str) -> None:
    opt = optimiser()
    params = Schedule(name="ReduceLROnPlateau", arguments={"patience": 1, "mode": mode})
    schedule = build_schedule(opt, params, num_steps=9)
    found = []
    for value in (0.5, 0.5, 0.5, 0.5):
        other = {"validation/loss": 1 - len(found) / 9, "validation/accuracy": len(found) / 9}
        step_on_validation(schedule, other | {f"validation/{metric}": value})
        found.append(opt.param_groups[0]["lr"])
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_other_schedules_do_not_follow_validation() -> None:
    opt = optimiser()
    schedule = build_schedule(opt, Schedule(), num_steps=9)
    step_on_validation(schedule, {"validation/loss": 1.0})
    assert opt.param_groups[0]["lr"] == 1.0
