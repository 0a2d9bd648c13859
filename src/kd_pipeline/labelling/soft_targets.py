"""A teacher labels the transfer set: every member, every view, each cached apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, emit, part_of
from kd_pipeline.labelling.members import Member, Predictor, check_members, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.shards import Shard
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance
from kd_pipeline.soft_targets.parts_folder import LogitsOf, PartsFolder
from kd_pipeline.soft_targets.settings import Calibration
from kd_pipeline.soft_targets.shards import parts_of
from kd_pipeline.soft_targets.store import SoftTargets, plan_store
from kd_pipeline.views.settings import ViewsParams

_DESCRIPTION = "label the transfer set"


def label_transfer_set(
    teacher: Sequence[Member],
    data: LabelledImages,
    parts: PartsFolder,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
    calibration: Calibration | None = None,
) -> SoftTargets:
    """Run each member of a teacher once over each view of the transfer set.

    One part is in memory at a time, and is on disk before the next one is begun: a run that was
    killed and is started again makes only what is missing or damaged. Batches begin with a part,
    so that a part made alone has the same bits. `calibration` is kept beside the logits.

    Raises:
        CheckpointError, StaleArtefactError: As `check_members`.
        DataError: If a logit is not finite or too large for float16, or imported logits leave out
            an example.
        ParameterError: If the encoding cannot hold so many classes or members.
    """
    manifest = _plan(teacher, data, caching, views, calibration)
    with _labelling(manifest.layout(), manifest, teacher, data, caching, views) as logits_of:
        return parts.fill(manifest, data.ids("transfer"), logits_of)


def label_shard(
    shard: Shard,
    teacher: Sequence[Member],
    data: LabelledImages,
    parts: PartsFolder,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
    calibration: Calibration | None = None,
) -> None:
    """As `label_transfer_set`, one shard's parts of the store; see `PartsFolder.fill_shard`."""
    manifest = _plan(teacher, data, caching, views, calibration)
    mine = parts_of(shard, manifest.layout())
    with _labelling(mine, manifest, teacher, data, caching, views) as logits_of:
        parts.fill_shard(shard, manifest, data.ids("transfer"), logits_of)


@contextmanager
def _labelling(
    layout: Sequence[Part],
    manifest: Manifest,
    teacher: Sequence[Member],
    data: LabelledImages,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
) -> Iterator[LogitsOf]:
    """Yield what computes a part's logits; progress counts the images of the layout's parts."""
    ends = list(accumulate((part.num_rows for part in layout), initial=0))
    rows_before = {part.file: end for part, end in zip(layout, ends, strict=False)}

    @lru_cache(maxsize=1)  # One model in memory at a time.
    def predictor_of(member: int) -> Predictor:
        ids = data.ids("transfer")
        return open_predictor(teacher[member], data, ids, caching, policy=views.policy)

    def logits_of(part: Part, _example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, predictor = manifest.rows_of(part.shard), predictor_of(part.member)
        with part_of(_DESCRIPTION, done=rows_before[part.file], total=ends[-1]):
            return predictor.logits(rows, view=part.view, description=_DESCRIPTION).numpy()

    yield logits_of
    emit(Progress(_DESCRIPTION, ends[-1], ends[-1], "images"))


def _plan(
    teacher: Sequence[Member],
    data: LabelledImages,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
    calibration: Calibration | None,
) -> Manifest:
    """The store's manifest before a part is made, once the teacher is known to fit."""
    check_members(teacher, data)
    if caching.top_k is not None and len(teacher) > 1:
        rule = "be null for a teacher of several members: their best classes differ"
        raise ParameterError("soft_target_caching.top_k", rule, caching.top_k)
    device, at_hand = resolve_device(caching.device), data.provenance
    manifest = plan_store(
        data.ids("transfer"),
        provenance=Provenance(
            class_names=data.images.class_names,
            teacher_fingerprints=tuple(member.fingerprint for member in teacher),
            images_fingerprint=at_hand["images"],
            splits_fingerprint=at_hand["splits"],
            view_policy=views.policy.description,
            num_views=views.num_cached_views(),
        ),
        encoding=Encoding(caching.top_k, caching.temperature),
        facts={
            "batch_size": caching.batch_size,
            "device": device,
            "precision": resolve_precision(caching.precision, device),
            "teacher_label_smoothing": max(map(_label_smoothing, teacher), default=0.0),
        },
        rows_per_part=caching.rows_per_part,
    )
    return replace(manifest, calibration=calibration)


def _label_smoothing(member: Member) -> float:
    facts = member.facts if isinstance(member, ModelCheckpoint) else {}
    return float(facts.get("parameters", {}).get("label_smoothing", 0.0))
