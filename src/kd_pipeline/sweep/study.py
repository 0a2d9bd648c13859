"""Optuna's studies, one per arm, all in one storage; who runs which trial."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.errors import DataError
from kd_pipeline.randomness import derive_seed
from kd_pipeline.shards import Shard
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.sweep.storage import JOURNAL, open_storage

if TYPE_CHECKING:  # An extra, which other pipelines do not need.
    import optuna
    from optuna.trial import FrozenTrial

POSITION = "position"
"""Attribute of a trial: which one of those asked for it is, from 0 on."""
_SHARD = "shard"
"""Attribute of a trial: name of the shard that runs it, empty where one process runs all."""

logger = logging.getLogger(__name__)


def open_study(
    folder: Path,
    name: str,
    params: SweepParams,
    position: int = 0,
    values: Mapping[str, Any] | None = None,
) -> "optuna.Study":
    """Open or begin a study.

    Args:
        folder: Of the journal.
        name: Of the study.
        params: What the sampler and the pruner are made from.
        position: Of the trial that is asked for next. Its random draws depend on it and on nothing
            that happened in this process, so that a sweep that goes on draws what it would have.
        values: Parameters of that trial that are not drawn.

    Raises:
        DataError: If the journal is damaged.
    """
    import optuna

    try:
        return optuna.create_study(
            storage=open_storage(folder),
            study_name=name,
            direction="maximize" if params.maximised else "minimize",
            sampler=_sampler(params, position, values or {}),
            pruner=_pruner(params),
            load_if_exists=True,
        )
    except ValueError as error:  # Of JSON too.
        file = folder / JOURNAL
        raise DataError(f"{file} is damaged ({error}): delete it to begin anew") from error


def ask_trial(study: "optuna.Study", position: int, shard: Shard | None) -> "optuna.Trial":
    """Begin the trial of a position, which from now on is this shard's."""
    trial = study.ask()
    trial.set_user_attr(_SHARD, shard.name if shard else "")
    trial.set_user_attr(POSITION, position)
    return trial


def finished_trials(study: "optuna.Study", num_trials: int) -> "list[FrozenTrial]":
    """Complete or pruned trials, one for each position below a number that has one, in order."""
    from optuna.trial import TrialState

    finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    # Of two at one position the first counts: a shard may have been run twice, without a lock.
    by_position = {trial.user_attrs.get(POSITION): trial for trial in reversed(finished)}
    return [by_position[at] for at in range(num_trials) if at in by_position]


def left_trials(
    study: "optuna.Study", positions: Iterable[int], first: Mapping[str, Any]
) -> dict[int, Mapping[str, Any]]:
    """Positions without a finished trial, with the values that are not drawn there.

    Args:
        study: Of the arm.
        positions: Those that are asked for.
        first: Values of position 0.

    Returns:
        By position: values that a killed trial there has drawn before, and `first`.
    """
    from optuna.trial import TrialState

    failed = study.get_trials(states=(TrialState.FAIL,))
    begun = {trial.user_attrs.get(POSITION): trial.params for trial in failed}
    done = {
        trial.user_attrs[POSITION]
        for trial in finished_trials(study, max(positions, default=0) + 1)
    }
    return {
        at: {**(first if at == 0 else {}), **begun.get(at, {})}
        for at in positions
        if at not in done
    }


def fail_killed(study: "optuna.Study", shard: Shard | None) -> None:
    """Mark trials that a kill has left running as failed; those of other shards may run.

    A run alone, or the first of another number of shards, has found the lock of the run free:
    whatever else is marked as running was killed.
    """
    from optuna.trial import TrialState

    for left in study.get_trials(states=(TrialState.RUNNING,)):
        owner = left.user_attrs.get(_SHARD)
        if shard is not None and owner != shard.name and _may_run(owner, shard):
            continue
        study.tell(left.number, state=TrialState.FAIL, skip_if_finished=True)
        logger.info("trial %d of %s was killed and is run again", left.number, study.study_name)


def _may_run(owner: str | None, shard: Shard) -> bool:
    """Whether a trial may be that of another shard, which is at work beside this one."""
    return owner is None or owner.endswith(f"-of-{shard.count}")


def _sampler(
    params: SweepParams, position: int, values: Mapping[str, Any]
) -> "optuna.samplers.BaseSampler":
    import optuna
    from optuna.exceptions import ExperimentalWarning

    seed = derive_seed(params.seed, "sweep", position) % 2**32
    sampler: optuna.samplers.BaseSampler
    if params.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=params.num_startup_trials, seed=seed, multivariate=True
        )
    if not values:
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Not queued in the study: another process would be given what was queued for this one.
        return optuna.samplers.PartialFixedSampler(dict(values), sampler)


def _pruner(params: SweepParams) -> "optuna.pruners.BasePruner":
    import optuna

    if params.pruner.name == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=params.num_startup_trials, n_warmup_steps=params.pruner.min_epochs
        )
    if params.pruner.name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=params.pruner.min_epochs)
    return optuna.pruners.NopPruner()
