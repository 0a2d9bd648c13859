"""One trial: draw values, train the replicates of an arm, stop them if they lag behind."""

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from kd_pipeline import events
from kd_pipeline.config import AS_IN_YAML, Params
from kd_pipeline.errors import TrainingDivergedError
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import keep_freed_memory
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.shards import Shard
from kd_pipeline.sweep.settings import SHARED, SweepParams
from kd_pipeline.sweep.space import Blocks, apply_values, suggest
from kd_pipeline.sweep.storage import storage_errors
from kd_pipeline.sweep.study import ask_trial, open_study

if TYPE_CHECKING:
    import optuna

MEASURED = ("validation/accuracy", "validation/loss")

Train = Callable[..., tuple[Any, pd.DataFrame]]
"""From the blocks `student` and of the arm, and `states`, where these are kept, to the checkpoints
and the history. It is sent to processes."""


@dataclass(frozen=True)
class ArmTrials:
    """What the trials of one arm are made from; every process that runs some of them has it."""

    arm: str
    params: SweepParams
    student: Params
    """The block `student` at hand."""
    own: ObjectiveParams
    """The arm's own block at hand."""
    facts: Mapping[str, Any]
    """JSON-able: what all trials of the sweep depend on, the data and views."""
    own_facts: Mapping[str, Any]
    """JSON-able: what else those of this arm depend on, its teacher."""
    train: Train
    folder: Path
    """Of the journal, and of what killed trials go on from."""
    shard: Shard | None = None
    """Whose trials this process runs; None runs all."""
    main_process: int = field(default_factory=os.getpid)

    @property
    def positions(self) -> range:
        """Those of the trials that this process runs: a shard's are dealt out in turn."""
        start, step = (self.shard.index, self.shard.count) if self.shard else (0, 1)
        return range(start, self.params.num_trials, step)

    @cached_property
    def blocks(self) -> Blocks:
        """The settings at hand as in YAML; trials are trained in float.

        Replicates of a trial train in one process: one that is pruned stops them all.
        """
        shared = self._shared(context=AS_IN_YAML)
        shared["training"]["side_by_side"] = "never"
        return {SHARED: shared, self.arm: self.own.model_dump(mode="json")}

    def _shared(self, **dumped: Any) -> dict[str, Any]:
        shared = self.student.model_dump(mode="json", exclude={"quantisation"}, **dumped)
        return {**shared, "num_replicates": self.params.num_replicates}

    @cached_property
    def sweep(self) -> str:
        """Equal ids mean comparable trials: of the same data, shared settings and objective."""
        objective = {"metric": self.params.metric, "seed": self.params.seed}
        return _digest({**self.facts, **objective, SHARED: self._shared()})

    @cached_property
    def study(self) -> str:
        """Name of the arm's study: a search that is set up otherwise has another one."""
        names = {"sampler", "num_startup_trials", "pruner"}
        search = self.params.model_dump(mode="json", include=names)
        ranges = self.params.ranges_of(self.arm)
        search["ranges"] = {name: one.model_dump(mode="json") for name, one in ranges.items()}
        own = {"arm": self.blocks[self.arm], "facts": dict(self.own_facts)}
        return f"{self.arm}-{_digest({'sweep': self.sweep, **own, **search})}"

    def settings(self, values: Mapping[str, Any]) -> tuple[Params, ObjectiveParams]:
        """The two blocks of a trial with these values."""
        blocks = apply_values(self.blocks, self.arm, values)
        own = type(self.own).model_validate(blocks[self.arm])
        return type(self.student).model_validate(blocks[SHARED]), own

    def states(self, values: Mapping[str, Any]) -> StateFolder:
        """Where a killed trial of these values goes on from."""
        return StateFolder(self.folder / ".interrupted" / f"{self.study}-{_digest(values)}")


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:16]


