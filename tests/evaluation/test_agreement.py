"""Agreement with the teacher: by hand, by law, by refusal."""

import math

import pytest
import torch

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.agreement import agreement_metrics


def test_matches_values_worked_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 1.0]])
    student = torch.tensor([[0.0, 0.1], [0.0, 1.0]])
    measured = agreement_metrics(student, teacher)
    total = 1 + math.exp(0.1)
    by_hand = 0.75 * math.log(0.75 * total) + 0.25 * math.log(0.25 * total / math.exp(0.1))
    assert measured["test/teacher_agreement"] == 0.5
    assert measured["test/teacher_kl"] == pytest.approx(by_hand / 2, rel=1e-6)


def test_the_divergence_is_of_the_student_from_the_teacher() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    forward = agreement_metrics(unsure, sure)["test/teacher_kl"]
    backward = agreement_metrics(sure, unsure)["test/teacher_kl"]
    assert forward < math.log(2) < backward


def test_a_model_agrees_with_itself_whatever_is_added_to_all_its_logits() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    measured = agreement_metrics(logits + 4.0, logits)
    assert measured["test/teacher_agreement"] == 1.0
    assert 0 <= measured["test/teacher_kl"] < 1e-6


def test_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match=r"got \(2, 3\) and \(2, 4\)"):
        agreement_metrics(torch.zeros(2, 3), torch.zeros(2, 4))
