"""The search of one arm: its trials, of one process or of several, and what came of them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from joblib import Parallel, delayed, parallel_config

from kd_pipeline.errors import ParameterError
from kd_pipeline.events import Progress, TrialEnded, emit
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.sweep.space import decode_values, present_values
from kd_pipeline.sweep.storage import mend_journal, storage_errors
from kd_pipeline.sweep.study import fail_killed, finished_trials, left_trials, open_study
from kd_pipeline.sweep.trials import ArmTrials, run_trial

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmSearch:
    """The outcome of one arm's search."""

    arm: str
    trials: pd.DataFrame
    """Rows: trials. Columns: `arm`, `trial`, `state`, the metrics, `epochs`, `seconds`, and the
    parameters by dotted name."""
    best: dict[str, Any]
    """The values of the best trial, as in YAML."""
    best_trial: int
    importances: dict[str, float]
    """Share of the metric's variation by parameter; empty where it cannot be told."""


def search_arm(trials: ArmTrials) -> ArmSearch:
    """Run the trials that are left to do, and sum up all.

    Raises:
        DataError: If the journal is damaged, or the server of the trials cannot be used.
        ParameterError: If no trial was trained to its end.
    """
    run_left(trials)
    with storage_errors():
        study = open_study(trials.folder, trials.study, trials.params)
        found = _outcome(study, trials.arm, trials.params)
    values = ", ".join(f"{name} {value}" for name, value in found.best.items())
    logger.info("  best is trial %d: %s", found.best_trial, values)
    return found


def run_left(trials: ArmTrials) -> None:
    """Run the trials that are left to do, of this process's shard or of all.

    Trials of earlier runs of the same search count; one that was killed is run again.

    Raises:
        DataError: If the journal is damaged, or the server of the trials cannot be used.
    """
    mend_journal(trials.folder)
    with storage_errors():
        study = open_study(trials.folder, trials.study, trials.params)
        fail_killed(study, trials.shard)
        # First the settings at hand: the best ones are then no worse on validation.
        first = present_values(trials.blocks, trials.params.ranges_of(trials.arm))
        left = left_trials(study, trials.positions, first)
    total = len(trials.positions)
    if num_done := total - len(left):
        logger.info("  %d of %d trials were there", num_done, total)
    for done, ended in enumerate(_run(trials, left), start=num_done + 1):
        emit(ended)
        emit(Progress(f"trials of {trials.arm}", done, total, "trials", ended.state))


def _run(trials: ArmTrials, left: Mapping[int, Mapping[str, Any]]) -> Iterator[TrialEnded]:
    """Run the trials of some positions with some values, and yield each when it ends."""
    num_processes = min(trials.params.num_processes, len(left))
    if num_processes <= 1:
        yield from (run_trial(trials, *one) for one in left.items())
        return
    # Processes of loky start afresh: a fork would copy locks of torch's and MLflow's threads.
    with parallel_config("loky", n_jobs=num_processes, inner_max_num_threads=1):
        jobs = (delayed(run_trial)(trials, *one) for one in left.items())
        yield from Parallel(return_as="generator_unordered", pre_dispatch="n_jobs")(jobs)


def _outcome(study: "optuna.Study", arm: str, params: SweepParams) -> ArmSearch:
    from optuna.trial import TrialState

    found = finished_trials(study, params.num_trials)
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    if not complete:
        rule = f"leave {arm} a trial that is trained to its end"
        raise ParameterError("sweep.parameters", rule, list(params.ranges_of(arm)))
    choose = max if params.maximised else min
    best = choose(complete, key=lambda trial: trial.values[0])
    ranges = params.ranges_of(arm)
    return ArmSearch(
        arm,
        pd.DataFrame([_row(arm, trial, params) for trial in found]),
        decode_values(best.params, ranges),
        best.number,
        _importances(study, complete),
    )


def _row(arm: str, trial: "FrozenTrial", params: SweepParams) -> dict[str, Any]:
    facts = trial.user_attrs
    return {
        "arm": arm,
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **facts["metrics"],
        "epochs": facts["epochs"],
        "seconds": facts["seconds"],
        **decode_values(trial.params, params.ranges_of(arm)),
    }


def _importances(study: "optuna.Study", complete: "list[FrozenTrial]") -> dict[str, float]:
    """By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), over the trials that count."""
    import optuna

    if len({trial.value for trial in complete}) < 2:
        return {}
    counted = optuna.create_study(direction=study.direction)
    counted.add_trials(complete)
    return dict(optuna.importance.get_param_importances(counted))
