"""Prediction: eval mode, every row, and the classifier given back as it came."""

import pytest
import torch
from torch import nn

from kd_pipeline.errors import ParameterError
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import predict_batches, resolve_device, resolve_precision
from kd_pipeline.models.preprocessing import Preprocessing


def classifier() -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    return Classifier(network, Preprocessing((1, 8, 8), (0.5,), (0.5,)))


def test_a_teacher_left_in_train_mode_still_labels_in_eval_mode() -> None:
    model = classifier().train()
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    pixels = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    first = predict_batches(model, pixels.split(3), device="cpu", precision="float32")
    again = predict_batches(model, pixels.split(7), device="cpu", precision="float32")
    torch.testing.assert_close(first, again)  # Dropout on would make these differ.
    assert first.shape == (7, 3)  # The last, smaller batch is not dropped.
    assert all(torch.equal(model.state_dict()[k], v) for k, v in statistics.items())
    assert model.training


def test_an_eval_classifier_stays_in_eval_mode() -> None:
    model = classifier().eval()
    predict_batches(
        model, [torch.zeros(1, 1, 8, 8, dtype=torch.uint8)], device="cpu", precision="bfloat16"
    )
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
    rest = {"device": "cpu", "precision": "float32"}
    expected = predict_batches(model, pixels.split(3), **rest)
    monkeypatch.setattr(torch, "cat", None)  # Which would be a second copy of all.
    found = predict_batches(model, pixels.split(3), **rest, num_images=7)
    assert torch.equal(found, expected)
    assert not found.is_inference()
    assert not expected.is_inference()
