"""Metrics of logits: values worked by hand, laws, what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.classification import classification_metrics, example_table

# Probabilities 3/4, 1/4 (right), 1/2, 1/2 with the first taken (wrong).
TWO_EXAMPLES = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
TWO_LABELS = torch.tensor([0, 1])


def drawn(
    seed: int, num_examples: int = 50, num_classes: int = 7
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(num_examples, num_classes, generator=generator),
        torch.randint(num_classes, (num_examples,), generator=generator),
    )


def test_matches_values_worked_by_hand() -> None:
    measured = classification_metrics(TWO_EXAMPLES, TWO_LABELS, num_bins=10)
    assert measured["test/accuracy"] == 0.5
    assert measured["test/errors"] == 1
    assert isinstance(measured["test/errors"], int)
    assert measured["test/top5_accuracy"] == 1.0
    assert measured["test/nll"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    # Brier: (1/4)^2 * 2 and (1/2)^2 * 2. ECE: bins of one, |1 - 3/4| and |0 - 1/2|.
    assert measured["test/brier"] == pytest.approx((0.125 + 0.5) / 2)
    assert measured["test/ece"] == pytest.approx((0.25 + 0.5) / 2)


def test_example_table_matches_values_worked_by_hand() -> None:
    table = example_table(TWO_EXAMPLES, TWO_LABELS)
    assert table["predicted"].tolist() == [0, 0]
    assert table["confidence"].tolist() == pytest.approx([0.75, 0.5])
    assert table["nll"].tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert table["in_top5"].tolist() == [True, True]


@given(seed=st.integers(0, 2**16))
def test_table_and_metrics_tell_the_same(seed: int) -> None:
    logits, labels = drawn(seed)
    table, measured = (
        example_table(logits, labels),
        classification_metrics(logits, labels, num_bins=15),
    )
    right = table["predicted"] == table["label"]
    assert measured["test/accuracy"] == pytest.approx(right.mean())
    assert measured["test/errors"] == (~right).sum()
    assert measured["test/nll"] == pytest.approx(table["nll"].mean())
    assert measured["test/top5_accuracy"] == pytest.approx(table["in_top5"].mean())
    assert measured["test/top5_accuracy"] >= measured["test/accuracy"]
    assert 0 <= measured["test/ece"] <= 1
    assert 0 <= measured["test/brier"] <= 2


def test_top5_looks_at_the_best_five_of_more_classes() -> None:
    logits = torch.arange(7.0, 0.0, -1.0).repeat(7, 1)
    measured = classification_metrics(logits, torch.arange(7), num_bins=15)
    assert measured["test/top5_accuracy"] == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0]), r"must have shapes .* got \(2, 3\) and \(1,\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "n > 0"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "`logits` must be finite"),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "`logits` must be finite"),
        (torch.zeros(1, 3), torch.tensor([3]), "0 to 2, got 3 to 3"),
        (torch.zeros(1, 3), torch.tensor([-1]), "0 to 2, got -1 to -1"),
    ],
)
def test_refuses_what_cannot_be_measured(
    logits: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        classification_metrics(logits, labels, num_bins=15)
    with pytest.raises(DataError, match=message):
        example_table(logits, labels)
