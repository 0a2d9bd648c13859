"""Where a student's teacher logits come from: a cache of soft targets, or the teacher run live.

The training loop gets the logits of a batch through `BatchLogits` in the same way from both.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ParameterError
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.losses.top_k import spread_tail
from kd_pipeline.memory import MemoryBudget, fits_device
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    check_classes,
    check_training_data,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.settings import Calibration, SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import Training
from kd_pipeline.views.settings import ViewsParams

logger = logging.getLogger(__name__)

LogitsOfSteps = Callable[[int, Tensor], TeacherLogits[Tensor]]
"""From a step of the chunk, and the pixels that the student is shown in it, to the teacher's
logits on these very views: [batch, num_classes], or its top k."""


class BatchLogits(Protocol):
    """A teacher's logits, batch by batch."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: equal ones give equal logits."""

    def chunk(self, rows: Tensor, passes: Tensor) -> LogitsOfSteps:
        """Get ready for some steps.

        Args:
            rows: Positions among the training rows, int64 [steps, batch].
            passes: How often each example was shown before, of the same shape.
        """


class Teacher(Protocol):
    """What `train_students` needs of either source."""

    @property
    def params(self) -> SoftTargetsParams:
        """How members become one teacher."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""

    @property
    def caching_seconds(self) -> float | None:
        """What its cache took to make; None where that is not on record."""

    def check(self, data: LabelledImages, objective: ObjectiveParams, views: ViewsParams) -> None:
        """Refuse, before anything trains, what does not fit the run."""

    def open(
        self, rows: Rows, objective: ObjectiveParams, training: Training, budget: MemoryBudget
    ) -> BatchLogits:
        """The logits of these training rows, in memory where they fit the budget."""


@dataclass(frozen=True)
class CachedTeacher:
    """Soft targets on disk: the teacher itself is not needed."""

    soft_targets: SoftTargets
    params: SoftTargetsParams
    teacher: Sequence[str]
    """Fingerprints of the teacher in force; a cache of another one is refused."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""
        return self.soft_targets.manifest.provenance.teacher_fingerprints

    @property
    def caching_seconds(self) -> float | None:
        """Those that lie beside the cache."""
        return self.soft_targets.caching_seconds

    def check(self, data: LabelledImages, objective: ObjectiveParams, views: ViewsParams) -> None:
        """Refuse a cache of other images, splits, classes or views, or one that cannot serve.

        Raises:
            StaleArtefactError: If the cache was made from something else.
            ParameterError: If there is a fresh view in every pass, a top-k cache does not hold
                what the loss needs, or no temperature was fitted to the teacher that is asked for.
        """
        made_with = {"view_policy": views.policy.description, "num_views": views.num_cached_views()}
        self.soft_targets.check({**data.provenance, **made_with, "teacher": self.teacher})
        manifest = self.soft_targets.manifest
        if manifest.encoding.temperature is not None:
            objective.check_top_k(cached_at=manifest.encoding.temperature)
        manifest.fitted_temperature(self.params)
        _warn_of_smoothing(manifest.facts.get("teacher_label_smoothing", 0.0), objective)

    def open(
        self, rows: Rows, objective: ObjectiveParams, training: Training, budget: MemoryBudget
    ) -> "CachedLogits":
        """Gather the soft targets of these rows."""
        has, manifest = rows.has_soft_target, self.soft_targets.manifest
        cached = torch.ones(len(rows), dtype=torch.bool) if has is None else has.cpu()
        fitted = manifest.fitted_temperature(self.params)
        targets = gather_targets(
            self.soft_targets,
            rows.example_ids.cpu()[cached].numpy(),
            self.params,
            temperature=objective.read_temperature if fitted is None else 1.0,
            budget=budget,
        )
        spread = partial(
            spread_tail,
            num_classes=len(manifest.provenance.class_names),
            temperature=manifest.encoding.temperature or 1.0,
        )
        # A row without a soft target points anywhere: the objective leaves it out.
        return CachedLogits(
            targets,
            (cached.cumsum(0) - 1).clamp(min=0),
            identity=self._identity(objective) | _fitted(fitted),
            device=resolve_device(training.device),
            read_tail=spread if self.params.tail == "uniform" else None,
            divisor=fitted,
        )

    @property
    def cache_digest(self) -> str:
        """16 hex digits over what the cached logits depend on, their encoding among it."""
        manifest = self.soft_targets.manifest.as_dict()
        compared = {k: v for k, v in manifest.items() if k not in ("facts", "calibration")}
        text = json.dumps(compared, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _identity(self, objective: ObjectiveParams) -> dict[str, Any]:
        return {
            "cache": self.cache_digest,
            "params": self.params.model_dump(mode="json"),
            "read_at": objective.read_temperature,
        }


def _fitted(temperature: float | None) -> dict[str, float]:
    return {} if temperature is None else {"fitted_temperature": temperature}


class CachedLogits:
    """Logits from a cache: an example in its pass number p is shown view p mod num_views."""

    def __init__(
        self,
        targets: TeacherLogits[NDArray[Any]],
        position_of_row: Tensor,
        *,
        identity: Mapping[str, Any],
        device: str,
        read_tail: Callable[[TeacherLogits[Tensor]], TeacherLogits[Tensor]] | None = None,
        divisor: float | None = None,
    ) -> None:
        """Hold what was gathered for some training rows.

        Args:
            targets: [num_views, num_examples, ...], in memory or mapped from a file of which only
                the rows of a chunk are read.
            position_of_row: int64 [num_rows]: where in `targets` each training row is; anywhere
                for one without a soft target.
            identity: Equal ones give equal logits.
            device: Of the student.
            read_tail: Applied to each batch; None keeps the tail of a top-k cache as one class.
            divisor: Of all logits; None leaves them as they are.
        """
        self.identity = identity
        self._device, self._read_tail, self._divisor = device, read_tail, divisor
        self._num_views, self._num_examples = targets.logits.shape[:2]
        in_memory = not isinstance(targets.logits, np.memmap)
        size = sum(values.nbytes for values in vars(targets).values() if values is not None)
        self._home = device if in_memory and fits_device(device, size) else "cpu"
        self._targets = targets.map(self._flat)
        self._position_of_row = position_of_row.to(self._targets.logits.device)

    def _flat(self, values: NDArray[Any]) -> Tensor:
        """[num_views x num_examples, ...]: one gather per batch.

        Mapped values stay on disk, and those that a GPU has no room for stay in memory.
        """
        # torch indexes no uint16: the bits are kept, and read back in `chunk`.
        values = values.view(np.int16) if values.dtype == np.uint16 else values
        flat = torch.from_numpy(values).flatten(0, 1)
        return flat.to(self._home)

    def chunk(self, rows: Tensor, passes: Tensor) -> LogitsOfSteps:
        """Gather the targets of all these steps at once."""
        home = self._position_of_row.device
        rows, views = rows.to(home), passes.to(home) % self._num_views
        at = views * self._num_examples + self._position_of_row[rows]
        chunk = self._targets.map(lambda values: _widened(values[at].to(self._device)))
        if self._divisor is not None:
            chunk = TeacherLogits(chunk.logits / self._divisor)  # Of all classes: no top k.
        read_tail = self._read_tail
        return lambda step, _pixels: read_tail(chunk[step]) if read_tail else chunk[step]


def _widened(values: Tensor) -> Tensor:
    """float32 logits, and int64 class ids out of the bits of uint16."""
    return values.float() if values.is_floating_point() else values.long() & 0xFFFF


@dataclass(frozen=True)
class LiveTeacher:
    """The teacher runs beside the student, on the very pixels that the student is shown."""

    checkpoints: Sequence[ModelCheckpoint]
    params: SoftTargetsParams
    precision: str = "float32"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Raise a ParameterError for imported logits: nothing can run beside the student."""
        if not self.checkpoints:
            rule = "be a model where students learn from a live teacher"
            raise ParameterError("teacher.given", rule, "imported logits")

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One per member."""
        return tuple(member.fingerprint for member in self.checkpoints)

    @property
    def caching_seconds(self) -> float | None:
        """None are spent: labelling is part of the training's own seconds."""
        return 0.0

    def check(
        self,
        data: LabelledImages,
        objective: ObjectiveParams,
        views: ViewsParams,  # noqa: ARG002 - any views will do
    ) -> None:
        """Refuse a teacher of other classes, or one trained on another split of these images.

        Raises:
            CheckpointError: If its classes are others.
            StaleArtefactError: If it may have been trained on what is held out here.
            ParameterError: If a temperature is asked for that was not fitted.
        """
        at_hand = data.labelled_provenance
        for member in self.checkpoints:
            check_classes(member, data.images.class_names, name="teacher.checkpoints")
            check_training_data(member, at_hand)
            smoothing = member.facts.get("parameters", {}).get("label_smoothing", 0.0)
            _warn_of_smoothing(smoothing, objective)
        self._fitted_temperature()

    def _fitted_temperature(self) -> float | None:
        return self.params.fitted_temperature(
            self.calibration, is_top_k=False, num_members=len(self.checkpoints)
        )

    def open(
        self,
        rows: Rows,  # noqa: ARG002 - one interface
        objective: ObjectiveParams,
        training: Training,
        budget: MemoryBudget,  # noqa: ARG002 - one interface
    ) -> "LiveLogits":
        """Put the teacher on the device."""
        device, fitted = resolve_device(training.device), self._fitted_temperature()
        precision = resolve_precision(self.precision, device)
        identity = {
            "live": self.fingerprints,
            "precision": precision,
            "params": self.params.model_dump(mode="json"),
            "read_at": objective.read_temperature,
        }
        return LiveLogits(
            identity | _fitted(fitted),
            [build_classifier(member).to(device).eval() for member in self.checkpoints],
            self.params,
            1.0 if fitted is not None else objective.read_temperature or 1.0,
            partial(torch.autocast, device, torch.bfloat16, precision == "bfloat16"),
            fitted,
        )


@dataclass(frozen=True)
class LiveLogits:
    """Logits of a teacher in eval mode and without gradients."""

    identity: Mapping[str, Any]
    members: Sequence[Classifier]
    """In eval mode and on the device."""
    params: SoftTargetsParams
    temperature: float
    autocast: Callable[[], AbstractContextManager[Any]]
    """The precision in which the teacher computes."""
    divisor: float | None = None
    """Of all logits; None leaves them as they are."""

    def chunk(self, rows: Tensor, passes: Tensor) -> LogitsOfSteps:  # noqa: ARG002 - one interface
        """There is nothing to get ready: the pixels decide."""
        return self._of_step

    def _of_step(self, _step: int, pixels: Tensor) -> TeacherLogits[Tensor]:
        # Not inference_mode: the loss saves the teacher's logits for its backward pass.
        with torch.no_grad(), self.autocast():
            logits = torch.stack([member(pixels).float() for member in self.members])
            average = average_logits(logits, self.params, temperature=self.temperature)
        return TeacherLogits(average if self.divisor is None else average / self.divisor)


def _warn_of_smoothing(smoothing: float, objective: ObjectiveParams) -> None:
    if smoothing > 0 and objective.temperature > 1:
        logger.warning(
            "the teacher was trained with label smoothing %g and `temperature` is %g: such "
            "teachers distil badly above temperature 1 (71.7 to 67.8 top-1 on ImageNet)",
            smoothing,
            objective.temperature,
        )
