"""The single reading of the test set, with temperatures that are fitted on validation."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.dataset import NO_LABEL, LabelledImages
from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.freshness import Students, find_sources
from kd_pipeline.evaluation.metrics import LabelledLogits, example_table, measure
from kd_pipeline.evaluation.roles import LABELS, TEACHER
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.models.calibration import calibrate
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.predict import predict_batches
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.settings import SoftTargetsParams

logger = logging.getLogger(__name__)

_SUMMED_COSTS = (
    "model/parameters",
    "model/macs",
    "model/size_bytes",
    "cost/train_seconds",
    "cost/caching_seconds",
)

TeacherOnTest: TypeAlias = Sequence[ModelCheckpoint | ImportedLogits]


def read_test_set(
    data: LabelledImages,
    teacher: TeacherOnTest,
    students: Students,
    params: EvaluationParams,
    soft_targets: SoftTargetsParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the teacher, then every replicate of every student.

    The teacher's members are averaged to one model, replicate 0, under the first one's fingerprint;
    where imported logits leave out test rows it has no row, and agreement with it is NaN. Agreement
    is with the role that a student learnt from, whose models are averaged, and with the teacher for
    those that learnt from labels. A temperature per model is fitted on those validation rows that
    have a label; without any, or where imported logits leave some out, it is not calibrated.

    Returns:
        predictions: role, replicate, example_id, label, predicted, confidence, nll, in_top5 and,
            where a model is calibrated, nll_calibrated.
        metrics: role, replicate, learnt_from, checkpoint, data_known (whether the model's training
            data are on record), a column per metric named as in MLflow, architecture.

    Raises:
        DataError: If there is no test example, or one has no label: before any forward pass.
    """
    ids, labels = labelled_test_rows(data)
    _, validation_labels = data.labelled("validation")
    tables, rows = [], []
    num_bins = params.num_calibration_bins
    for model in _read(data, teacher, students, params, soft_targets):
        seen = model.logits.validation
        fitted = None if seen is None else calibrate(seen, validation_labels)
        followed = None if model.teacher_logits is None else model.teacher_logits.test
        read = LabelledLogits(model.logits.test, labels, followed, num_bins, fitted)
        identity = {"role": model.role, "replicate": model.replicate}
        tables.append(pd.DataFrame({**identity, "example_id": ids}).join(example_table(read)))
        origin = {"learnt_from": model.learnt_from, "checkpoint": model.checkpoint}
        rows.append({**identity, **origin, **_describe(model.members, measure(read))})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


class _Logits(NamedTuple):
    """Of one model, each float32 [n, num_classes] in the order of the ids."""

    test: Tensor
    validation: Tensor | None  # of the rows with labels; None where there is none


class _Model(NamedTuple):
    role: str
    replicate: int
    learnt_from: str | None
    checkpoint: str
    members: Sequence[ModelCheckpoint]  # empty for imported logits
    logits: _Logits
    teacher_logits: _Logits | None  # that agreement is measured with


def _read(
    data: LabelledImages,
    teacher: TeacherOnTest,
    students: Students,
    params: EvaluationParams,
    soft_targets: SoftTargetsParams,
) -> Iterator[_Model]:
    fingerprints, members, average = _read_teacher(data, teacher, params, soft_targets)
    if average is not None:
        yield _Model(TEACHER, 0, None, fingerprints[0], members, average, average)
    sources = find_sources(fingerprints, students)
    averages = {TEACHER: average, LABELS: average}
    for student, replicates in students.items():
        source, teaches = sources[student], student in sources.values()
        read: list[_Logits] = []
        for number, one in enumerate(replicates):
            logits = _predict(one, data, params, role=student)
            if teaches:  # Of others, one replicate's logits at a time are in memory.
                read.append(logits)
            yield _Model(student, number, source, one.fingerprint, [one], logits, averages[source])
        if teaches:
            averages[student] = _average(read, soft_targets)


