"""Plans to checkpoints: an arm's replicates or a teacher's members, stacked, alone or divided."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.events import TrainingEnded, TrainingStarted, emit
from kd_pipeline.models.architectures import code_digest
from kd_pipeline.models.checkpoint import (
    DATA_FACTS,
    ModelCheckpoint,
    count_costs,
    snapshot,
    tensors_digest,
)
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.distributed import Processes, has_batch_norm
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_together
from kd_pipeline.training.quantisation import fake_quantise, fine_tune, fine_tuning_plan
from kd_pipeline.training.settings import Quantisation, Training
from kd_pipeline.training.side_by_side import num_processes, train_side_by_side
from kd_pipeline.training.stacked import why_alone
from kd_pipeline.training.teacher_sources import LiveLogits

logger = logging.getLogger(__name__)


def train_each(
    plans: Sequence[TrainingPlan],
    *,
    initial: Callable[[int], Classifier],
    data: LabelledImages,
    model: Model,
    facts: Mapping[str, Any],
    states: StateFolder,
    quantisation: Quantisation | None = None,
    costs: Mapping[str, float] | None = None,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    """Train one model per plan: an arm's replicates, or a teacher's members.

    Small ones train stacked, as one network, others side by side in processes of their own, or one
    after another; where torchrun's processes have joined, all of them train each model, or each of
    them trains other models, by `placement`.
    `initial` builds a model from the seed of its weights; `facts` are what each checkpoint holds
    beside those of its training, and `costs` beside those of its own; a killed run resumes from
    `states`, also while it fine-tunes for `quantisation`.

    Returns:
        One checkpoint per plan, and the history: a row per model and epoch, those of fine-tuning
        after the others with columns of their own.

    Raises:
        ProcessesError: If other processes train on something else, or one is lost.
    """
    first = initial(0)
    # Once for all: it takes seconds.
    simulation = None if quantisation is None else fake_quantise(initial(0))
    processes, together = Processes.joined(), plans[0].training.placement == "data_parallel"
    sharing = processes if together else Processes()
    trainer = _Trainer(
        initial, data, model, facts, states, quantisation, simulation, costs or {}, sharing
    )
    groups = [plans] if _can_stack(plans, first) else [[plan] for plan in plans]
    with processes.naming_losses():
        if processes.count > 1:
            own_facts = _facts(plans[0], data, facts)
            key = _training_key(first, plans[0], own_facts, model)
            processes.check_alike({_TRAINED: key, **_computed_with(plans[0].training)})
        if processes.count == 1:
            models = _train_here(groups, trainer, first)
        elif together:
            own = [one for group in groups for one in trainer.train(group)]
            # Running statistics differ between processes: all take the first one's checkpoints, so
            # that fingerprints agree.
            models = processes.from_first(lambda: own)
        else:
            models = processes.spread(groups, trainer.train)
    history = [row for _, rows in models for row in rows]
    return [checkpoint for checkpoint, _ in models], pd.DataFrame(history)


_TRAINED = "data, settings or initial weights"


def _computed_with(training: Training) -> dict[str, str]:
    device = resolve_device(training.device)
    return {"device": device, "precision": resolve_precision(training.precision, device)}


def _train_here(
    groups: Sequence[Sequence[TrainingPlan]], trainer: "_Trainer", classifier: Classifier
) -> "list[_Trained]":
    """Train groups that no other machine's process shares, several at once where that pays."""
    plan = groups[0][0]
    # A live teacher is most of a step, and would be held by each process.
    is_live = isinstance(plan.teacher, LiveLogits)
    count = num_processes(len(groups), classifier, plan.training, trainer.states)
    if count == 1 or is_live:
        return [one for group in groups for one in trainer.train(group)]
    logger.info("  %d models train in %d processes side by side", len(groups), count)
    return train_side_by_side(groups, trainer.train, num_processes=count)


def _can_stack(plans: Sequence[TrainingPlan], classifier: Classifier) -> bool:
    training = plans[0].training
    if len(plans) == 1 or training.stack_replicates == "never":
        return False
    reason = why_alone(classifier, training)
    if any(plan.policy != plans[0].policy for plan in plans):
        reason = "each has views of its own"
    if plans[0].teacher is not None and plans[0].objective.soft_loss.record.over_batch:
        reason = "their loss compares the examples of a batch"
    if reason is not None:
        logger.info("  %d models are not stacked: %s", len(plans), reason)
    return reason is None


_Trained = tuple[ModelCheckpoint, list[dict[str, float]]]
"""A checkpoint and its rows of the history."""


