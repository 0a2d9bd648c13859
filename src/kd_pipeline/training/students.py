"""Students: one arm's replicates, alike in everything but seed, and alike between arms."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint, student_rows
from kd_pipeline.data.views import ViewPolicy
from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.events import TrainingEnded, TrainingStarted, emit
from kd_pipeline.losses.hard import NO_LABEL
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_untrained,
    count_macs,
    count_parameters,
    snapshot,
    tensors_digest,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device
from kd_pipeline.models.preprocessing import Preprocessing, measure_preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.soft_targets.manifest import check_provenance
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_classifier
from kd_pipeline.training.rows import TrainingRows, pixel_reader
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.validation import Validation

NUM_IMAGES_MEASURED = 10_000
"""Normalisation is measured on at most so many images."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What every model of a run is trained on: the same for all arms."""

    images: ImageSet
    examples: pd.DataFrame
    splits: pd.DataFrame

    def labels_of(self, example_ids: np.ndarray) -> Tensor:
        """Labels int64 [num_examples], `NO_LABEL` where there is none."""
        labels = self.examples.set_index("example_id")["label"].reindex(example_ids)
        return torch.as_tensor(labels.fillna(NO_LABEL).to_numpy(np.int64, copy=True))

    def validation(self, device: str) -> Validation:
        """The validation images."""
        ids = ids_with_role(self.splits, "validation")
        return Validation(pixel_reader(self.images, ids, device=device), self.labels_of(ids))

    def measure(self, example_ids: np.ndarray) -> Preprocessing:
        """Channel statistics of these examples."""
        step = max(1, math.ceil(len(example_ids) / NUM_IMAGES_MEASURED))
        return measure_preprocessing(self.images.take(example_ids[::step]))


