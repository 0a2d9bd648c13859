"""A user's own loss by import path: what it is handed, what is asked of it, what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kd_pipeline.losses.hard import NO_LABEL, MixedLabels
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.teacher_logits import TeacherLogits

CODE = """
import torch

seen = []

def everything(student_logits, teacher_logits, *, temperature, labels, label_mask, num_classes,
               power=1.0):
    seen.append((student_logits, teacher_logits, temperature, labels, label_mask, num_classes))
    return ((student_logits - teacher_logits).abs() ** power).mean(dim=1)

def logits_alone(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean(dim=1)

def scalar(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean()

def wants_features(student_logits, teacher_logits, *, features):
    return student_logits

class Loss:
    pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own, where Python finds it, under a name of its own."""
    name = f"own_losses_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    # Of an earlier run of the tests in this process.
    monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / f"{name}.py"


def loss_of(module: Path, function: str, **arguments: Any) -> dict[str, Any]:
    block: dict[str, Any] = {"name": f"module:{module.stem}:{function}"}
    return {**block, "arguments": arguments} if arguments else block


def test_it_is_handed_what_its_signature_names(module: Path) -> None:
    block = loss_of(module, "everything", power=2.0)
    params = ObjectiveParams(soft_loss=block, soft_weight=1.0, temperature=3.0)
    student = torch.randn(3, 4).bfloat16()
    teacher, labels = torch.randn(3, 4), torch.tensor([2, NO_LABEL, 0])
    loss = Objective(params)(student, labels, TeacherLogits(teacher)).loss
    torch.testing.assert_close(loss, (student.float() - teacher).square().mean())
    (found,) = __import__(module.stem).seen
    assert found[0].dtype == torch.float32
    assert torch.equal(found[1], teacher)
    assert found[2] == 3.0
    assert torch.equal(found[3], labels)
    assert found[4].tolist() == [True, False, True]
    assert found[5] == 4


def test_rows_without_a_soft_target_never_reach_it(module: Path) -> None:
    params = ObjectiveParams(soft_loss=loss_of(module, "everything"), soft_weight=1.0)
    has = torch.tensor([True, False, True])
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    labels = torch.tensor([2, 1, NO_LABEL])
    Objective(params)(student, labels, TeacherLogits(teacher), has)
    (found,) = __import__(module.stem).seen
    assert torch.equal(found[0], student[has])
    assert found[3].tolist() == [2, NO_LABEL]


def test_a_bare_name_will_do_and_logits_may_be_standardised(module: Path) -> None:
    bare = ObjectiveParams(soft_loss=loss_of(module, "logits_alone")["name"], soft_weight=1.0)
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    labels = torch.tensor([0, 1, 2])
    plain = Objective(bare)(student, labels, TeacherLogits(teacher)).loss
    torch.testing.assert_close(plain, (student - teacher).square().mean())
    block = loss_of(module, "logits_alone") | {"standardise_logits": True}
    scaled = Objective(ObjectiveParams(soft_loss=block, soft_weight=1.0))
    found = [scaled(x, labels, TeacherLogits(teacher)).loss for x in (student, 5 * student)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_settings_that_were_serialised_are_read_back(module: Path) -> None:
    params = ObjectiveParams(soft_loss=loss_of(module, "logits_alone"))
    assert ObjectiveParams.model_validate(params.model_dump(mode="json")) == params


def test_its_code_is_part_of_the_key_of_a_training(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ObjectiveParams(soft_loss=loss_of(module, "logits_alone"))
    before = params.model_dump(mode="json")["soft_loss"]
    assert before["name"] == loss_of(module, "logits_alone")["name"]
    module.write_text(CODE + "# changed\n")
    assert params.model_dump(mode="json")["soft_loss"]["code"] != before["code"]


def test_what_its_signature_does_not_name_it_cannot_need(module: Path) -> None:
    """It has no temperature, and no labels: mixed images are no obstacle."""
    block = loss_of(module, "logits_alone")
    with pytest.raises(ValidationError, match="`temperature` must be 1 for module:"):
        ObjectiveParams(soft_loss=block, temperature=2.0)
    mixed = MixedLabels(*(torch.zeros(3).long(),) * 2, torch.full((3,), 0.5))
    logits = torch.randn(3, 4)
    alone, needing = (
        Objective(ObjectiveParams(soft_loss=loss_of(module, name), soft_weight=1.0))
        for name in ("logits_alone", "everything")
    )
    alone(logits, mixed, TeacherLogits(logits))
    with pytest.raises(ValueError, match="`soft_loss` must be one that needs no labels"):
        needing(logits, mixed, TeacherLogits(logits))


def test_a_loss_that_is_no_value_per_example_is_refused(module: Path) -> None:
    params = ObjectiveParams(soft_loss=loss_of(module, "scalar"), soft_weight=1.0)
    logits = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"`soft_loss` must give one value per example, \[batch\]"):
        Objective(params)(logits, torch.zeros(3).long(), TeacherLogits(logits))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("missing", {}, r"`soft_loss` must name a function as `package\.module:function`"),
        ("Loss", {}, "`soft_loss` must name a function, got"),
        ("wants_features", {}, "takes, by name, any of temperature, labels, label_mask, num_cl"),
        ("logits_alone", {"power": 2}, "`soft_loss` must name a function of student_logits"),
    ],
)
def test_a_path_or_a_signature_that_cannot_work_is_refused_with_the_settings(
    module: Path, function: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveParams(soft_loss=loss_of(module, function, **arguments))


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValidationError, match="No module named 'no_such_module'"):
        ObjectiveParams(soft_loss="module:no_such_module:loss")
