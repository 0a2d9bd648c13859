"""Students: one arm's replicates, alike in everything but seed, and alike between arms."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.splits import student_rows
from kd_pipeline.errors import ParameterError
from kd_pipeline.events import TrainingEnded, TrainingStarted, emit
from kd_pipeline.models.checkpoint import (
    DATA_FACTS,
    ModelCheckpoint,
    count_costs,
    snapshot,
    tensors_digest,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_classifier
from kd_pipeline.training.initial import initial_model
from kd_pipeline.training.quantisation import fake_quantise, fine_tune, fine_tuning_plan
from kd_pipeline.training.rows import arm_rows, make_rows, transfer_partners
from kd_pipeline.training.settings import (
    OF_TEACHING_STUDENTS,
    ArmParams,
    Quantisation,
    StudentParams,
)
from kd_pipeline.training.teacher_sources import Teacher
from kd_pipeline.views.settings import ViewsParams


def train_students(
    data: LabelledImages,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    *,
    teacher: Teacher | None,
    states: StateFolder,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one arm's replicates.

    Initial weights, batch order, views and number of steps depend on nothing of the arm: two
    arms that learn from the same rows are shown the same batches.

    A killed run resumes from `states`. `parameters` are further settings to log and to keep with
    the checkpoints; `teacher` is None for arms that learn from labels alone.

    Returns:
        One checkpoint per replicate, and the history: a row per replicate and epoch.

    Raises:
        ParameterError: If the arm asks for a teacher and has none.
    """
    student = student.for_arm(arm)
    if teacher is not None:
        teacher.check(data, arm, views)
    elif arm.soft_weight > 0:
        rule = "be 0 for an arm without a teacher"
        raise ParameterError("soft_weight", rule, arm.soft_weight)
    plan = _plan(data, student, arm, views, teacher)
    ids = student_rows(data.splits)["example_id"].to_numpy()
    initial = initial_model(data, student.model, student.pretrained, ids)
    facts = {
        "teacher": list(teacher.fingerprints) if teacher else [],
        "teacher_ensemble": _ensemble(teacher),
        "parameters": _parameters(student, arm, views) | dict(parameters or {}),
        # Evaluation refuses to compare arms that differ in any of these.
        "shared": {
            "seed": student.seed,
            "model": student.model.model_dump(mode="json"),
            **initial.provenance,
            "training": student.training.model_dump(mode="json"),
            "views": _views(plan),
        },
    }
    caching = teacher.caching_seconds if teacher else 0.0
    numbers = range(student.num_replicates)
    seeds = (derive_seed(student.seed, "replicate", number) for number in numbers)
    plans = [replace(plan, seed=own, replicate=number) for number, own in enumerate(seeds)]
    return train_each(
        plans,
        initial=initial,
        data=data,
        model=student.model,
        facts=facts,
        states=states,
        quantisation=student.quantisation,
        costs={} if caching is None else {"cost/caching_seconds": caching},
    )


def _plan(
    data: LabelledImages,
    student: StudentParams,
    arm: ArmParams,
    views: ViewsParams,
    teacher: Teacher | None,
) -> TrainingPlan:
    training = student.training
    rows = arm_rows(data, arm, training, has_teacher=teacher is not None)
    return TrainingPlan(
        rows=rows,
        validation=make_rows(data, data.ids("validation"), training),
        objective=arm,
        training=training,
        steps_per_epoch=math.ceil(len(student_rows(data.splits)) / training.batch_size),
        seed=student.seed,
        teacher=teacher.open(rows, arm, training) if teacher and arm.soft_weight > 0 else None,
        policy=views.policy,
        num_views=views.num_views,
        partners=transfer_partners(data, training) if views.policy.mixes else None,
    )


def _parameters(student: StudentParams, arm: ArmParams, views: ViewsParams) -> dict[str, Any]:
    """What MLflow lists of a student's settings, under the same names in every arm."""
    own = arm.model_dump(mode="json", exclude=set(OF_TEACHING_STUDENTS))
    # `train_each` adds the quantisation: the training in float, and its key, is the same without.
    # So are they for a student from scratch.
    left_out = {"quantisation", *(() if student.pretrained else ("pretrained",))}
    shared = student.model_dump(mode="json", exclude=left_out)
    return {**shared, **own, "views": views.model_dump(mode="json")}