def train_students(
    data: TrainingData,
    *,
    soft_targets: SoftTargets | None,
    objective: Objective,
    model: Mapping[str, Any],
    settings: TrainingSettings,
    seed: int,
    num_replicates: int,
    policy: ViewPolicy,
    num_views: int,
    parameters: Mapping[str, Any],
    states: StateFolder,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one arm's replicates.

    Initial weights, batch order, views and number of steps depend on nothing of the arm: two
    arms that learn from the same rows see the same batches.

    Args:
        data: Images, examples and splits.
        soft_targets: The cache, for arms that use the teacher.
        objective: The arm's loss.
        model: `name` and `arguments` of the architecture.
        settings: How to train.
        seed: Of the whole group of arms.
        num_replicates: How many students, each with a seed of its own.
        policy: How views are drawn.
        num_views: How many there are.
        parameters: All settings in force, to be told and kept.
        states: Where interrupted trainings are kept.

    Returns:
        One checkpoint per replicate, and the history: a row per replicate and epoch.
    """
    check_arm(objective, has_teacher=soft_targets is not None)
    device = resolve_device(settings.device)
    open_rows = student_rows(data.splits)
    _check_soft_targets(soft_targets, objective, data, policy=policy, num_views=num_views)
    rows = _arm_rows(data, open_rows, soft_targets, objective, device)
    base = TrainingPlan(
        rows=rows,
        validation=data.validation(device),
        objective=objective,
        settings=settings,
        steps_per_epoch=math.ceil(len(open_rows) / settings.batch_size),
        seed=seed,
        policy=policy,
        num_views=num_views,
    )

    teacher = [] if soft_targets is None else soft_targets.manifest.provenance.teacher_fingerprints
    # Evaluation refuses to compare arms that differ in any of what they share.
    shared = {
        "seed": seed,
        "model": dict(model),
        "training": asdict(settings),
        "views": _views(base),
    }
    facts = {"teacher": list(teacher), "parameters": dict(parameters), "shared": shared}
    seeds = [derive_seed(seed, "replicate", replicate) for replicate in range(num_replicates)]
    plans = [replace(base, seed=own, replicate=r) for r, own in enumerate(seeds)]
    initial = untrained(data, model, data.measure(open_rows["example_id"].to_numpy()))
    return train_each(plans, initial=initial, data=data, model=model, facts=facts, states=states)


def untrained(
    data: TrainingData, model: Mapping[str, Any], preprocessing: Preprocessing
) -> Callable[[int], Classifier]:
    """Build a model of the images' classes from the seed of its weights, as often as called."""

    def initial(weights_seed: int) -> Classifier:
        return build_untrained(
            architecture=model["name"],
            arguments=model["arguments"],
            preprocessing=preprocessing,
            num_classes=len(data.images.class_names),
            seed=weights_seed,
        )

    return initial


def train_each(
    plans: Iterable[TrainingPlan],
    *,
    initial: Callable[[int], Classifier],
    data: TrainingData,
    model: Mapping[str, Any],
    facts: Mapping[str, Any],
    states: StateFolder,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one model after another: an arm's replicates, or a teacher's members.

    Args:
        plans: One per model.
        initial: Builds a model from the seed of its weights.
        data: For the fingerprints.
        model: `name` and `arguments` of the architecture.
        facts: What each checkpoint is to hold beside what is told of every training.
        states: Where interrupted trainings are kept.

    Returns:
        One checkpoint per plan, and the history: a row per model and epoch.
    """
    checkpoints, history = [], []
    for plan in plans:
        classifier = initial(derive_seed(plan.seed, "weights"))
        checkpoint, record = train_and_describe(
            classifier, plan, data=data, model=model, facts=facts, states=states
        )
        checkpoints.append(checkpoint)
        history += record.history
    return checkpoints, pd.DataFrame(history)


def _views(plan: TrainingPlan) -> dict[str, Any]:
    return plan.policy.description | {"num_views": plan.num_views}


def _training_key(
    classifier: Classifier,
    plan: TrainingPlan,
    facts: Mapping[str, Any],
    model: Mapping[str, Any],
) -> str:
    """Equal keys mean equal trainings: all that one depends on, the initial weights included."""
    rows = {"example_ids": plan.rows.example_ids, "labels": plan.rows.labels}
    if plan.rows.teacher_logits is not None:
        rows["teacher_logits"] = plan.rows.teacher_logits
    settings = asdict(plan.settings), asdict(plan.objective), dict(model)
    text = json.dumps([dict(facts), *settings], sort_keys=True)
    return tensors_digest({**rows, **classifier.network.state_dict()}, text)


def check_arm(objective: Objective, *, has_teacher: bool) -> None:
    """Refuse an arm that asks for a teacher and has none.

    Raises:
        ParameterError: Instead of training on something else in silence.
    """
    if not has_teacher and objective.soft_weight > 0:
        rule = "be 0 for an arm without a teacher"
        raise ParameterError("soft_weight", rule, objective.soft_weight)


def train_and_describe(
    classifier: Classifier,
    plan: TrainingPlan,
    *,
    data: TrainingData,
    model: Mapping[str, Any],
    facts: Mapping[str, Any],
    states: StateFolder,
) -> tuple[ModelCheckpoint, TrainingRecord]:
    """Train one model, telling so, and describe it in a checkpoint.

    Args:
        classifier: Freshly initialised.
        plan: What it learns from and how.
        data: For the fingerprints.
        model: `name` and `arguments` of the architecture.
        facts: What the checkpoint is to hold beside the costs; part of the training's key.
        states: Where interrupted trainings are kept.
    """
    facts = {
        "replicate": plan.replicate,
        "seed": plan.seed,
        "images": data.images.fingerprint,
        "splits": split_fingerprint(data.splits),
        "views": _views(plan),
        "num_training_rows": len(plan.rows),
        **facts,
    }
    parameters = {**facts["parameters"], "num_training_rows": facts["num_training_rows"]}
    emit(
        TrainingStarted(plan.replicate, parameters, plan.settings.num_epochs, plan.steps_per_epoch)
    )
    record = train_classifier(
        classifier, plan, states=states, key=_training_key(classifier, plan, facts, model)
    )
    state = classifier.network.state_dict().values()
    costs = {
        "model/parameters": count_parameters(classifier.network),
        "model/macs": count_macs(classifier),
        "model/size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in state),
        "cost/train_seconds": record.seconds,
    }
    outcome = {
        "epochs": record.epoch,
        "best_epoch": record.best_epoch or record.epoch,
        "steps": record.epoch * plan.steps_per_epoch,
        "costs": costs,
    }
    checkpoint = snapshot(
        classifier,
        architecture=model["name"],
        arguments=model["arguments"],
        class_names=data.images.class_names,
        facts={**facts, **outcome},
    )
    emit(TrainingEnded(plan.replicate, checkpoint.fingerprint, costs))
    return checkpoint, record


def _check_soft_targets(
    soft_targets: SoftTargets | None,
    objective: Objective,
    data: TrainingData,
    *,
    policy: ViewPolicy,
    num_views: int,
) -> None:
    if soft_targets is None:
        return
    check_provenance(
        soft_targets.manifest.provenance,
        class_names=data.images.class_names,
        images_fingerprint=data.images.fingerprint,
        splits_fingerprint=split_fingerprint(data.splits),
        view_policy=policy.description,
        num_views=num_views,
    )
    smoothing = soft_targets.manifest.facts.get("teacher_label_smoothing", 0.0)
    if smoothing > 0 and objective.temperature > 1:
        logger.warning(
            "the teacher was trained with label smoothing %g and `temperature` is %g: such "
            "teachers distil badly above temperature 1 (71.7 to 67.8 top-1 on ImageNet)",
            smoothing,
            objective.temperature,
        )


def _arm_rows(
    data: TrainingData,
    open_rows: pd.DataFrame,
    soft_targets: SoftTargets | None,
    objective: Objective,
    device: str,
) -> TrainingRows:
    """The rows that an arm can learn from: those with a label or a soft target that it uses."""
    ids = open_rows["example_id"].to_numpy(np.int64)
    in_transfer = torch.tensor(open_rows["in_transfer"].to_list())
    use_label = torch.tensor(open_rows["use_label"].to_list())
    labels = data.labels_of(ids).where(use_label, NO_LABEL)
    logits = None
    if soft_targets is not None:
        cached = torch.as_tensor(soft_targets.of_examples(ids[in_transfer.numpy()]))
        logits = cached.new_zeros(len(ids), *cached.shape[1:])
        logits[in_transfer] = cached
    has_soft = in_transfer & (objective.soft_weight > 0)
    used = has_soft | ((labels != NO_LABEL) & (objective.soft_weight < 1))
    if not used.any():
        raise DataError(
            "no example is left to learn from: no student row has a usable label; set "
            "`transfer_split.transfer.labelled` or leave the arm out"
        )
    kept = ids[used.numpy()]
    has_soft = has_soft[used]
    return TrainingRows(
        example_ids=torch.as_tensor(kept).to(device),
        pixels_of=pixel_reader(data.images, kept, device=device),
        labels=labels[used].to(device),
        teacher_logits=None if logits is None else logits[used].to(device),
        has_soft_target=None if bool(has_soft.all()) else has_soft.to(device),
    )