@storage_errors()
def run_trial(trials: ArmTrials, position: int, given: Mapping[str, Any]) -> events.TrialEnded:
    """Run one trial and keep its outcome in the study.

    A training that diverges is a pruned trial: its values are bad ones.

    Args:
        trials: Of the arm.
        position: Among its trials; the random draws depend on it.
        given: Values that are not drawn.

    Raises:
        DataError: If the storage cannot be used, or another process has taken this trial up.
    """
    import optuna
    from optuna.trial import TrialState

    keep_freed_memory()  # This may be a process of its own.
    study = open_study(trials.folder, trials.study, trials.params, position, given)
    trial = ask_trial(study, position, trials.shard)
    values = suggest(trial, trials.params.ranges_of(trials.arm), trials.arm)
    states, watch = trials.states(values), _Watch(trials, trial)
    value, state, started = None, TrialState.COMPLETE, time.monotonic()
    try:
        with events.listening_alone(watch):
            metrics = _final(*trials.train(*trials.settings(values), states=states))
        value = metrics[trials.params.metric]
        if not math.isfinite(value):  # Weights that the very last step has ruined.
            value, state = None, TrialState.PRUNED
    except (optuna.TrialPruned, TrainingDivergedError):
        state, metrics = TrialState.PRUNED, watch.latest()
    except Exception:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    seconds = time.monotonic() - started
    kept = {"metrics": metrics, "epochs": watch.num_epochs, "seconds": seconds}
    for name, fact in kept.items():
        trial.set_user_attr(name, fact)
    study.tell(trial, value, state=state)
    states.clear()
    costs = {"cost/train_seconds": seconds}
    return watch.ended(trials.sweep, trial.number, state.name.lower(), costs)


def _final(checkpoints: Sequence[ModelCheckpoint], history: pd.DataFrame) -> dict[str, float]:
    """Means over the replicates, of the epoch whose weights each has kept."""
    rows = history.set_index(["replicate", "epoch"])
    kept = [(one.facts["replicate"], one.facts["best_epoch"]) for one in checkpoints]
    return {name: float(rows.loc[kept, name].mean()) for name in MEASURED}


class _Watch:
    """Follows the trainings of a trial, and ends them where the pruner does."""

    def __init__(self, trials: ArmTrials, trial: "optuna.Trial") -> None:
        self.num_epochs = 0
        self._parameters: Mapping[str, Any] = {}
        self._trials, self._trial = trials, trial
        self._epochs: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.TrainingStarted():
                self._parameters = self._parameters or event.parameters
            case events.EpochEnded():
                self.num_epochs += 1
                for name, value in event.metrics.items():
                    self._epochs[event.epoch][name].append(value)
                self._prune(event)

    def _prune(self, event: events.EpochEnded) -> None:
        import optuna

        if os.getpid() != self._trials.main_process != os.getppid():
            os._exit(1)  # The run was killed. The next one takes this trial up again.
        metric = self._trials.params.metric
        # Of the first replicate alone: its curve is comparable with that of every other trial.
        if event.replicate == 0 and metric in event.metrics:
            self._trial.report(event.metrics[metric], event.epoch)
            if self._trial.should_prune():
                raise optuna.TrialPruned

    def latest(self) -> dict[str, float]:
        """The last measurements on the validation set."""
        found: dict[str, float] = {}
        for metrics in self._curves().values():
            found |= {name: metrics[name] for name in MEASURED if name in metrics}
        return found

    def ended(
        self, sweep: str, number: int, state: str, costs: Mapping[str, float]
    ) -> events.TrialEnded:
        """The whole trial as one event."""
        return events.TrialEnded(sweep, number, state, self._parameters, self._curves(), costs)

    def _curves(self) -> dict[int, dict[str, float]]:
        """Metrics by epoch, means over the replicates that have trained it."""
        return {
            epoch: {name: fmean(values) for name, values in metrics.items()}
            for epoch, metrics in self._epochs.items()
        }
