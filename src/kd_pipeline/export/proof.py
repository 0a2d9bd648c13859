"""What the files compute, on every test row, beside what their checkpoints compute."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.events import Progress, emit
from kd_pipeline.export.jobs import ExportedModel
from kd_pipeline.export.selection import ON_CPU
from kd_pipeline.export.settings import Latency, ModelExportParams
from kd_pipeline.export.target import ExportedFile, Runner
from kd_pipeline.export.targets import TARGETS
from kd_pipeline.memory import available_cores
from kd_pipeline.models.checkpoint import build_classifier
from kd_pipeline.models.predict import predict_batches

CHECKPOINT = "checkpoint"
"""In place of a target: the trained model, run by torch in float32."""
_BATCH_SIZE = 256

Proof = tuple[dict[str, Any], Tensor]
"""Facts of a file, as columns of a table, and its logits float32 [num_examples, num_classes]."""


def run_models(
    data: LabelledImages, exported: Sequence[ExportedModel], params: ModelExportParams
) -> list[Proof]:
    """Run every checkpoint and every file over all test images.

    Facts are `role`, `replicate`, `is_best`, `target`, `precision`, sizes, `max_logit_difference`
    and `agreement` with the checkpoint, and for the best replicate's files latencies.
    """
    ids = data.ids("test")
    total = sum(1 + len(model.files) for model in exported)
    proofs: list[Proof] = []
    for model in exported:
        for facts, logits in _run_model(data, ids, model, params):
            proofs.append((facts, logits))
            emit(Progress("test: exported files", len(proofs), total, "files", model.role))
    return proofs


def _run_model(
    data: LabelledImages, ids: NDArray[np.int64], model: ExportedModel, params: ModelExportParams
) -> Iterator[Proof]:
    identity = {
        "role": model.role,
        "replicate": model.replicate,
        "checkpoint": model.checkpoint.fingerprint,
        "is_best": model.is_best,
        "validation_accuracy": model.validation_accuracy,
        **model.facts,
    }
    batches = data.images.batches(ids, _BATCH_SIZE)
    reference = predict_batches(build_classifier(model.checkpoint), batches, ON_CPU)
    yield {**identity, "target": CHECKPOINT, "precision": "float32"}, reference
    for (target, precision), file in model.files.items():
        run = TARGETS[target].open(file.path, available_cores())
        logits = torch.from_numpy(
            np.concatenate([run(part.numpy()) for part in data.images.batches(ids, _BATCH_SIZE)])
        )
        facts = {
            **identity,
            "target": target,
            "precision": precision,
            **file.sizes,
            "max_logit_difference": (logits - reference).abs().max().item(),
            "agreement": (logits.argmax(1) == reference.argmax(1)).double().mean().item(),
        }
        if model.is_best:
            some = data.images.take(ids[: max(params.latency.batch_sizes)]).numpy()
            facts |= measure_latency(file, some, params.latency)
        yield facts, logits


def measure_latency(
    file: ExportedFile, images: NDArray[np.uint8], params: Latency
) -> dict[str, float]:
    """Milliseconds per batch: the median and the 95th percentile of the repeats, after a warm-up.

    `latency_p50_ms_batch_1_threads_1` and so on, for each batch size, with one thread and all.

    Args:
        file: Run on this machine's CPU, not on the device.
        images: uint8 [at least one, channels, height, width]; repeated to the batch sizes.
        params: `model_export.latency`.
    """
    measured = {}
    one = TARGETS[file.target].one_thread
    for num_threads in sorted({1, 1 if one else available_cores()}):
        run = TARGETS[file.target].open(file.path, num_threads)
        for size in params.batch_sizes:
            batch = np.resize(images, (size, *images.shape[1:]))
            times = 1000 * _time(run, batch, params)
            name = f"batch_{size}_threads_{num_threads}"
            measured[f"latency_p50_ms_{name}"] = float(np.quantile(times, 0.5))
            measured[f"latency_p95_ms_{name}"] = float(np.quantile(times, 0.95))
    return measured


def _time(run: Runner, batch: NDArray[np.uint8], params: Latency) -> NDArray[np.float64]:
    """Seconds of each repeat."""
    for _ in range(params.num_warmup):
        run(batch)
    seconds = np.empty(params.num_repeats)
    for repeat in range(params.num_repeats):
        started = time.perf_counter()
        run(batch)
        seconds[repeat] = time.perf_counter() - started
    return seconds
