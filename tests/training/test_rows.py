"""Rows and their order: full batches, every row once a pass, paired between arms, all measured."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.training.rows import (
    BatchOrder,
    Rows,
    make_rows,
    measure_validation,
    transfer_partners,
)
from kd_pipeline.training.settings import Training


@given(num_rows=st.integers(1, 50), batch_size=st.integers(1, 70), seed=st.integers(0, 100))
def test_every_pass_is_a_permutation_and_every_batch_is_full(
    num_rows: int, batch_size: int, seed: int
) -> None:
    order = BatchOrder(torch.arange(num_rows) * 7, seed, batch_size)
    positions, passes = order.steps(0, 5 * num_rows)
    assert positions.shape == (5 * num_rows, batch_size)
    flat = positions.flatten()
    for start in range(0, len(flat) - num_rows + 1, num_rows):
        assert sorted(flat[start : start + num_rows].tolist()) == list(range(num_rows))
    assert torch.equal(passes.flatten(), torch.arange(len(flat)) // num_rows)


@given(first=st.integers(0, 30), count=st.integers(1, 10))
def test_any_step_is_the_same_wherever_one_starts(first: int, count: int) -> None:
    order = BatchOrder(torch.arange(13), 5, 4)
    whole, passes = order.steps(0, 40)
    part, part_passes = order.steps(first, count)
    assert torch.equal(part, whole[first : first + count])
    assert torch.equal(part_passes, passes[first : first + count])


def test_the_same_ids_give_the_same_batches_however_they_are_stored() -> None:
    ids = torch.tensor([4, 8, 15, 16, 23, 42])
    stored_otherwise = ids[[5, 0, 3, 1, 4, 2]]
    here, _ = BatchOrder(ids, 1, 4).steps(0, 9)
    there, _ = BatchOrder(stored_otherwise, 1, 4).steps(0, 9)
    assert torch.equal(ids[here], stored_otherwise[there])


def test_passes_and_seeds_shuffle_apart() -> None:
    order, _ = BatchOrder(torch.arange(100), 0, 100).steps(0, 2)
    other, _ = BatchOrder(torch.arange(100), 1, 100).steps(0, 1)
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0], other[0])


def test_validation_counts_every_row_of_every_batch() -> None:
    """2,500 rows are three batches, the last one smaller."""
    pixels = np.random.default_rng(0).integers(0, 255, (2500, 1, 2, 2), dtype=np.uint8)
    images = ImageSet(np.arange(2500), pixels, ("a", "b"))
    classifier = build_untrained(
        Model(name="mlp", arguments={"hidden": [4]}),
        Preprocessing((1, 2, 2), (0.5,), (0.3,)),
        num_classes=2,
        seed=0,
    )
    with torch.no_grad():
        logits = classifier.eval()(torch.from_numpy(pixels))
    wrong = torch.arange(2500) >= 2490  # Ten rows of the last batch.
    labels = logits.argmax(dim=1) ^ wrong.long()
    rows = Rows(images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20)), labels)
    found = measure_validation(classifier, rows, device="cpu")
    assert found["validation/accuracy"] == pytest.approx(2490 / 2500)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["validation/loss"] == pytest.approx(loss, rel=1e-5)


def test_partners_are_the_transfer_set_with_the_labels_that_students_may_use(
    data: LabelledImages,
) -> None:
    """A label that is not open to students must not reach them through a mixed image either."""
    training = Training(num_epochs=1, batch_size=4, device="cpu")
    partners = transfer_partners(data, training, MemoryBudget(0))
    ids = ids_with_role(data.splits, "transfer")
    same = transfer_partners(data, training, MemoryBudget(0), beside=partners)
    assert same.pixels is partners.pixels  # Not held twice.
    assert torch.equal(same.labels, partners.labels)
    other = make_rows(data, ids[1:], training, MemoryBudget(0))
    assert (
        transfer_partners(data, training, MemoryBudget(0), beside=other).pixels is not other.pixels
    )
    teacher = ids_with_role(data.splits, "teacher_train")
    assert partners.example_ids.tolist() == ids.tolist()
    known = np.isin(ids, teacher)
    assert 0 < known.sum() < len(ids)
    expected = data.labels_of(ids).where(torch.from_numpy(known), NO_LABEL)
    assert torch.equal(partners.labels, expected)
