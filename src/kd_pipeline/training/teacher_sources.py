"""The two kinds of teacher that an arm may learn from: a cache, or checkpoints run live."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from kd_pipeline.data.splits import split_fingerprint
from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.distillation import TEMPERATURE_FREE
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.tails import TAILS, check_tail
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    check_classes,
    check_origin,
)
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.manifest import check_provenance
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.rows import TrainingRows
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.teacher_logits import CachedLogits, LiveLogits, TeacherLogits
from kd_pipeline.views import ViewPolicy

logger = logging.getLogger(__name__)


class Teacher(Protocol):
    """What `train_students` asks of either kind."""

    @property
    def mixing(self) -> Mixing:
        """How members become one teacher."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""

    def check(
        self,
        data: TrainingData,
        objective: Objective,
        *,
        policy: ViewPolicy,
        num_views: int | None,
    ) -> None:
        """Refuse, before anything trains, what does not fit the run."""

    def logits(
        self, rows: TrainingRows, objective: Objective, settings: TrainingSettings
    ) -> TeacherLogits:
        """The source that the training loop asks."""


@dataclass(frozen=True)
class CachedTeacher:
    """Soft targets on disk: the teacher itself is not needed."""

    soft_targets: SoftTargets
    mixing: Mixing = field(default_factory=Mixing)
    tail: str = "ghost"
    """What is made of a top-k cache's tail: `ghost` or `uniform`."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""
        return self.soft_targets.manifest.provenance.teacher_fingerprints

    def check(
        self,
        data: TrainingData,
        objective: Objective,
        *,
        policy: ViewPolicy,
        num_views: int | None,
    ) -> None:
        """Refuse a cache of other images, splits, classes or views, and settings it cannot serve.

        Raises:
            StaleArtefactError: If the cache was made from something else.
            ParameterError: If there is a fresh view in every pass, or a top-k cache is asked for
                what it does not hold.
        """
        if num_views is None:
            rule = "be a number where the students learn from a cache: fresh views are not in it"
            raise ParameterError("views.num_views", rule, num_views)
        if self.tail not in TAILS:
            raise ParameterError("soft_targets.tail", "be known", self.tail, legal=TAILS)
        manifest = self.soft_targets.manifest
        check_provenance(
            manifest.provenance,
            class_names=data.images.class_names,
            images_fingerprint=data.images.fingerprint,
            splits_fingerprint=split_fingerprint(data.splits),
            view_policy=policy.description,
            num_views=num_views,
        )
        cached_at = manifest.encoding.temperature
        if cached_at is not None:
            check_tail(objective.soft_loss, objective.temperature, cached_at=cached_at)
        _warn_of_smoothing(manifest.facts.get("teacher_label_smoothing", 0.0), objective)

    def logits(
        self, rows: TrainingRows, objective: Objective, settings: TrainingSettings
    ) -> CachedLogits:
        """Gather the soft targets of these rows, in memory where they fit the budget."""
        has = rows.has_soft_target
        all_rows = torch.ones(len(rows), dtype=torch.bool)
        cached = all_rows if has is None else has.cpu()
        targets = gather_targets(
            self.soft_targets,
            rows.example_ids.cpu()[cached].numpy(),
            mixing=self.mixing,
            temperature=_temperature(objective),
            memory_budget_bytes=settings.memory_budget_bytes,
        )
        # A row without a soft target points anywhere: the objective leaves it out.
        position_of_row = (cached.cumsum(0) - 1).clamp(min=0)
        return CachedLogits(
            targets,
            position_of_row,
            identity=self._identity(objective),
            device=resolve_device(settings.device),
            tail=self.tail,
            temperature=self.soft_targets.manifest.encoding.temperature,
        )

    def _identity(self, objective: Objective) -> dict[str, Any]:
        manifest = self.soft_targets.manifest.as_dict()
        text = json.dumps({k: v for k, v in manifest.items() if k != "facts"}, sort_keys=True)
        return {
            "cache": hashlib.sha256(text.encode()).hexdigest()[:16],
            "mixing": asdict(self.mixing),
            "mixed_at": _temperature(objective),
            "tail": self.tail,
        }


@dataclass(frozen=True)
class LiveTeacher:
    """The teacher runs beside the student, on the very pixels that the student is shown."""

    checkpoints: Sequence[ModelCheckpoint]
    mixing: Mixing = field(default_factory=Mixing)
    precision: str = "float32"

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""
        return tuple(member.fingerprint for member in self.checkpoints)

    def check(
        self,
        data: TrainingData,
        objective: Objective,
        *,
        policy: ViewPolicy,  # noqa: ARG002 - any views will do
        num_views: int | None,  # noqa: ARG002
    ) -> None:
        """Refuse a teacher of other classes, or one trained on another split of these images.

        Raises:
            CheckpointError: If its classes are others.
            StaleArtefactError: If it may have seen what is held out here.
        """
        at_hand = {"images": data.images.fingerprint, "splits": split_fingerprint(data.splits)}
        for member in self.checkpoints:
            check_classes(member, data.images.class_names, name="teacher.checkpoints")
            check_origin(member, **at_hand)
            smoothing = member.facts.get("parameters", {}).get("label_smoothing", 0.0)
            _warn_of_smoothing(smoothing, objective)

    def logits(
        self,
        rows: TrainingRows,  # noqa: ARG002 - one interface
        objective: Objective,
        settings: TrainingSettings,
    ) -> LiveLogits:
        """Put the teacher on the device."""
        device = resolve_device(settings.device)
        precision = resolve_precision(self.precision, device)
        members = [build_classifier(member).to(device).eval() for member in self.checkpoints]
        autocast = partial(torch.autocast, device, torch.bfloat16, precision == "bfloat16")
        identity = {
            "live": self.fingerprints,
            "precision": precision,
            "mixing": asdict(self.mixing),
            "mixed_at": _temperature(objective),
        }
        return LiveLogits(identity, members, self.mixing, _temperature(objective) or 1.0, autocast)


def _temperature(objective: Objective) -> float | None:
    return None if objective.soft_loss in TEMPERATURE_FREE else objective.temperature


def _warn_of_smoothing(smoothing: float, objective: Objective) -> None:
    if smoothing > 0 and objective.temperature > 1:
        logger.warning(
            "the teacher was trained with label smoothing %g and `temperature` is %g: such "
            "teachers distil badly above temperature 1 (71.7 to 67.8 top-1 on ImageNet)",
            smoothing,
            objective.temperature,
        )
