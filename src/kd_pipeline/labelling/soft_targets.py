"""A teacher labels the transfer set: every member, every view, each cached apart."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.views import ViewPolicy
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.labelling.predict import predict_logits
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier, check_classes
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, make_soft_targets


def label_transfer_set(
    teacher: Sequence[ModelCheckpoint],
    images: ImageSet,
    example_ids: NDArray[np.int64],
    *,
    splits_fingerprint: str,
    policy: ViewPolicy,
    num_views: int,
    batch_size: int,
    device: str,
    precision: str,
) -> SoftTargets:
    """Run each member of a teacher once over each view of the transfer set.

    Args:
        teacher: One checkpoint per ensemble member.
        images: Where the pixels are.
        example_ids: int64 [num_examples], ascending.
        splits_fingerprint: Of the splits that the example ids come from.
        policy: How views are drawn; the student replays the same.
        num_views: Views per example.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.

    Raises:
        CheckpointError: If the teacher has other classes.
        StaleArtefactError: If it says that it was trained on other images or another split.
    """
    for member in teacher:
        check_classes(member, images.class_names, name="teacher.checkpoints")
        _check_origin(member, images=images.fingerprint, splits=splits_fingerprint)
    logits = [
        [
            predict_logits(
                build_classifier(member),
                images,
                example_ids,
                batch_size=batch_size,
                device=device,
                precision=precision,
                policy=policy,
                view=view,
                description=f"label view {view + 1} of {num_views}",
            ).numpy()
            for view in range(num_views)
        ]
        for member in teacher
    ]
    provenance = Provenance(
        class_names=images.class_names,
        teacher_fingerprints=tuple(member.fingerprint for member in teacher),
        images_fingerprint=images.fingerprint,
        splits_fingerprint=splits_fingerprint,
        view_policy=policy.description,
        num_views=num_views,
    )
    smoothing = [m.facts.get("parameters", {}).get("label_smoothing", 0.0) for m in teacher]
    facts = {"precision": precision, "teacher_label_smoothing": max(smoothing, default=0.0)}
    return make_soft_targets(logits, example_ids, provenance=provenance, facts=facts)


def _check_origin(member: ModelCheckpoint, **at_hand: str) -> None:
    """A teacher of another split has learnt from examples that are held out in this one."""
    for what, fingerprint in at_hand.items():
        if member.facts.get(what, fingerprint) != fingerprint:
            raise StaleArtefactError(
                f"`teacher.checkpoints` were trained on other {what} than those at hand; "
                "run `kedro run --pipelines=teacher_training`"
            )
