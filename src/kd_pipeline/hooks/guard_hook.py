"""Refuses a run that could not end well before it costs anything."""

import os
import tempfile
from collections.abc import Mapping
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

DATA_FOLDER = "data"


class GuardHook:
    """Checks the folder, the runner, the parameters and the cache, each as early as possible."""

    def __init__(self) -> None:
        """There is nothing to check before the context is there."""
        self._project = Path.cwd()
        self._context: KedroContext | None = None
        self._training: list[Node] = []
        self._exports = False

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the project's root and its parameters."""
        self._project, self._context = Path(context.project_path), context

    # First of all hooks: a refused run leaves no trace in MLflow.
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
            ParameterError: If a block of parameters is unknown, an arm cannot have what it asks
                for, or a pipeline that trains is to run in threads or processes.
            StaleArtefactError: If the run would use soft targets that do not match it.
            CheckpointError: If it reads models that are not there.
        """
        if self._context is not None:
            check_blocks(self._context.params, known_blocks())
        self._training = training_nodes(pipeline)
        if self._training:
            check_runner(str(run_params.get("runner")))
        check_settings(pipeline, catalog)
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


def known_blocks() -> set[str]:
    """Blocks of parameters that some stage asks for."""
    from kedro.framework.project import pipelines

    asked = {name for pipeline in pipelines.values() for name in pipeline.all_inputs()}
    parameters = {name.removeprefix("params:") for name in asked if name.startswith("params:")}
    return {name.partition(".")[0] for name in parameters}


def check_blocks(parameters: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a block that no stage asks for: Kedro would ignore it, and a typing error with it.

    Raises:
        ParameterError: Naming the block.
    """
    for name in parameters:
        if known and name not in known:
            raise ParameterError("parameters", "be blocks that a stage reads", name, legal=known)


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