def _read_teacher(
    data: LabelledImages,
    teacher: TeacherOnTest,
    params: EvaluationParams,
    soft_targets: SoftTargetsParams,
) -> tuple[list[str], Sequence[ModelCheckpoint], _Logits | None]:
    """Its fingerprints, models and logits; None if imported ones leave out test rows."""
    fingerprints, ids = [one.fingerprint for one in teacher], data.ids("test")
    models = [one for one in teacher if isinstance(one, ModelCheckpoint)]
    imported = [one for one in teacher if isinstance(one, ImportedLogits)]
    if all(one.covers(ids) for one in imported):
        read = [_predict(one, data, params, role=TEACHER) for one in models]
        read += [_take(one, data) for one in imported]
        return fingerprints, models, _average(read, soft_targets)
    logger.warning(
        "the teacher's imported logits do not cover the test set: it is not measured, nor is the "
        "students' agreement with it"
    )
    return fingerprints, models, None


def _predict(
    checkpoint: ModelCheckpoint, data: LabelledImages, params: EvaluationParams, *, role: str
) -> _Logits:
    """Logits of the clean images."""
    classifier = build_classifier(checkpoint)

    def predict(ids: NDArray[np.int64], split: str) -> Tensor:
        batches, name = data.images.batches(ids, params.batch_size), f"{split}: {role}"
        return predict_batches(classifier, batches, params, num_images=len(ids), description=name)

    validation, _ = data.labelled("validation")
    seen = predict(validation, "validation") if len(validation) else None
    return _Logits(predict(data.ids("test"), "test"), seen)


def _take(imported: ImportedLogits, data: LabelledImages) -> _Logits:
    test, (validation, _) = data.ids("test"), data.labelled("validation")
    known = len(validation) > 0 and imported.covers(validation)
    seen = torch.from_numpy(imported.rows(validation)) if known else None
    return _Logits(torch.from_numpy(imported.rows(test)), seen)


def _average(members: Sequence[_Logits], soft_targets: SoftTargetsParams) -> _Logits:
    def average(logits: Sequence[Tensor]) -> Tensor:
        return average_logits(torch.stack(list(logits)), soft_targets, temperature=1.0)

    seen = [one.validation for one in members if one.validation is not None]
    validation = average(seen) if len(seen) == len(members) else None
    return _Logits(average([one.test for one in members]), validation)


def describe_test_set(data: LabelledImages) -> dict[str, Any]:
    """`test_fingerprint`, 16 hex digits over images, ids and labels, and `num_test_examples`."""
    ids, labels = labelled_test_rows(data)
    digest = hashlib.sha256(data.images.fingerprint.encode())
    digest.update(ids.tobytes())
    digest.update(labels.numpy().tobytes())
    return {"test_fingerprint": digest.hexdigest()[:16], "num_test_examples": len(ids)}


def labelled_test_rows(data: LabelledImages) -> tuple[NDArray[np.int64], Tensor]:
    """Ids int64 [n], ascending, and labels int64 [n] of the test examples.

    Raises:
        DataError: If there is none, or one has no label.
    """
    ids, labels = data.ids("test"), data.labels_of(data.ids("test"))
    if len(ids) == 0:
        raise DataError("`splits` must have rows of role test, got none")
    if missing := int((labels == NO_LABEL).sum()):
        raise DataError(f"every test example must have a label, got {missing} without")
    return ids, labels


def _describe(members: Sequence[ModelCheckpoint], measured: dict[str, float]) -> dict[str, Any]:
    """Columns of a model: its metrics, and sizes and times summed over its members."""
    costs = [member.facts.get("costs", {}) for member in members] or [{}]
    known = [name for name in _SUMMED_COSTS if all(name in cost for cost in costs)]
    return {
        # A given teacher of unknown origin may have been trained on the test set.
        "data_known": bool(members) and all("splits" in member.facts for member in members),
        **measured,
        **dict.fromkeys(_SUMMED_COSTS),
        **{name: sum(cost[name] for cost in costs) for name in known},
        "architecture": _architecture(members[0]) if members else "imported_logits",
    }


def _architecture(model: ModelCheckpoint) -> str:
    arguments = json.dumps(dict(model.arguments)) if model.arguments else ""
    return f"{model.architecture} {arguments}".rstrip()
