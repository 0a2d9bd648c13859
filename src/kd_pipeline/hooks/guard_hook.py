"""Refuses a run that could not end well before it costs anything."""

import os
import tempfile
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from kd_pipeline.errors import DataError, ParameterError

DATA_FOLDER = "data"


class GuardHook:
    """Checks the data folder and the runner before the first node runs."""

    def __init__(self) -> None:
        """Nothing is known before the context is there."""
        self._project = Path.cwd()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember the project's root."""
        self._project = Path(context.project_path)

    # First of all hooks: a refused run leaves no trace in MLflow.
    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Refuse an unwritable data folder, and runners that change results.

        Raises:
            DataError: If nothing can be written into the data folder.
            ParameterError: If a pipeline that trains is to run in threads or processes.
        """
        check_writable(self._project / DATA_FOLDER)
        if any(name.endswith(".checkpoints") for name in pipeline.all_outputs()):
            check_runner(str(run_params.get("runner")))


def check_writable(folder: Path) -> None:
    """Write a file into the folder and remove it; the folder is made if missing.

    Raises:
        DataError: If that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, file = tempfile.mkstemp(prefix=".writable-", dir=folder)
        os.close(descriptor)
        Path(file).unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"the data folder {folder} must be writable: {reason}") from error


def check_runner(runner: str) -> None:
    """Refuse runners that run nodes side by side.

    Args:
        runner: As Kedro tells hooks: the repr of the runner, or "None" for its default.

    Raises:
        ParameterError: If it is any but the SequentialRunner.
    """
    if runner != "None" and "SequentialRunner" not in runner:
        # Threads share torch's global seed and cores; processes depend on how they are forked.
        rule = "be SequentialRunner: others change the results of training"
        raise ParameterError("runner", rule, runner.removeprefix("<").split(" object")[0])
