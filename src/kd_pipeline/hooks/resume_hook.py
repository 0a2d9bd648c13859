"""Removes the states of earlier trainings once the checkpoints of new ones are on disk."""

import time
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.hooks.shards import is_follower

CHECKPOINTS = ".checkpoints"
STATES = ".training_states"


class ResumeHook:
    """Clears a namespace's training states after its checkpoints are saved, and not before.

    Not the node: a kill between its end and the saving of its outputs would lose trainings that
    were over. Those that the node has trained or read stay: a run with further replicates goes on
    from them.
    """

    def __init__(self) -> None:
        """There is no catalog before a pipeline runs."""
        self._catalog: CatalogProtocol[Any, Any] | None = None
        self._started_at = 0.0

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Keep the catalog, which has the states; of several processes the first removes them."""
        self._catalog = None if is_follower(pipeline) else catalog

    @hook_impl
    def before_node_run(self) -> None:
        """Note the time; clocks of file systems lag behind by milliseconds."""
        self._started_at = time.time() - 1.0

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Remove states that these checkpoints did not come from."""
        states = dataset_name.removesuffix(CHECKPOINTS) + STATES
        if dataset_name.endswith(CHECKPOINTS) and states in node.inputs and self._catalog:
            self._catalog.load(states).keep_used(self._started_at)
