"""Metrics of logits: values worked by hand, laws, what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.metrics import METRICS, LabelledLogits, example_table, measure
from kd_pipeline.models.calibration import Calibration

# Probabilities 3/4, 1/4 (right), 1/2, 1/2 with the first taken (wrong).
TWO_EXAMPLES = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
TWO_LABELS = torch.tensor([0, 1])


def labelled(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> LabelledLogits:
    return LabelledLogits(logits, labels, None, num_bins)


def beside(student: Tensor, teacher: Tensor) -> LabelledLogits:
    return LabelledLogits(student, torch.zeros(len(student), dtype=torch.int64), teacher, 15)


def drawn(seed: int, num_examples: int = 50, num_classes: int = 7) -> LabelledLogits:
    generator = torch.Generator().manual_seed(seed)
    return labelled(
        3 * torch.randn(num_examples, num_classes, generator=generator),
        torch.randint(num_classes, (num_examples,), generator=generator),
    )


def test_matches_values_worked_by_hand() -> None:
    measured = measure(labelled(TWO_EXAMPLES, TWO_LABELS, num_bins=10))
    assert list(measured) == [metric.name for metric in METRICS]
    assert measured["test/accuracy"] == 0.5
    assert measured["test/errors"] == 1
    assert isinstance(measured["test/errors"], int)
    assert measured["test/top5_accuracy"] == 1.0
    assert measured["test/nll"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    # Brier: (1/4)^2 * 2 and (1/2)^2 * 2. ECE: bins of one, |1 - 3/4| and |0 - 1/2|.
    assert measured["test/brier"] == pytest.approx((0.125 + 0.5) / 2)
    assert measured["test/ece"] == pytest.approx((0.25 + 0.5) / 2)


def test_agreement_is_nan_without_a_teacher() -> None:
    measured = measure(labelled(TWO_EXAMPLES, TWO_LABELS))
    unknown = {name for name, value in measured.items() if math.isnan(value)}
    assert {name for name in unknown if "calibrat" not in name} == {
        "test/teacher_agreement", "test/teacher_kl",
    }  # fmt: skip
    assert "nll_calibrated" not in example_table(labelled(TWO_EXAMPLES, TWO_LABELS))


def test_calibrated_metrics_are_those_of_the_logits_divided_by_the_temperature() -> None:
    """At temperature 1/2 odds of 3 are odds of 9."""
    model = LabelledLogits(TWO_EXAMPLES, TWO_LABELS, None, 10, Calibration(0.5, 12))
    measured, plain = measure(model), measure(labelled(TWO_EXAMPLES, TWO_LABELS, num_bins=10))
    assert measured["test/nll_calibrated"] == pytest.approx((math.log(10 / 9) + math.log(2)) / 2)
    assert measured["test/ece_calibrated"] == pytest.approx((0.1 + 0.5) / 2)
    assert measured["calibration/temperature"] == 0.5
    assert measured["calibration/examples"] == 12
    assert {k: v for k, v in measured.items() if "calibrat" not in k} == pytest.approx(
        {k: v for k, v in plain.items() if "calibrat" not in k}, nan_ok=True
    )
    table = example_table(model)
    assert table["nll_calibrated"].tolist() == pytest.approx([math.log(10 / 9), math.log(2)])
    assert table["nll"].tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_agreement_matches_values_worked_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 1.0]])
    student = torch.tensor([[0.0, 0.1], [0.0, 1.0]])
    measured = measure(beside(student, teacher))
    total = 1 + math.exp(0.1)
    by_hand = 0.75 * math.log(0.75 * total) + 0.25 * math.log(0.25 * total / math.exp(0.1))
    assert measured["test/teacher_agreement"] == 0.5
    assert measured["test/teacher_kl"] == pytest.approx(by_hand / 2, rel=1e-6)


def test_the_divergence_is_of_the_student_from_the_teacher() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    forward = measure(beside(unsure, sure))["test/teacher_kl"]
    backward = measure(beside(sure, unsure))["test/teacher_kl"]
    assert forward < math.log(2) < backward


def test_a_model_agrees_with_itself_whatever_is_added_to_all_its_logits() -> None:
    logits = drawn(0).logits
    measured = measure(beside(logits + 4.0, logits))
    assert measured["test/teacher_agreement"] == 1.0
    assert 0 <= measured["test/teacher_kl"] < 1e-6


def test_example_table_matches_values_worked_by_hand() -> None:
    table = example_table(labelled(TWO_EXAMPLES, TWO_LABELS))
    assert table["predicted"].tolist() == [0, 0]
    assert table["confidence"].tolist() == pytest.approx([0.75, 0.5])
    assert table["nll"].tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert table["in_top5"].tolist() == [True, True]


@given(seed=st.integers(0, 2**16))
def test_table_and_metrics_agree(seed: int) -> None:
    model = replace(drawn(seed), calibration=Calibration(1.5, 20))
    table, measured = example_table(model), measure(model)
    for metric in METRICS:
        if metric.per_example is not None:
            values = metric.per_example(table)
            assert values is not None
            assert measured[metric.name] == pytest.approx(values.mean())
    assert measured["test/errors"] == (table["predicted"] != table["label"]).sum()
    assert measured["test/top5_accuracy"] == pytest.approx(table["in_top5"].mean())
    assert measured["test/top5_accuracy"] >= measured["test/accuracy"]
    assert 0 <= measured["test/ece"] <= 1
    assert 0 <= measured["test/brier"] <= 2


def test_top5_is_of_the_best_five_of_more_classes() -> None:
    logits = torch.arange(7.0, 0.0, -1.0).repeat(7, 1)
    measured = measure(labelled(logits, torch.arange(7)))
    assert measured["test/top5_accuracy"] == pytest.approx(5 / 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(DataError, match="`logits` must be finite"):
        labelled(torch.tensor([[0.0, value]]), torch.tensor([0]))