@dataclass(frozen=True)
class _Trainer:
    """What `train_each` takes, for all of its models."""

    initial: Callable[[int], Classifier]
    data: LabelledImages
    model: Model
    facts: Mapping[str, Any]
    states: StateFolder
    quantisation: Quantisation | None
    simulation: Classifier | None
    costs: Mapping[str, float]
    processes: Processes
    """That train each model together."""

    def train(self, plans: Sequence[TrainingPlan]) -> list[_Trained]:
        """Train one model, or several stacked."""
        classifiers = [self.initial(derive_seed(plan.seed, "weights")) for plan in plans]
        facts = [_facts(plan, self.data, self.facts) for plan in plans]
        keys = []
        for plan, classifier, own in zip(plans, classifiers, facts, strict=True):
            self._announce(plan)
            keys.append(_training_key(classifier, plan, own, self.model))
        key = keys[0]
        if len(plans) > 1:
            # It rounds otherwise than each alone, and so is another training.
            key = tensors_digest({}, json.dumps({"stacked": keys}))
            facts = [{**own, "stacked_replicates": len(plans)} for own in facts]
        if self.processes.count > 1:
            key, facts = self._divided(key, facts, classifiers[0])
        record = train_together(
            classifiers, plans, states=self.states, key=key, processes=self.processes
        )
        own_record = replace(record, seconds=record.seconds / len(plans))
        each = zip(plans, classifiers, facts, keys, strict=True)
        return [self._finish(*of_one, own_record) for of_one in each]

    def _divided(
        self, key: str, facts: Sequence[dict[str, Any]], classifier: Classifier
    ) -> tuple[str, list[dict[str, Any]]]:
        """Key and facts of a training by several processes, whose sums are rounded otherwise."""
        own = {"data_parallel": self.processes.count}
        key = tensors_digest({}, json.dumps({**own, "of": key}))
        divided = [{**one, **own} for one in facts]
        if has_batch_norm(classifier):
            # More than rounding: arms are compared only where all were trained so.
            for one in divided:
                if "shared" in one:
                    one["shared"] = {**one["shared"], **own}
        return key, divided

    @property
    def _chosen(self) -> dict[str, Any]:
        own = self.quantisation
        return {} if own is None else {"quantisation": own.model_dump(mode="json")}

    def _announce(self, plan: TrainingPlan) -> None:
        counted = {"num_training_rows": len(plan.rows)}
        parameters = {**self.facts["parameters"], **self._chosen, **counted}
        after = self.quantisation.num_epochs if self.quantisation else 0
        epochs = plan.training.num_epochs + after
        emit(TrainingStarted(plan.replicate, parameters, epochs))

    def _finish(
        self,
        plan: TrainingPlan,
        classifier: Classifier,
        facts: dict[str, Any],
        key: str,
        record: TrainingRecord,
    ) -> _Trained:
        """Fine-tune a trained model, where that is asked for, and make its checkpoint."""
        costs = {**count_costs(classifier), "cost/train_seconds": record.seconds, **self.costs}
        facts |= {**_length(plan, record), "costs": costs}
        history = [row for row in record.history if row["replicate"] == plan.replicate]
        state = None
        if self.quantisation is not None and self.simulation is not None:
            after = fine_tuning_plan(plan, self.quantisation, epochs_before=record.epoch)
            state, record = fine_tune(
                self.simulation, classifier, after, states=self.states, key=key
            )
            facts |= {part: {**facts[part], **self._chosen} for part in ("parameters", "shared")}
            facts["quantisation"] = _length(plan, record)
            costs["cost/quantisation_seconds"] = record.seconds
            history += record.history
        names = self.data.images.class_names
        checkpoint = snapshot(
            classifier, self.model, class_names=names, facts=facts, quantised_state=state
        )
        emit(TrainingEnded(plan.replicate, checkpoint.fingerprint, costs))
        return checkpoint, history


def _facts(plan: TrainingPlan, data: LabelledImages, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of its training before that begins."""
    at_hand = data.labelled_provenance
    return {
        "replicate": plan.replicate,
        "seed": plan.seed,
        "image_shape": list(data.images.pixels.shape[1:]),
        **{name: at_hand[name] for name in DATA_FACTS},
        "views": plan.views_description,
        "num_training_rows": len(plan.rows),
        **facts,
    }


def _length(plan: TrainingPlan, record: TrainingRecord) -> dict[str, int]:
    return {
        "epochs": record.epoch,
        "best_epoch": record.best_epoch or record.epoch,
        "steps": record.epoch * plan.steps_per_epoch,
    }


_NUMBERS = ("num_replicates", "num_members")


def _training_key(
    classifier: Classifier, plan: TrainingPlan, facts: Mapping[str, Any], model: Model
) -> str:
    """Equal keys mean equal trainings: all that one depends on, the initial weights included."""
    rows = {"example_ids": plan.rows.example_ids, "labels": plan.rows.labels}
    source = None if plan.teacher is None else dict(plan.teacher.identity)
    settings = [part.model_dump(mode="json") for part in (plan.training, plan.objective, model)]
    # Of a user's own network; others have none, and their keys stay as they were.
    code = [] if (digest := code_digest(model.name)) is None else [digest]
    # Further replicates, or members, leave the others what they are.
    parameters = {k: v for k, v in facts["parameters"].items() if k not in _NUMBERS}
    own = {**facts, "parameters": parameters}
    text = json.dumps([own, *settings, source, *code], sort_keys=True)
    return tensors_digest({**rows, **classifier.network.state_dict()}, text)
