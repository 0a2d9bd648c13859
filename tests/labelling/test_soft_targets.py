"""Labelling: every member and view apart, each from the pixels of that very view."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.data.views import ViewPolicy, render_views, view_parameters
from kd_pipeline.errors import CheckpointError, StaleArtefactError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.labelling.predict import predict_logits
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.soft_targets.store import SoftTargets

POLICY = ViewPolicy(5, ({"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"}))


def member(seed: int, class_names: tuple[str, ...]) -> ModelCheckpoint:
    arguments = {"channels": [4, 8], "dropout": 0.5}
    classifier = build_untrained(
        architecture="small_cnn",
        arguments=arguments,
        preprocessing=Preprocessing((1, 8, 8), (0.5,), (0.3,)),
        num_classes=len(class_names),
        seed=seed,
    )
    return snapshot(
        classifier,
        architecture="small_cnn",
        arguments=arguments,
        class_names=class_names,
        facts={},
    )


def test_cached_logits_are_those_of_the_member_on_that_view(
    images: ImageSet, splits: pd.DataFrame
) -> None:
    ids = ids_with_role(splits, "transfer")
    members = [member(seed, images.class_names) for seed in (0, 1)]
    made = label_transfer_set(
        members,
        images,
        ids,
        splits_fingerprint="s",
        policy=POLICY,
        num_views=3,
        batch_size=7,
        device="cpu",
        precision="float32",
    )
    for teacher, checkpoint in enumerate(members):
        for view in range(3):
            pick = (made.teachers == teacher) & (made.views == view)
            np.testing.assert_array_equal(made.example_ids[pick], ids)
            drawn = view_parameters(POLICY, torch.as_tensor(ids), view)
            pixels = render_views(images.take(ids), drawn, POLICY)
            with torch.inference_mode():
                expected = build_classifier(checkpoint)(pixels).numpy()
            np.testing.assert_allclose(made.logits[pick], expected, rtol=2e-3, atol=2e-3)
    assert made.manifest.provenance.teacher_fingerprints == tuple(m.fingerprint for m in members)


def test_every_row_is_predicted_in_order_whatever_the_batch(images: ImageSet) -> None:
    classifier = build_classifier(member(0, images.class_names))
    ids = images.example_ids[[5, 2, 90, 7, 11]]
    events: list[Event] = []
    with listening(events.append):
        small = predict_logits(classifier, images, ids, batch_size=2)
    whole = predict_logits(classifier, images, ids, batch_size=100)
    torch.testing.assert_close(small, whole)
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (5, 5)


def label_clean(teacher: ModelCheckpoint, images: ImageSet, splits: pd.DataFrame) -> SoftTargets:
    return label_transfer_set(
        [teacher],
        images,
        ids_with_role(splits, "transfer"),
        splits_fingerprint="s",
        policy=ViewPolicy(),
        num_views=1,
        batch_size=8,
        device="cpu",
        precision="float32",
    )


def test_a_teacher_of_other_classes_is_refused(images: ImageSet, splits: pd.DataFrame) -> None:
    with pytest.raises(
        CheckpointError, match=r"`teacher\.checkpoints` must have the images' classes"
    ):
        label_clean(member(0, ("x", "y", "z")), images, splits)


@pytest.mark.parametrize("what", ["images", "splits"])
def test_a_teacher_of_another_split_is_refused(
    images: ImageSet, splits: pd.DataFrame, what: str
) -> None:
    stale = replace(member(0, images.class_names), facts={what: "older"})
    with pytest.raises(StaleArtefactError, match=f"were trained on other {what}"):
        label_clean(stale, images, splits)
