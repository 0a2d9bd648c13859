"""Every file is run on every test row, and timed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.export import proof
from kd_pipeline.export.jobs import ExportedModel
from kd_pipeline.export.settings import Latency
from kd_pipeline.models.checkpoint import build_classifier

Proofs = list[tuple[dict[str, Any], Tensor]]


def test_each_file_and_each_checkpoint_is_run_on_all_test_rows(
    data: LabelledImages, proofs: Proofs
) -> None:
    kinds = [("checkpoint", "float32"), ("onnx", "float32"), ("onnx", "int8")]
    assert [(f["replicate"], f["target"], f["precision"]) for f, _ in proofs] == [
        (replicate, *kind) for replicate in (0, 1) for kind in kinds
    ]
    assert all(logits.shape == (len(data.ids("test")), 3) for _, logits in proofs)


def test_the_reference_is_the_checkpoint_in_float32(
    data: LabelledImages, exported: list[ExportedModel], proofs: Proofs
) -> None:
    with torch.inference_mode():
        wanted = build_classifier(exported[1].checkpoint)(data.images.take(data.ids("test")))
    torch.testing.assert_close(proofs[3][1], wanted)


def test_parity_is_the_largest_difference_and_the_share_of_equal_classes(proofs: Proofs) -> None:
    (_, reference), _, (facts, int8) = proofs[:3]
    assert facts["max_logit_difference"] == pytest.approx(float((int8 - reference).abs().max()))
    same = (int8.argmax(1) == reference.argmax(1)).double().mean()
    assert facts["agreement"] == pytest.approx(float(same))
    assert facts["max_logit_difference"] > proofs[1][0]["max_logit_difference"]


def test_float32_is_the_checkpoint_up_to_rounding(proofs: Proofs) -> None:
    for facts, _ in proofs:
        if (facts["target"], facts["precision"]) == ("onnx", "float32"):
            assert facts["max_logit_difference"] < 1e-5
            assert facts["agreement"] == 1.0


def test_only_the_files_that_ship_are_timed(proofs: Proofs) -> None:
    for facts, _ in proofs:
        timed = [name for name in facts if name.startswith("latency")]
        assert bool(timed) == (facts["is_best"] and facts["target"] != "checkpoint")


def test_latency_is_of_each_batch_size_with_one_thread_and_all(
    exported: list[ExportedModel], noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "available_cores", lambda: 2)
    file = exported[0].files["onnx", "int8"]
    latency = Latency(num_warmup=1, num_repeats=3, batch_sizes=(1, 8))
    measured = proof.measure_latency(file, noise.numpy(), latency)
    assert set(measured) == {
        f"latency_{p}_ms_batch_{size}_threads_{threads}"
        for p in ("p50", "p95")
        for size in (1, 8)
        for threads in (1, 2)
    }
    for name, value in measured.items():
        assert 0 < value <= measured[name.replace("p50", "p95")]


def test_warm_up_is_not_timed(
    exported: list[ExportedModel], noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def opened(*_: Any) -> Any:
        def run(pixels: Any) -> Any:
            batches.append(len(pixels))
            return np.zeros((len(pixels), 3), dtype=np.float32)

        return run

    target = proof.TARGETS["onnx"]
    monkeypatch.setitem(
        proof.TARGETS, "onnx", target.__class__(files={}, export=target.export, open=opened)
    )
    monkeypatch.setattr(proof, "available_cores", lambda: 1)
    latency = Latency(num_warmup=4, num_repeats=3, batch_sizes=(2,))
    proof.measure_latency(exported[0].files["onnx", "int8"], noise.numpy(), latency)
    assert batches == [2] * 7
