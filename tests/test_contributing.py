"""What CONTRIBUTING.md promises: its worked example works, and every way to check runs the same."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_pipeline.losses import distillation
from kd_pipeline.losses.distillation import SOFT_LOSSES
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.record import SoftLoss
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.teacher_logits import TeacherLogits

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_worked_example_of_a_first_change_works(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"   ```python\n(.*?)   ```", read("CONTRIBUTING.md"), re.DOTALL)
    test, loss = ("\n".join(line[3:] for line in block.splitlines()) for block in blocks)
    scope: dict[str, Any] = vars(distillation) | {"math": math, "pytest": pytest, "torch": torch}
    exec(loss, scope)
    exec(test, scope)
    scope["test_squared_distance_matches_a_value_worked_by_hand"]()
    monkeypatch.setitem(SOFT_LOSSES, "probability_mse", SoftLoss(scope["probability_mse"]))
    params = ObjectiveParams(soft_loss="probability_mse", temperature=4.0, soft_weight=1.0)
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = TeacherLogits(torch.eye(2, 3))
    Objective(params)(student, torch.tensor([0, 1]), teacher, None).loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_the_hook_of_pre_commit_is_make_check_and_the_public_ci_is_the_script() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]
    (job,) = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"].values()
    used = [step.get("run", step.get("uses", "").partition("@")[0]) for step in job["steps"]]
    assert used == ["actions/checkout", "actions/setup-python", ".ci/run"]


def test_make_help_shows_every_target() -> None:
    makefile = read("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(phony.split()) == targets
    assert set(re.findall(r"^([a-z-]+):.*## \w", makefile, re.MULTILINE)) == targets
