"""Refuses a run that could not end well before it costs anything."""

import os
import tempfile
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.hooks.guards import (
    check_caches,
    check_checkpoints,
    check_settings,
    check_trainings,
    exports_models,
    training_nodes,
)
from kd_pipeline.hooks.parameters import check_given, check_parameters, typed_blocks
from kd_pipeline.hooks.sweeps import check_sweep, check_swept_students

DATA_FOLDER = "data"


class GuardHook:
    """Checks the folder, the runner, the parameters and the cache, each as early as possible."""

    def __init__(self) -> None:
        """There is nothing to check before the context is there."""
        self._project = Path.cwd()
        self._training: list[Node] = []
        self._exports = False

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the project's root, and refuse parameters that are no settings.

        Here, because Kedro checks them next and shows what it refuses over many lines.

        Raises:
            SettingsError: With a line for each mistake.
        """
        self._project = Path(context.project_path)
        check_parameters(context.config_loader["parameters"], typed_blocks())

    # Before MLflowHook: a refused run leaves no trace there.
    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self,
        run_params: dict[str, Any],
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
    ) -> None:
        """Refuse, before the first node, what is certain to fail.

        Raises:
            DataError: If nothing can be written into the data folder, or where an output goes.
            SettingsError: If a block of parameters is missing.
            ParameterError: If an arm cannot have what it asks for, or a pipeline that trains is to
                run in threads or processes.
            StaleArtefactError: If the run would use soft targets that do not match it.
            CheckpointError: If it reads models that are not there.
        """
        check_given(pipeline, catalog)
        self._training = training_nodes(pipeline)
        if self._training:
            check_runner(str(run_params.get("runner")))
        check_settings(pipeline, catalog)
        check_sweep(pipeline, catalog)
        self._exports = exports_models(pipeline, catalog)
        check_caches(pipeline, catalog)
        check_checkpoints(pipeline, catalog)
        check_writable(self._project / DATA_FOLDER)
        for folder in sorted(output_folders(pipeline, catalog)):
            check_writable(folder)

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Refuse, before the first training, what any of the trainings would refuse.

        Not earlier: it needs the images, and torch.
        """
        if node in self._training:
            nodes, self._training = self._training, []
            check_trainings(nodes, catalog, exports=self._exports)
            if "params:sweep" in node.inputs:
                check_swept_students(catalog)


def output_folders(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> set[Path]:
    """Where the outputs of a run go: folders that are there, into which or below which they do."""
    datasets = [catalog.get(name) for name in pipeline.all_outputs() if name in catalog]
    paths = [Path(path) for d in datasets if (path := getattr(d, "_filepath", None)) is not None]
    local = [path for path in paths if path.is_absolute()]
    return {next(above for above in path.parents if above.exists()) for path in local}


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
        runner: As Kedro gives it to hooks: the repr of the runner, or "None" for its default.

    Raises:
        ParameterError: If it is any but the SequentialRunner.
    """
    if runner != "None" and "SequentialRunner" not in runner:
        # Threads share torch's global seed and cores; processes depend on how they are forked.
        rule = "be SequentialRunner: others change the results of training"
        raise ParameterError("runner", rule, runner.removeprefix("<").split(" object")[0])
