"""A teacher labels the transfer set: every member, every view, each cached apart."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, emit, part_of
from kd_pipeline.labelling.predictor import Predictor, open_predictor
from kd_pipeline.models.checkpoint import ModelCheckpoint, check_classes, check_origin
from kd_pipeline.models.imported_logits import check_covers
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import SoftTargets, plan_store, rows_within_budget
from kd_pipeline.views import ViewPolicy

_TOLD_AS = "label the transfer set"


def label_transfer_set(
    teacher: Sequence[ModelCheckpoint],
    images: ImageSet,
    example_ids: NDArray[np.int64],
    *,
    parts: PartsFolder,
    splits_fingerprint: str,
    policy: ViewPolicy,
    num_views: int,
    batch_size: int,
    device: str,
    precision: str,
    rows_per_part: int | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
) -> SoftTargets:
    """Run each member of a teacher once over each view of the transfer set.

    One part is in memory at a time, and is on disk before the next one is begun: a run that was
    killed and is started again makes only what is missing or damaged.

    Args:
        teacher: One checkpoint per ensemble member.
        images: Where the pixels are.
        example_ids: int64 [num_examples], ascending.
        parts: Where the store is made.
        splits_fingerprint: Of the splits that the example ids come from.
        policy: How views are drawn; the student replays the same.
        num_views: Views per example.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.
        rows_per_part: At most so many rows in a file; None is as many as `rows_within_budget`
            gives. Batches begin with a part, so that a part made alone has the same bits.
        top_k: Keep only so many logits of each row, and one for all others; None keeps all.
        temperature: At which that one holds; given exactly where `top_k` is.

    Returns:
        A handle on the finished store in the folder of parts.

    Raises:
        CheckpointError: If the teacher has other classes.
        StaleArtefactError: If it says that it was trained on other images or another split.
        DataError: If a logit is not finite or too large for float16, or imported logits leave out
            an example.
        ParameterError: If the encoding cannot hold so many classes.
    """
    for member in teacher:
        check_classes(member, images.class_names, name="teacher.checkpoints")
        check_origin(member, images=images.fingerprint, splits=splits_fingerprint)
        check_covers(member, example_ids, what="the transfer set")
    _check_top_k(top_k, num_members=len(teacher))
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    manifest = plan_store(
        example_ids,
        provenance=Provenance(
            class_names=images.class_names,
            teacher_fingerprints=tuple(member.fingerprint for member in teacher),
            images_fingerprint=images.fingerprint,
            splits_fingerprint=splits_fingerprint,
            view_policy=policy.description,
            num_views=num_views,
        ),
        encoding=Encoding(top_k, temperature),
        facts={
            "batch_size": batch_size,
            "device": device,
            "precision": precision,
            "teacher_label_smoothing": _label_smoothing(teacher),
        },
        rows_per_part=rows_per_part or rows_within_budget(len(images.class_names)),
    )

    def open_member(member: int) -> Predictor:
        return open_predictor(
            teacher[member],
            images,
            batch_size=batch_size,
            device=device,
            precision=precision,
            policy=policy,
            partners=example_ids if policy.mixes else None,
        )

    soft_targets = parts.fill(manifest, example_ids, _Labeller(open_member, manifest).logits_of)
    emit(Progress(_TOLD_AS, manifest.num_rows, manifest.num_rows, "images"))
    return soft_targets


def _check_top_k(top_k: int | None, *, num_members: int) -> None:
    if top_k is not None and num_members > 1:
        rule = "be null for a teacher of several members: their best classes differ"
        raise ParameterError("soft_target_caching.top_k", rule, top_k)


def _label_smoothing(teacher: Sequence[ModelCheckpoint]) -> float:
    """The most that any member was trained with."""
    told = [member.facts.get("parameters", {}).get("label_smoothing", 0.0) for member in teacher]
    return float(max(told, default=0.0))


class _Labeller:
    """Labels part after part with one member's model in memory at a time."""

    def __init__(self, open_member: Callable[[int], Predictor], manifest: Manifest) -> None:
        self._open_member, self._manifest = open_member, manifest
        self._member: int | None = None
        self._predictor: Predictor

    def logits_of(self, part: Part, example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Label one part, telling how far this is among all parts."""
        if part.member != self._member:
            self._member, self._predictor = part.member, self._open_member(part.member)
        manifest = self._manifest
        views_before = part.member * manifest.provenance.num_views + part.view
        done = views_before * manifest.num_examples + manifest.rows_of(part.shard).start
        with part_of(_TOLD_AS, done=done, total=manifest.num_rows):
            logits = self._predictor.logits(example_ids, view=part.view, description=_TOLD_AS)
        return logits.numpy()