def _ensemble(teacher: Teacher | None) -> dict[str, Any] | None:
    """How several members were averaged: part of which teacher a student learnt from."""
    if teacher is None or len(teacher.fingerprints) == 1:
        return None
    return teacher.params.describe(len(teacher.fingerprints))


def _views(plan: TrainingPlan) -> dict[str, Any]:
    return plan.policy.description | {"num_views": plan.num_views}


def train_each(
    plans: Iterable[TrainingPlan],
    *,
    initial: Callable[[int], Classifier],
    data: LabelledImages,
    model: Model,
    facts: Mapping[str, Any],
    states: StateFolder,
    quantisation: Quantisation | None = None,
    costs: Mapping[str, float] | None = None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one model after another: an arm's replicates, or a teacher's members.

    `initial` builds a model from the seed of its weights; `facts` are what each checkpoint holds
    beside those of its training, and `costs` beside those of its own; a killed run resumes from
    `states`, also while it fine-tunes for `quantisation`.

    Returns:
        One checkpoint per plan, and the history: a row per model and epoch, those of fine-tuning
        after the others with columns of their own.
    """
    checkpoints, history = [], []
    chosen = {} if quantisation is None else {"quantisation": quantisation.model_dump(mode="json")}
    # Once for all: it takes seconds.
    simulation = None if quantisation is None else fake_quantise(initial(0))
    for plan in plans:
        own = _facts(plan, data, facts)
        classifier = initial(derive_seed(plan.seed, "weights"))
        parameters = {**facts["parameters"], **chosen, "num_training_rows": len(plan.rows)}
        epochs = plan.training.num_epochs + (quantisation.num_epochs if quantisation else 0)
        emit(TrainingStarted(plan.replicate, parameters, epochs, plan.steps_per_epoch))
        key = _training_key(classifier, plan, own, model)
        record = train_classifier(classifier, plan, states=states, key=key)
        of_model = {**count_costs(classifier), "cost/train_seconds": record.seconds}
        of_model |= costs or {}
        own |= {**_length(plan, record), "costs": of_model}
        history += record.history
        state = None
        if quantisation is not None and simulation is not None:
            after = fine_tuning_plan(plan, quantisation, epochs_before=record.epoch)
            state, record = fine_tune(simulation, classifier, after, states=states, key=key)
            own |= {part: {**own[part], **chosen} for part in ("parameters", "shared")}
            own["quantisation"] = _length(plan, record)
            of_model["cost/quantisation_seconds"] = record.seconds
            history += record.history
        names = data.images.class_names
        checkpoint = snapshot(
            classifier, model, class_names=names, facts=own, quantised_state=state
        )
        emit(TrainingEnded(plan.replicate, checkpoint.fingerprint, of_model))
        checkpoints.append(checkpoint)
    return checkpoints, pd.DataFrame(history)


def _facts(plan: TrainingPlan, data: LabelledImages, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of its training before that begins."""
    at_hand = data.labelled_provenance
    return {
        "replicate": plan.replicate,
        "seed": plan.seed,
        "image_shape": list(data.images.pixels.shape[1:]),
        **{name: at_hand[name] for name in DATA_FACTS},
        "views": _views(plan),
        "num_training_rows": len(plan.rows),
        **facts,
    }


def _length(plan: TrainingPlan, record: TrainingRecord) -> dict[str, int]:
    return {
        "epochs": record.epoch,
        "best_epoch": record.best_epoch or record.epoch,
        "steps": record.epoch * plan.steps_per_epoch,
    }


def _training_key(
    classifier: Classifier, plan: TrainingPlan, facts: Mapping[str, Any], model: Model
) -> str:
    """Equal keys mean equal trainings: all that one depends on, the initial weights included."""
    rows = {"example_ids": plan.rows.example_ids, "labels": plan.rows.labels}
    source = None if plan.teacher is None else dict(plan.teacher.identity)
    settings = [part.model_dump(mode="json") for part in (plan.training, plan.objective, model)]
    text = json.dumps([dict(facts), *settings, source], sort_keys=True)
    return tensors_digest({**rows, **classifier.network.state_dict()}, text)
