"""Dense and top-k rows: the tail in closed form, and what float16 cannot hold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.soft_targets.encoding import Encoding, encode_logits
from kd_pipeline.teacher_logits import TeacherLogits


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def encode(logits: np.ndarray, encoding: Encoding) -> TeacherLogits[NDArray[Any]]:
    ids = np.arange(100, 100 + len(logits))
    return encode_logits(logits.astype(np.float32), encoding, member=2, view=5, example_ids=ids)


@given(
    seed=st.integers(0, 2**16),
    num_classes=st.integers(3, 300),
    temperature=st.floats(0.5, 20.0),
    data=st.data(),
)
def test_the_tail_makes_the_bucketed_distribution(
    seed: int, num_classes: int, temperature: float, data: st.DataObject
) -> None:
    """softmax([top / T, tail / T]) is the teacher's p at T, with all other classes added up."""
    top_k = data.draw(st.integers(1, num_classes - 1))
    logits = np.random.default_rng(seed).normal(size=(6, num_classes)) * 4
    made = encode(logits, Encoding(top_k, temperature))
    assert made.class_ids is not None
    assert made.tail_logits is not None
    stored = np.concatenate([made.logits, made.tail_logits[:, None]], axis=1).astype(np.float64)
    class_ids = made.class_ids.astype(np.int64)
    full = softmax(logits / temperature)
    top = np.take_along_axis(full, class_ids, axis=1)
    expected = np.concatenate([top, 1 - top.sum(axis=1, keepdims=True)], axis=1)
    # Half a unit in float16's last place, over the temperature: what p can move by.
    largest = np.abs(stored).max()
    np.testing.assert_allclose(
        softmax(stored / temperature), expected, atol=2 * largest * 2.0**-11 / temperature + 1e-6
    )
    left_out = np.delete(full[0], class_ids[0])
    assert top[0].min() >= left_out.max() - 1e-9


def test_a_tail_worked_by_hand() -> None:
    """Probabilities 6/10, 3/10, 1/10 at temperature 2: the bucket of the last two holds 4/10."""
    logits = 2 * np.log([[6.0, 3.0, 1.0]])
    made = encode(logits, Encoding(top_k=1, temperature=2.0))
    assert made.class_ids is not None
    assert made.tail_logits is not None
    assert made.class_ids.tolist() == [[0]]
    assert made.tail_logits[0] == np.float16(2 * np.log(4.0))


def test_all_classes_but_one_may_be_kept() -> None:
    made = encode(np.array([[3.0, 1.0, 2.0], [-1.0, 5.0, 0.0]]), Encoding(top_k=2, temperature=1.0))
    assert made.class_ids is not None
    assert made.tail_logits is not None
    assert made.class_ids.tolist() == [[0, 2], [1, 2]]
    assert made.tail_logits.tolist() == [1, -1]


def test_equal_logits_give_k_classes_all_the_same() -> None:
    made = encode(np.zeros((1, 6)), Encoding(top_k=3, temperature=1.0))
    assert made.class_ids is not None
    assert made.tail_logits is not None
    assert len(set(made.class_ids[0].tolist())) == 3
    assert made.tail_logits[0] == np.float16(np.log(3))


def test_many_rows_are_encoded_as_each_alone() -> None:
    """More than two blocks of 8,192 rows."""
    logits = np.random.default_rng(0).normal(size=(17_000, 4)) * 4
    together, encoding = encode(logits, Encoding(2, 4.0)), Encoding(2, 4.0)
    for start in (0, 8_191, 8_192, 16_384, 16_999):
        alone = encode(logits[start : start + 1], encoding)
        for name, values in vars(alone).items():
            np.testing.assert_array_equal(values[0], getattr(together, name)[start])
    assert together.logits.shape == (17_000, 2)
    # The tail is computed in float64: rounded to float32 on the way, a few of them would differ.
    others = np.sort(logits.astype(np.float32), axis=1)[:, :2].astype(np.float64)
    exact = 4 * np.log(np.exp(others / 4).sum(axis=1))
    np.testing.assert_array_equal(together.tail_logits, exact.astype(np.float32).astype(np.float16))


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(1, 4.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_536.0, -70_000.0])
def test_what_float16_cannot_hold_is_refused_by_name(value: float, encoding: Encoding) -> None:
    """As infinity it would make a loss NaN long after the teacher is gone."""
    logits = np.zeros((4, 3))
    logits[0, 0] = 65_504  # Just within it.
    logits[2, 1] = value
    message = rf"within ±65504.*got {value}.* for class 1 of example 102 in view 5 by teacher 2"
    with pytest.raises(DataError, match=message):
        encode(logits, encoding)


def test_a_tail_beyond_float16_is_refused() -> None:
    logits = np.full((1, 1000), 65_000.0)
    with pytest.raises(DataError, match=r"for the tail of example 100 .* by teacher 2"):
        encode(logits, Encoding(1, 100.0))


def test_the_largest_float16_is_kept() -> None:
    assert encode(np.array([[65_504.0, -65_504.0]]), Encoding()).logits.tolist() == [
        [65_504.0, -65_504.0]
    ]


@pytest.mark.parametrize("num_classes", [0, 65_536])
def test_a_class_count_that_16_bits_cannot_name_is_refused(num_classes: int) -> None:
    with pytest.raises(DataError, match=f"1 to 65535 classes, got {num_classes}"):
        Encoding().check(num_classes)


def test_one_class_is_enough() -> None:
    Encoding().check(1)


def test_the_last_class_of_the_most_classes_keeps_its_id() -> None:
    encoding = Encoding(top_k=1, temperature=1.0)
    encoding.check(65_535)
    logits = np.zeros((1, 65_535))
    logits[0, -1] = 9
    made = encode(logits, encoding)
    assert made.class_ids is not None
    assert made.class_ids.tolist() == [[65_534]]


def test_as_many_classes_as_are_kept_are_refused() -> None:
    with pytest.raises(
        ParameterError, match=r"top_k` must .* below the number of classes, 4, got 4$"
    ):
        Encoding(top_k=4, temperature=2.0).check(4)
