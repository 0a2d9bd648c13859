"""Decoupled and normalised KD: by hand, as KL and cross-entropy, and rows without a label."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import soft_cross_entropy_loss, soft_target_loss
from kd_pipeline.losses.hard import NO_LABEL

Logits = Compute = Callable[..., Tensor]
LABELS = torch.tensor([0, 3, 4, 1])
TARGET = {"name": "dkd", "target_weight": 1.0, "non_target_weight": 0.0}
OTHERS = {"name": "dkd", "target_weight": 0.0, "non_target_weight": 1.0}

# The teacher has 1/2, 3/8 and 1/8, the student 1/3 each, and the label is the first class.
TEACHER = torch.tensor([[4.0, 3.0, 1.0]]).log()
LABEL = torch.tensor([0])


def test_dkd_matches_a_value_worked_by_hand(compute: Compute) -> None:
    target = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    others = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    block = {"name": "dkd", "target_weight": 2.0, "non_target_weight": 3.0}
    # At temperature 2, of which the halved logits are those above.
    loss = compute(block, torch.zeros(1, 3), 2 * TEACHER, temperature=2.0, labels=LABEL)
    assert loss.item() == pytest.approx(4 * (2 * target + 3 * others), rel=1e-5)


def test_nkd_matches_a_value_worked_by_hand(compute: Compute) -> None:
    """The label's class at temperature 1, the others at 2 and times 4."""
    target = -0.5 * math.log(1 / 3)
    root = math.sqrt(3)  # (3/4 : 1/4) to the power of 1/2
    others = -(root * math.log(0.5) + math.log(0.5)) / (root + 1)
    block = {"name": "nkd", "non_target_weight": 1.5}
    loss = compute(block, torch.zeros(1, 3), TEACHER, temperature=2.0, labels=LABEL)
    assert loss.item() == pytest.approx(target + 1.5 * 4 * others, rel=1e-5)


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 20.0))
def test_dkd_with_the_weights_that_give_kl_is_kl(
    seed: int, temperature: float, logits: Logits, compute: Compute
) -> None:
    """Zhao et al. 2022, equation 7: the others weigh what the teacher gives them together."""
    student, teacher = logits(seed), logits(seed + 1)
    arguments = {"temperature": temperature, "labels": LABELS}
    target, others = (compute(block, student, teacher, **arguments) for block in (TARGET, OTHERS))
    of_label = (teacher / temperature).softmax(-1).gather(1, LABELS[:, None]).squeeze(1)
    torch.testing.assert_close(
        target + (1 - of_label) * others,
        soft_target_loss(student, teacher, temperature=temperature),
        rtol=1e-3,
        atol=1e-4,
    )


@given(seed=st.integers(0, 2**16))
def test_dkd_is_zero_only_where_the_student_agrees(
    seed: int, logits: Logits, compute: Compute
) -> None:
    teacher = logits(seed)
    student = teacher.clone()
    student[0] = logits(seed + 1)[0]
    loss = compute("dkd", student, teacher, temperature=4.0, labels=LABELS)
    assert loss[0] > 0
    torch.testing.assert_close(loss[1:], torch.zeros(3), rtol=0, atol=1e-5)


def test_the_others_do_not_depend_on_how_sure_the_teacher_is(
    logits: Logits, compute: Compute
) -> None:
    """What both losses are for: in KL their part vanishes as the teacher grows sure."""
    student, teacher = logits(0), logits(1)
    surer = teacher.scatter_add(1, LABELS[:, None], torch.full((4, 1), 15.0))
    torch.testing.assert_close(
        compute(OTHERS, student, teacher, labels=LABELS),
        compute(OTHERS, student, surer, labels=LABELS),
    )
    nkd = {"name": "nkd", "non_target_weight": 0.0}
    parts = [
        compute("nkd", student, x, labels=LABELS) - compute(nkd, student, x, labels=LABELS)
        for x in (teacher, surer)
    ]
    torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "plain"), [("dkd", soft_target_loss), ("nkd", soft_cross_entropy_loss)]
)
def test_rows_without_a_label_get_the_loss_that_is_decoupled(
    name: str, plain: Callable[..., Tensor], logits: Logits, compute: Compute
) -> None:
    student, teacher = logits(0), logits(1)
    labels = LABELS.clone()
    labels[[1, 2]] = NO_LABEL
    loss = compute(name, student, teacher, temperature=2.0, labels=labels)
    whole = compute(name, student, teacher, temperature=2.0, labels=LABELS)
    expected = plain(student, teacher, temperature=2.0)
    torch.testing.assert_close(loss[[1, 2]], expected[[1, 2]])
    torch.testing.assert_close(loss[[0, 3]], whole[[0, 3]])


def test_two_classes_are_refused_by_dkd_and_leave_nkd_its_first_part(
    logits: Logits, compute: Compute
) -> None:
    student, teacher, labels = logits(0, 2), logits(1, 2), torch.tensor([0, 1, 1, 0])
    message = "`soft_loss` must be another than dkd for two classes, .* beside the label's, got 2$"
    with pytest.raises(ParameterError, match=message):
        compute("dkd", student, teacher, labels=labels)
    first = {"name": "nkd", "non_target_weight": 0.0}
    torch.testing.assert_close(
        compute("nkd", student, teacher, labels=labels),
        compute(first, student, teacher, labels=labels),
    )
