"""Predictors: a model computes, imported logits are looked up; one interface for both."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import ParameterError, StaleArtefactError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.labelling import predictor as predict
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.imported_logits import imported_checkpoint
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.views import ViewPolicy, render_views, view_parameters

SHIFT = ViewPolicy(5, ({"name": "shift", "max_pixels": 2, "padding": "zeros"},))


def model(size: int = 8, channels: int = 1) -> ModelCheckpoint:
    arguments = {"channels": [4, 8], "dropout": 0.5}
    classifier = build_untrained(
        architecture="small_cnn",
        arguments=arguments,
        preprocessing=Preprocessing((channels, size, size), (0.5,) * channels, (0.3,) * channels),
        num_classes=3,
        seed=0,
    )
    return snapshot(
        classifier,
        architecture="small_cnn",
        arguments=arguments,
        class_names=("low", "middle", "high"),
        facts={},
    )


def imported(images: ImageSet, fingerprint: str | None = None) -> ModelCheckpoint:
    logits = np.random.default_rng(0).normal(size=(len(images.example_ids), 3))
    return imported_checkpoint(
        images.example_ids,
        logits.astype(np.float32),
        class_names=images.class_names,
        shape=(1, 8, 8),
        images_fingerprint=fingerprint or images.fingerprint,
        facts={},
    )


@pytest.mark.parametrize("make", [model, lambda: model(16, 3)])
def test_a_model_answers_for_the_pixels_of_that_view(
    images: ImageSet, make: Callable[[], ModelCheckpoint]
) -> None:
    """Also one of another size and of colours than the images."""
    ids = images.example_ids[5:25][::-1].copy()
    ids.flags.writeable = False
    predictor = open_predictor(make(), images, batch_size=7, policy=SHIFT)
    tensor = torch.tensor(ids.tolist())
    for view in (0, 3):
        pixels = render_views(images.take(ids), view_parameters(SHIFT, tensor, view), SHIFT)
        with torch.inference_mode():
            expected = build_classifier(make())(pixels)
        logits = predictor.logits(ids, view=view)
        torch.testing.assert_close(logits, expected)
        assert logits.dtype == torch.float32


def test_views_that_mix_see_their_partners(images: ImageSet) -> None:
    policy = ViewPolicy(5, ({"name": "mixup", "alpha": 1.0},))
    ids, partners = images.example_ids[:9], images.example_ids[20:60]
    predictor = open_predictor(model(), images, batch_size=4, policy=policy, partners=partners)
    drawn = view_parameters(policy, torch.as_tensor(ids), 2, partners=torch.as_tensor(partners))
    pixels = render_views(images.take(ids), drawn, policy, pixels_of=images.take)
    assert not torch.equal(pixels * 255, images.take(ids).float())
    with torch.inference_mode():
        expected = build_classifier(model())(pixels)
    torch.testing.assert_close(predictor.logits(ids, view=2), expected)
    with pytest.raises(ParameterError, match="where there are no partners"):
        open_predictor(model(), images, batch_size=4, policy=policy).logits(ids)


def test_every_row_is_predicted_in_order_whatever_the_batch(images: ImageSet) -> None:
    ids = images.example_ids[[5, 2, 90, 7, 11]]
    events: list[Event] = []
    with listening(events.append):
        small = open_predictor(model(), images, batch_size=2).logits(ids)
    whole = open_predictor(model(), images, batch_size=100).logits(ids)
    torch.testing.assert_close(small, whole)
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (5, 5)


def test_the_model_is_built_once_whatever_is_asked(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def counted(checkpoint: ModelCheckpoint) -> Classifier:
        built.append(checkpoint)
        return build_classifier(checkpoint)

    monkeypatch.setattr(predict, "build_classifier", counted)
    predictor = open_predictor(model(), images, batch_size=50, policy=SHIFT)
    for view in range(3):
        predictor.logits(images.example_ids, view=view)
    assert len(built) == 1


def test_imported_logits_are_looked_up(images: ImageSet) -> None:
    checkpoint = imported(images)
    predictor = open_predictor(checkpoint, images, batch_size=1)
    ids = images.example_ids[[7, 3]]
    assert torch.equal(predictor.logits(ids), checkpoint.state["logits"][[7, 3]])


def test_imported_logits_are_of_clean_images_of_this_set_only(images: ImageSet) -> None:
    with pytest.raises(
        ParameterError, match=r"`views.transforms` must be empty .* got \['shift'\]"
    ):
        open_predictor(imported(images), images, batch_size=1, policy=SHIFT)
    with pytest.raises(StaleArtefactError, match="imported for other images"):
        open_predictor(imported(images, "others"), images, batch_size=1)
