"""The training loop.

Everything random in an epoch is a function of the seed and the epoch, so that a run resumed from
the state at the end of any epoch equals an unbroken one, bit for bit on a CPU.
"""

import logging
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kd_pipeline.errors import TrainingDivergedError
from kd_pipeline.events import EpochEnded, emit
from kd_pipeline.losses.hard import MixedLabels, hard_label_loss, has_label
from kd_pipeline.losses.objective import Objective, ObjectiveTerms
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed, seeded
from kd_pipeline.training.distributed import Processes
from kd_pipeline.training.optimisation import build_optimiser, build_schedule, step_on_validation
from kd_pipeline.training.rows import BatchOrder, Rows, measure_validation
from kd_pipeline.training.settings import Training
from kd_pipeline.training.stacked import stack, unstack
from kd_pipeline.training.teacher_sources import BatchLogits, LiveLogits
from kd_pipeline.training.threads import threads_for
from kd_pipeline.views import DrawnViews, ViewPolicy, ViewRenderer

logger = logging.getLogger(__name__)

ALONE = Processes()
STEPS_PER_CHUNK = 64
"""Targets are gathered, metrics reduced and the loss checked once in so many steps."""


@dataclass(frozen=True)
class TrainingPlan:
    """What one model is trained on and against; replicates of an arm differ in `seed` alone."""

    rows: Rows
    validation: Rows
    objective: ObjectiveParams
    training: Training
    steps_per_epoch: int
    seed: int
    teacher: BatchLogits | None = None
    """The source of the teacher's logits; None for a model without a teacher."""
    policy: ViewPolicy = field(default_factory=ViewPolicy)
    num_views: int | None = None
    """Views that repeat, as cached ones do; None draws a fresh view in every pass."""
    partners: Rows | None = None
    """What a policy that mixes images mixes in."""
    replicate: int = 0
    epochs_before: int = 0
    """Of an earlier training that this one goes on from: epochs and steps are counted on."""
    metrics_group: str | None = None
    """Metrics are named `<group>/train_loss`, and so on, beside the curves of that training."""

    @property
    def views_description(self) -> dict[str, Any]:
        """Which views it is shown, as checkpoints keep it."""
        return self.policy.description | {"num_views": self.num_views}

    def row(self, epochs: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """The row of the history after so many epochs of this plan."""
        done = self.epochs_before + epochs
        if (group := self.metrics_group) is not None:
            metrics = {f"{group}/{k.replace('/', '_')}": value for k, value in metrics.items()}
        steps = done * self.steps_per_epoch
        return {"replicate": self.replicate, "epoch": done, "step": steps, **metrics}


@dataclass
class TrainingRecord:
    """How far a training is; of several replicates, their rows and the seconds of all."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    best_state: dict[str, Tensor] | None = None


def train_classifier(
    classifier: Classifier, plan: TrainingPlan, *, states: StateFolder, key: str
) -> TrainingRecord:
    """Train a classifier in place, to the end or until validation stops improving.

    Args:
        classifier: Freshly initialised; holds the trained (or best) weights after.
        plan: What it learns from and how.
        states: Where the state is kept from which a killed run resumes.
        key: Names this training among the states: equal keys mean equal trainings.

    Raises:
        TrainingDivergedError: If the loss becomes NaN or infinite.
    """
    return train_together([classifier], [plan], states=states, key=key)


def train_together(
    classifiers: Sequence[Classifier],
    plans: Sequence[TrainingPlan],
    *,
    states: StateFolder,
    key: str,
    processes: Processes = ALONE,
) -> TrainingRecord:
    """Train classifiers of one architecture as one network, each as `train_classifier` would.

    Args:
        classifiers: Several only where `stacked.why_alone` has nothing against it.
        plans: One per classifier; they differ in seed and number alone.
        states: Where the state is kept from which a killed run resumes.
        key: Names this training among the states.
        processes: That train together, each on its slice of every batch; the first one keeps the
            states and measures validation.

    Raises:
        TrainingDivergedError: If the loss of one becomes NaN or infinite.
    """
    training = plans[0].training
    # A live teacher is most of a step, however small the student.
    is_live = isinstance(plans[0].teacher, LiveLogits)
    with nullcontext() if is_live else threads_for(classifiers, batch_size=training.batch_size):
        loop = _Loop(classifiers, plans, processes)
        record = loop.resume(processes.from_first(lambda: states.load(key)))
        for past in record.history:
            _announce(past)
        while not _is_over(record, training):
            rows = loop.epoch(record)
            record.history += rows
            for row in rows:
                _announce(row)
            is_due = record.epoch % training.checkpoint_every == 0 or _is_over(record, training)
            if is_due and processes.is_first:
                states.save(key, loop.state(record))
        loop.finish(record)
    return record


def _announce(row: Mapping[str, float]) -> None:
    metrics = {k: v for k, v in row.items() if "/" in k and not math.isnan(v)}
    emit(EpochEnded(int(row["replicate"]), int(row["epoch"]), metrics))


def _is_over(record: TrainingRecord, training: Training) -> bool:
    if record.epoch >= training.num_epochs:
        return True
    stopping = training.early_stopping
    return stopping is not None and record.epoch - record.best_epoch >= stopping.patience


class _Loop:
    """One model, or several stacked, with its optimiser and its schedule on a device."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        plans: Sequence[TrainingPlan],
        processes: Processes,
    ) -> None:
        # What they share is read from the first plan.
        self.classifiers, self.plans, self.plan = classifiers, plans, plans[0]
        plan, training = plans[0], plans[0].training
        classifier = classifiers[0] if len(classifiers) == 1 else stack(classifiers)
        self.classifier = classifier
        self.objective = Objective(plan.objective, len(plans))
        self.device = resolve_device(training.device)
        precision = resolve_precision(training.precision, self.device)
        self.autocast = partial(
            torch.autocast, self.device, torch.bfloat16, precision == "bfloat16"
        )
        self.frozen_norms = _frozen_norms(classifier)
        self.model = processes.parallel(classifier.to(self.device))
        self.processes, self.slice = processes, processes.slice_of(training.batch_size)
        self.share = (self.slice.stop - self.slice.start) / training.batch_size
        self.optimiser = build_optimiser(classifier.parameters(), training.optimiser)
        self.num_steps = training.num_epochs * plan.steps_per_epoch
        self.schedule = build_schedule(self.optimiser, training.schedule, num_steps=self.num_steps)
        partners = None if plan.partners is None else plan.partners.pixels
        self.renderer = ViewRenderer(plan.policy, plan.rows.pixels, partners)
        self.orders = [
            BatchOrder(plan.rows.example_ids, derive_seed(one.seed, "order"), training.batch_size)
            for one in plans
        ]

    def epoch(self, record: TrainingRecord) -> list[dict[str, float]]:
        """Train one epoch and measure validation; returns the epoch's rows of the history."""
        plan, number = self.plan, record.epoch
        started = time.perf_counter()
        # Processes have other examples, and draw other masks.
        rank = () if self.processes.is_first else (self.processes.rank,)
        with seeded(derive_seed(plan.seed, "dropout", number, *rank)):
            metrics = self._train(number)
        seconds = time.perf_counter() - started
        record.seconds += seconds
        record.epoch += 1
        examples = len(self.plans) * plan.steps_per_epoch * plan.training.batch_size
        for own in metrics:
            own["train/examples_per_second"] = examples / seconds
        if record.epoch % plan.training.evaluate_every == 0 or _is_over(record, plan.training):
            self._validate(record, metrics)
        rows = zip(self.plans, metrics, strict=True)
        return [own_plan.row(record.epoch, own) for own_plan, own in rows]

    def _validate(self, record: TrainingRecord, metrics: Sequence[dict[str, float]]) -> None:
        self._unstack()
        for classifier, own in zip(self.classifiers, metrics, strict=True):
            of_one = partial(measure_validation, classifier, self.plan.validation)
            own.update(self.processes.from_first(partial(of_one, device=self.device)))
        # Never with several: neither goes with a stack.
        self._note_best(record, metrics[0])
        step_on_validation(self.schedule, metrics[0])

    def _unstack(self) -> None:
        if len(self.classifiers) > 1:
            unstack(self.classifier, self.classifiers)

    def finish(self, record: TrainingRecord) -> None:
        """Leave the trained, or best, weights in the classifiers, on the CPU and in eval mode."""
        self._unstack()
        if record.best_state is not None:
            self.classifier.network.load_state_dict(record.best_state)
        for classifier in self.classifiers:
            classifier.cpu().eval()

    def _train(self, number: int) -> list[dict[str, float]]:
        plan = self.plan
        # Batch norm and dropout are switched here and nowhere else: validation switches back.
        self.classifier.train()
        for norm in self.frozen_norms:
            norm.eval()
        first, count = number * plan.steps_per_epoch, plan.steps_per_epoch
        steps = zip(*(order.steps(first, count) for order in self.orders), strict=True)
        positions, passes = (
            torch.cat([part[:, self.slice] for part in parts], dim=1) for parts in steps
        )
        meter = _Meter(self, number)
        for start in range(0, len(positions), STEPS_PER_CHUNK):
            chunk = slice(start, start + STEPS_PER_CHUNK)
            self._train_chunk(positions[chunk], passes[chunk], meter)
        return meter.means()

    def _train_chunk(self, positions: Tensor, passes: Tensor, meter: "_Meter") -> None:
        """Take some steps: views are drawn, targets gathered and metrics reduced at once."""
        plan, training = self.plan, self.plan.training
        views = passes if plan.num_views is None else passes % plan.num_views
        drawn = self.renderer.draw(positions, views)
        labels = self._labels(positions, drawn)
        teacher_logits = None if plan.teacher is None else plan.teacher.chunk(positions, passes)
        has = None if plan.rows.has_soft_target is None else plan.rows.has_soft_target[positions]
        # The mean over processes of the weighed means of their slices is the mean of the batch.
        weight = self.processes.count * self.share
        first_step = meter.epoch * plan.steps_per_epoch + meter.steps
        for step in range(len(positions)):
            pixels = drawn.render(step).contiguous(memory_format=self.classifier.layout)
            progress = (first_step + step + 1) / self.num_steps
            targets = None
            if teacher_logits is not None and self.objective.soft_weight(progress) > 0:
                targets = teacher_logits(step, pixels)
            with self.autocast():
                logits = self.model(pixels)
            label = _map_labels(labels, operator.itemgetter(step))
            soft = None if has is None else has[step]
            terms = self.objective(logits, label, targets, soft, progress=progress)
            self.optimiser.zero_grad()
            # Of several replicates, the gradients of the sum: each has a loss of its own.
            terms.loss.backward(torch.full_like(terms.loss, weight))  # type: ignore[no-untyped-call]
            if training.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(self.classifier.parameters(), training.max_gradient_norm)
            self.optimiser.step()
            if not isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step()
            if training.max_weight_norm is not None:
                _bound_weights(self.classifier, training.max_weight_norm)
            meter.add(terms, logits)
        meter.reduce(labels)

    def _labels(self, positions: Tensor, drawn: DrawnViews) -> Tensor | MixedLabels:
        """Labels [steps, batch] of the views, or of both images where views mix two."""
        labels, mixed, partners = self.plan.rows.labels[positions], drawn.mixed, self.plan.partners
        if mixed is None or partners is None:
            return labels
        return MixedLabels(labels, partners.labels[mixed.partner_positions], mixed.image_weight)

    def _note_best(self, record: TrainingRecord, metrics: Mapping[str, float]) -> None:
        stopping = self.plan.training.early_stopping
        if stopping is None:
            return
        value, best = metrics[stopping.metric], record.best_value
        falls = stopping.metric.endswith("loss")  # Accuracies rise.
        if best is None or (value < best if falls else value > best):
            record.best_epoch, record.best_value = record.epoch, value
            state = self.classifier.network.state_dict()
            record.best_state = {name: tensor.detach().clone() for name, tensor in state.items()}

    def state(self, record: TrainingRecord) -> dict[str, Any]:
        """All that `resume` needs; of a training that is over, no more than its weights."""
        weights = {"network": self.classifier.network.state_dict(), "record": vars(record)}
        if _is_over(record, self.plan.training):
            return weights
        return {
            **weights,
            "optimiser": self.optimiser.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
        }

    def resume(self, state: dict[str, Any] | None) -> TrainingRecord:
        """Go on from a state, or start."""
        if state is None:
            return TrainingRecord()
        self.classifier.network.load_state_dict(state["network"])
        record = TrainingRecord(**state["record"])
        if _is_over(record, self.plan.training):
            first, last = self.plans[0].replicate, self.plans[-1].replicate
            numbers = f" {first}" if first == last else f"s {first} to {last}"
            logger.info("  replicate%s: trained before, from the same data and settings", numbers)
            return record
        self.optimiser.load_state_dict(state["optimiser"])
        _match_layouts(self.optimiser)
        self.schedule.load_state_dict({"lr_lambdas": [None], **state["schedule"]})
        return record


