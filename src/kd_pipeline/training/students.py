"""Students: one arm's replicates, alike in everything but seed, and alike between arms."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from kd_pipeline.data.splits import split_fingerprint, student_rows
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import TrainingEnded, TrainingStarted, emit
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
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.arm_rows import arm_rows
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_classifier
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.teacher_sources import Teacher
from kd_pipeline.views import ViewPolicy


def train_students(
    data: TrainingData,
    *,
    teacher: Teacher | None,
    objective: Objective,
    model: Mapping[str, Any],
    settings: TrainingSettings,
    seed: int,
    num_replicates: int,
    policy: ViewPolicy,
    num_views: int | None,
    parameters: Mapping[str, Any],
    states: StateFolder,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one arm's replicates.

    Initial weights, batch order, views and number of steps depend on nothing of the arm: two
    arms that learn from the same rows see the same batches.

    Args:
        data: Images, examples and splits.
        teacher: A cache or a live teacher, for arms that learn from one.
        objective: The arm's loss.
        model: `name` and `arguments` of the architecture.
        settings: How to train.
        seed: Of the whole group of arms.
        num_replicates: How many students, each with a seed of its own.
        policy: How views are drawn.
        num_views: How many there are; None shows a fresh one in every pass.
        parameters: All settings in force, to be told and kept.
        states: Where interrupted trainings are kept.

    Returns:
        One checkpoint per replicate, and the history: a row per replicate and epoch.
    """
    check_arm(objective, has_teacher=teacher is not None)
    if teacher is not None:
        teacher.check(data, objective, policy=policy, num_views=num_views)
    open_rows = student_rows(data.splits)
    rows = arm_rows(data, open_rows, objective, settings, has_teacher=teacher is not None)
    asked = teacher if objective.soft_weight > 0 else None
    base = TrainingPlan(
        rows=rows,
        validation=data.validation(settings),
        objective=objective,
        settings=settings,
        steps_per_epoch=math.ceil(len(open_rows) / settings.batch_size),
        seed=seed,
        teacher=None if asked is None else asked.logits(rows, objective, settings),
        policy=policy,
        num_views=num_views,
        partners=data.transfer_partners(settings) if policy.mixes else None,
    )

    # Evaluation refuses to compare arms that differ in any of what they share.
    shared = {
        "seed": seed,
        "model": dict(model),
        "training": asdict(settings),
        "views": _views(base),
    }
    facts = {
        "teacher": list(teacher.fingerprints) if teacher else [],
        "teacher_mixing": _mixture(teacher),
        "parameters": dict(parameters),
        "shared": shared,
    }
    seeds = [derive_seed(seed, "replicate", replicate) for replicate in range(num_replicates)]
    plans = [replace(base, seed=own, replicate=r) for r, own in enumerate(seeds)]
    initial = untrained(data, model, data.measure(open_rows["example_id"].to_numpy()))
    return train_each(plans, initial=initial, data=data, model=model, facts=facts, states=states)


def _mixture(teacher: Teacher | None) -> dict[str, Any] | None:
    """How several members were mixed: part of which teacher a student learnt from."""
    if teacher is None or len(teacher.fingerprints) == 1:
        return None
    return teacher.mixing.described(len(teacher.fingerprints))


def untrained(
    data: TrainingData, model: Mapping[str, Any], preprocessing: Preprocessing
) -> Callable[[int], Classifier]:
    """Build a model of the images' classes from the seed of its weights, as often as called.

    Args:
        data: For the classes.
        model: `name`, `arguments` and, where it is not the images' own, `input_size`.
        preprocessing: Of the images.
    """
    resized = preprocessing.resized(model.get("input_size"))

    def initial(weights_seed: int) -> Classifier:
        return build_untrained(
            architecture=model["name"],
            arguments=model["arguments"],
            preprocessing=resized,
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
    source = None if plan.teacher is None else dict(plan.teacher.identity)
    settings = asdict(plan.settings), asdict(plan.objective), dict(model), source
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
        "image_shape": list(data.images.pixels.shape[1:]),
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
