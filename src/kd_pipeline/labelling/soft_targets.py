"""A teacher labels the transfer set: every member, every view, each cached apart."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, emit, part_of
from kd_pipeline.labelling.members import Member, Predictor, check_members, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import Calibration
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
    check_members(teacher, data)
    if caching.top_k is not None and len(teacher) > 1:
        rule = "be null for a teacher of several members: their best classes differ"
        raise ParameterError("soft_target_caching.top_k", rule, caching.top_k)
    ids = data.ids("transfer")
    manifest = replace(_plan(teacher, data, ids, caching, views), calibration=calibration)

    @lru_cache(maxsize=1)  # One model in memory at a time.
    def predictor_of(member: int) -> Predictor:
        return open_predictor(teacher[member], data, ids, caching, policy=views.policy)

    def logits_of(part: Part, _example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, predictor = manifest.rows_of(part.shard), predictor_of(part.member)
        views_before = part.member * manifest.provenance.num_views + part.view
        done = views_before * manifest.num_examples + rows.start
        with part_of(_DESCRIPTION, done=done, total=manifest.num_rows):
            return predictor.logits(rows, view=part.view, description=_DESCRIPTION).numpy()

    soft_targets = parts.fill(manifest, ids, logits_of)
    emit(Progress(_DESCRIPTION, manifest.num_rows, manifest.num_rows, "images"))
    return soft_targets


def _plan(
    teacher: Sequence[Member],
    data: LabelledImages,
    example_ids: NDArray[np.int64],
    caching: SoftTargetCachingParams,
    views: ViewsParams,
) -> Manifest:
    device, at_hand = resolve_device(caching.device), data.provenance
    return plan_store(
        example_ids,
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


def _label_smoothing(member: Member) -> float:
    facts = member.facts if isinstance(member, ModelCheckpoint) else {}
    return float(facts.get("parameters", {}).get("label_smoothing", 0.0))