class _Meter:
    """Sums over an epoch, per replicate, of all processes."""

    def __init__(self, loop: _Loop, epoch: int) -> None:
        self.epoch, self.label_smoothing = epoch, loop.plan.objective.label_smoothing
        self.processes, self.share = loop.processes, loop.share
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.steps = 0
        self.sums = torch.zeros(len(loop.plans), 5, dtype=torch.float64)

    def add(self, terms: ObjectiveTerms, logits: Tensor) -> None:
        self.pending.append((terms.loss.detach(), terms.soft_loss, logits.detach()))

    def reduce(self, labels: Tensor | MixedLabels) -> None:
        """Sum what was added up to here; `labels` are those of the same steps."""
        losses, softs, logits = zip(*self.pending, strict=True)
        self.pending.clear()
        score, label = torch.cat(logits), _map_labels(labels, torch.Tensor.flatten)
        known = has_label(label)
        hard = hard_label_loss(score, label, label_smoothing=self.label_smoothing)
        dominant = label if isinstance(label, Tensor) else label.dominant()
        sums = [torch.stack(losses) * self.share, torch.stack(softs) * self.share, hard]
        sums += [(score.argmax(dim=1) == dominant) & known, known]
        self.steps += len(losses)
        # Each [steps x replicates x (1 or batch)], as they were added.
        shape = (len(losses), len(self.sums), -1)
        added = [values.view(shape).sum(dim=(0, 2), dtype=torch.float64) for values in sums]
        self.sums += self.processes.total(torch.stack(added, dim=1).cpu())
        if not torch.isfinite(self.sums).all():
            raise TrainingDivergedError(
                f"the training loss became {self.sums[:, 0].sum().item()} in epoch "
                f"{self.epoch + 1}; lower `training.optimiser.arguments.lr` or set "
                "`training.max_gradient_norm`"
            )

    def means(self) -> list[dict[str, float]]:
        """One dictionary per replicate."""
        return [self._means(*sums) for sums in self.sums.tolist()]

    def _means(
        self, loss: float, soft: float, hard: float, correct: float, labelled: float
    ) -> dict[str, float]:
        return {
            "train/loss": loss / self.steps,
            # Over the rows that have a label, so that it means the same in every arm.
            "train/hard_loss": hard / labelled if labelled else math.nan,
            "train/soft_loss": soft / self.steps,
            "train/accuracy": correct / labelled if labelled else math.nan,
        }


