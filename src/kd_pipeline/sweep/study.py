"""Optuna's studies, one per arm, all in one journal file."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kd_pipeline.errors import DataError, SettingsError
from kd_pipeline.randomness import derive_seed
from kd_pipeline.sweep.settings import SweepParams

if TYPE_CHECKING:  # An extra, which other pipelines do not need.
    import optuna
    from optuna.trial import FrozenTrial

JOURNAL = "trials.log"

logger = logging.getLogger(__name__)


def check_installed() -> None:
    """Refuse a sweep without Optuna.

    Raises:
        SettingsError: With how to install it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise SettingsError("a sweep needs Optuna: pip install 'kd_pipeline[sweep]'")


def open_study(folder: Path, name: str, params: SweepParams, index: int = 0) -> "optuna.Study":
    """Open or begin a study.

    Args:
        folder: Of the journal.
        name: Of the study.
        params: What the sampler and the pruner are made from.
        index: Of the trial that is asked for next. Its random draws depend on it and on nothing
            that happened in this process, so that a sweep that goes on draws what it would have.

    Raises:
        DataError: If the journal is damaged.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # It would log every trial.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / JOURNAL
    # Optuna's default lock is a symbolic link, which Windows allows few users to make.
    journal = JournalFileBackend(str(file), JournalFileOpenLock(str(file)))
    try:
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name=name,
            direction="maximize" if params.maximised else "minimize",
            sampler=_sampler(params, derive_seed(params.seed, "sweep", index) % 2**32),
            pruner=_pruner(params),
            load_if_exists=True,
        )
    except ValueError as error:  # Of JSON too.
        raise DataError(f"{file} is damaged ({error}): delete it to begin anew") from error


def mend_journal(folder: Path) -> None:
    """Cut off a last line that a kill or a full disk has left unfinished.

    The next line would be written behind it, and neither could be read.
    """
    file = folder / JOURNAL
    content = file.read_bytes() if file.is_file() else b""
    if content and not content.endswith(b"\n"):
        logger.warning("%s ends in half a line, which is removed", file)
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def finished_trials(study: "optuna.Study", num_trials: int) -> "list[FrozenTrial]":
    """The first complete or pruned trials: more than asked for, of a longer sweep, do not count."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))[:num_trials]


def retry_killed(study: "optuna.Study") -> None:
    """Mark trials that a kill has left running as failed, and queue their values once more."""
    from optuna.trial import TrialState

    for left in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
        study.enqueue_trial(left.params)
        logger.info("trial %d of %s was killed and is run again", left.number, study.study_name)


def _sampler(params: SweepParams, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if params.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=params.num_startup_trials, seed=seed, multivariate=True
    )


def _pruner(params: SweepParams) -> "optuna.pruners.BasePruner":
    import optuna

    if params.pruner.name == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=params.num_startup_trials, n_warmup_steps=params.pruner.min_epochs
        )
    if params.pruner.name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=params.pruner.min_epochs)
    return optuna.pruners.NopPruner()
