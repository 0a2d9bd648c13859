"""Prediction: eval mode, every row, and the classifier given back as it came."""

import pytest
import torch
from torch import nn

from kd_pipeline.config import Computing
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import predict_batches, resolve_device, resolve_precision
from kd_pipeline.models.preprocessing import Preprocessing

CPU = Computing(device="cpu")


def classifier() -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    return Classifier(network, Preprocessing((1, 8, 8), (0.5,), (0.5,)))


def test_a_teacher_left_in_train_mode_still_labels_in_eval_mode() -> None:
    model = classifier().train()
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    pixels = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    first = predict_batches(model, pixels.split(3), CPU)
    again = predict_batches(model, pixels.split(7), CPU)
    torch.testing.assert_close(first, again)  # Dropout on would make these differ.
    assert first.shape == (7, 3)  # The last, smaller batch is not dropped.
    assert all(torch.equal(model.state_dict()[k], v) for k, v in statistics.items())
    assert model.training


def test_an_eval_classifier_stays_in_eval_mode() -> None:
    model = classifier().eval()
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    predict_batches(model, [pixels], Computing(device="cpu", precision="bfloat16"))
    assert not model.training


def test_auto_resolves_and_an_absent_device_is_named() -> None:
    assert resolve_device("auto") in ("cuda", "cpu")
    assert resolve_precision("auto", "cpu") in ("float32", "bfloat16")
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="`device` must be one that this machine has"):
            resolve_device("cuda")


def test_logits_are_held_once_where_their_number_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, model = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8), classifier()
    expected = predict_batches(model, pixels.split(3), CPU)
    monkeypatch.setattr(torch, "cat", None)  # Which would be a second copy of all.
    found = predict_batches(model, pixels.split(3), CPU, num_images=7)
    assert torch.equal(found, expected)
    assert not found.is_inference()
    assert not expected.is_inference()


def test_progress_counts_the_images_and_ends_at_their_number() -> None:
    pixels, events = torch.zeros(7, 1, 8, 8, dtype=torch.uint8), list[Event]()
    with listening(events.append):
        predict_batches(classifier(), pixels.split(3), CPU, num_images=7)
        assert events == []
        predict_batches(classifier(), pixels.split(3), CPU, num_images=7, description="label")
    assert events[-1] == Progress("label", 7, 7, "images")
    assert [event for event in events if getattr(event, "done", 0) == 7] == events[-1:]