def _map_labels(
    labels: Tensor | MixedLabels, function: Callable[[Tensor], Tensor]
) -> Tensor | MixedLabels:
    if isinstance(labels, Tensor):
        return function(labels)
    return MixedLabels(*map(function, labels))


def _match_layouts(optimiser: torch.optim.Optimizer) -> None:
    """Lay loaded moments out as their weights: fused kernels pair the two by raw memory."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for name, value in optimiser.state[parameter].items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    matched = torch.empty_like(parameter)
                    optimiser.state[parameter][name] = matched.copy_(value)


def _frozen_norms(classifier: Classifier) -> list[nn.Module]:
    """Norms of frozen layers: their running statistics must not drift either."""
    if all(parameter.requires_grad for parameter in classifier.parameters()):
        return []  # A norm without parameters has none that train, and is not frozen for that.
    return [
        module
        for module in classifier.modules()
        if getattr(module, "running_mean", None) is not None
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


def _bound_weights(classifier: Classifier, bound: float) -> None:
    """Scale each unit's incoming weights down to a norm of at most `bound`, the head's too.

    Of linear layers that train; convolutions have no bound.
    """
    with torch.no_grad():
        for module in classifier.modules():
            if isinstance(module, nn.Linear) and module.weight.requires_grad:
                module.weight.copy_(torch.renorm(module.weight, 2, 0, bound))
