"""Dense or top-k: indexed and mapped alike; the tail by hand and by law."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.teacher_logits import TeacherLogits, tail_logit, with_tail

TOP = TeacherLogits(
    np.arange(12.0).reshape(2, 3, 2), np.arange(12).reshape(2, 3, 2), np.arange(6.0).reshape(2, 3)
)


def test_rows_are_taken_from_every_array() -> None:
    taken = TOP[1, [2, 0]]
    assert taken.logits.tolist() == [[10, 11], [6, 7]]
    assert taken.class_ids is not None
    assert taken.class_ids.tolist() == [[10, 11], [6, 7]]
    assert taken.tail_logits is not None
    assert taken.tail_logits.tolist() == [5, 3]


def test_a_function_is_applied_to_what_is_there() -> None:
    dense = TeacherLogits(np.zeros((2, 3))).map(torch.from_numpy)
    assert isinstance(dense.logits, torch.Tensor)
    assert dense.class_ids is dense.tail_logits is None
    assert with_tail(TOP.map(torch.from_numpy))[1, 2].tolist() == [10, 11, 5]


def test_a_tail_worked_by_hand() -> None:
    """Probabilities 6/10, 3/10, 1/10 at temperature 2: the last two together are 4/10."""
    logits = 2 * torch.tensor([[6.0, 3.0, 1.0]]).log()
    tail = tail_logit(logits, torch.tensor([[0]]), temperature=2.0)
    torch.testing.assert_close(tail, torch.tensor([2 * math.log(4.0)]))


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.5, 20.0), k=st.integers(1, 6))
def test_the_tail_makes_the_bucketed_distribution(seed: int, temperature: float, k: int) -> None:
    """softmax([top / T, tail / T]) is p at T, with the probabilities of all others added up."""
    logits = 4 * torch.randn(
        2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    top = logits.topk(k)
    tail = tail_logit(logits, top.indices, temperature=temperature)
    bucketed = with_tail(TeacherLogits(top.values, top.indices, tail)) / temperature
    expected = (logits / temperature).softmax(-1).gather(-1, top.indices)
    torch.testing.assert_close(bucketed.softmax(-1)[..., :-1], expected)
    assert tail.dtype == logits.dtype


def test_logits_of_all_classes_have_no_tail() -> None:
    with pytest.raises(ValueError, match="no tail"):
        with_tail(TeacherLogits(torch.zeros(2, 3)))
