"""A teacher's members: a model computes logits, imported ones are found; one interface for both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, DataError, ParameterError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.labelling.members import (
    Member,
    Predictor,
    check_members,
    identity_card,
    open_predictor,
    read_given_logits,
)
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.settings import GivenLogits
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.views import ViewPolicy, ViewRenderer
from kd_pipeline.views.settings import ViewsParams

SHIFT = ViewsParams(
    seed=5, num_views=4, transforms=[{"name": "shift", "max_pixels": 2, "padding": "zeros"}]
).policy
MIXUP = ViewsParams(seed=5, num_views=4, transforms=[{"name": "mixup"}]).policy

Untrained = Callable[..., ModelCheckpoint]


def open_member(
    member: Member, data: LabelledImages, ids: Any, *, batch_size: int = 7, **options: Any
) -> Predictor:
    computing = Computing(batch_size=batch_size, device="cpu")
    return open_predictor(member, data, ids, computing, **options)


def imported(data: LabelledImages) -> ImportedLogits:
    ids = data.images.example_ids
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    return ImportedLogits(ids, logits, data.images.class_names)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_a_model_predicts_the_pixels_of_that_view(
    data: LabelledImages, untrained: Untrained, shape: tuple[int, int, int]
) -> None:
    """Also one of another size and of colours than the images."""
    member = untrained(shape=shape)
    ids = data.images.example_ids[5:25].copy()
    ids.flags.writeable = False
    predictor = open_member(member, data, ids, policy=SHIFT)
    renderer = ViewRenderer(SHIFT, data.images.reader(ids, device="cpu"))
    for view in (0, 3):
        with torch.inference_mode():
            pixels = renderer.draw(torch.arange(20), view).render()
            expected = build_classifier(member)(pixels)
        logits = predictor.logits(slice(None), view=view)
        torch.testing.assert_close(logits, expected)
        assert logits.dtype == torch.float32


def test_views_that_mix_images_mix_in_any_of_these_examples(
    data: LabelledImages, untrained: Untrained
) -> None:
    ids = data.images.example_ids[20:60]
    pixels = data.images.reader(ids, device="cpu")
    mixed = ViewRenderer(MIXUP, pixels, pixels).draw(torch.arange(9), 2).render()
    assert not torch.equal(mixed * 255, data.images.take(ids[:9]).float())
    with torch.inference_mode():
        expected = build_classifier(untrained())(mixed)
    predictor = open_member(untrained(), data, ids, policy=MIXUP)
    torch.testing.assert_close(predictor.logits(slice(9), view=2), expected)


def test_every_row_is_predicted_in_order_whatever_the_batch(
    data: LabelledImages, untrained: Untrained
) -> None:
    ids, rows = data.images.example_ids, np.array([5, 2, 90, 7, 11])
    events: list[Event] = []
    with listening(events.append):
        small = open_member(untrained(), data, ids, batch_size=2).logits(rows)
    whole = open_member(untrained(), data, ids, batch_size=100)
    torch.testing.assert_close(small, whole.logits(rows))
    torch.testing.assert_close(small, whole.logits(slice(None))[rows])
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (5, 5)


def test_imported_logits_are_found_by_example_id(data: LabelledImages) -> None:
    member = imported(data)
    predictor = open_member(member, data, data.images.example_ids[2:50])
    assert torch.equal(predictor.logits(np.array([7, 3])), torch.from_numpy(member.logits[[9, 5]]))


def test_imported_logits_are_of_clean_images_alone(data: LabelledImages) -> None:
    ids = data.images.example_ids
    with pytest.raises(ParameterError, match=r"`views.transforms` must be empty .* \['shift'\]"):
        open_member(imported(data), data, ids, policy=SHIFT)
    with pytest.raises(DataError, match="only the clean view 0, got view 1"):
        open_member(imported(data), data, ids, policy=ViewPolicy(0)).logits(slice(None), view=1)


def given(folder: Path, ids: Any, names: list[str], **arrays: Any) -> list[GivenLogits]:
    """Logits in which column `c` of example `i` is 100 i + c."""
    logits = ids[:, None] * 100.0 + np.arange(len(names)) + 0.5
    file = folder / "logits.npz"
    np.savez(file, **{"example_ids": ids, "logits": logits, "class_names": names} | arrays)
    return [GivenLogits(kind="logits", file=str(file))]


def test_given_logits_are_read_with_the_images_classes_in_their_order(
    data: LabelledImages, tmp_path: Path
) -> None:
    ids = data.ids("transfer")
    (member,) = read_given_logits(given(tmp_path, ids, ["high", "low", "middle"]), data)
    assert member.class_names == ("low", "middle", "high")
    np.testing.assert_allclose(member.rows(ids[:2]), ids[:2, None] * 100 + [1.5, 2.5, 0.5])


def test_given_logits_that_fit_nothing_are_refused(data: LabelledImages, tmp_path: Path) -> None:
    ids, names = data.ids("transfer"), ["low", "middle", "high"]
    with pytest.raises(DataError, match=r"must cover the transfer set, got 1 of \d+ examples"):
        read_given_logits(given(tmp_path, ids[1:], names), data)
    with pytest.raises(CheckpointError, match=r"teacher\.given\[0\].*only in the teacher: top"):
        read_given_logits(given(tmp_path, ids, ["low", "middle", "top"]), data)
    two = [
        entry.model_copy(update={"class_names": ("low", "high")})
        for entry in given(tmp_path, ids, names)
    ]
    with pytest.raises(CheckpointError, match="2 classes where the images have 3"):
        read_given_logits(two, data)
    with pytest.raises(CheckpointError, match="must hold a member, got none"):
        read_given_logits([], data)


def test_a_teacher_whose_code_has_changed_is_refused_though_its_cache_is_whole(
    data: LabelledImages, untrained: Untrained
) -> None:
    check_members([untrained()], data)
    with pytest.raises(CheckpointError, match="the code of small_cnn has changed"):
        check_members([replace(untrained(), logits_digest="of older code")], data)


def test_a_card_names_the_members_of_either_kind(
    data: LabelledImages, untrained: Untrained
) -> None:
    model, logits = untrained(labels="abc"), imported(data)
    assert identity_card([logits, model], data.images.class_names) == {
        "fingerprints": [logits.fingerprint, model.fingerprint],
        "architectures": ["imported logits", "small_cnn"],
        "class_names": ["low", "middle", "high"],
        "labels": "abc",
    }
    assert identity_card([logits], ["low"]) == {
        "fingerprints": [logits.fingerprint],
        "architectures": ["imported logits"],
        "class_names": ["low"],
        "labels": None,
    }
