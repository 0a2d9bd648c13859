"""Object storage: a run fetches from there what it reads, and sends there what it makes."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.errors import SettingsError
from kd_pipeline.hooks.guard_hook import check_writable
from kd_pipeline.hooks.parameters import check_parameters
from kd_pipeline.hooks.shards import process_of_run
from kd_pipeline.object_storage.mirror import FetchesItself, Mirror
from kd_pipeline.object_storage.settings import ObjectStorageParams
from kd_pipeline.object_storage.store import connect

logger = logging.getLogger(__name__)

OBJECT_STORAGE = "object_storage"
FILLED_BY_NODES = "filled_by_nodes"
"""Key in the metadata of a folder's entry: what nodes write into it is sent after each of them."""


class ObjectStorageHook:
    """Mirrors the folders that `object_storage.yml` names; without any it does nothing.

    Nodes and datasets read and write on this disk, as ever. Before the first node, the run's inputs
    are brought to the state of object storage, or sent where it lacks them; an output is sent as
    soon as it is saved, and a run that cannot send it ends there.
    """

    def __init__(self) -> None:
        """All is on this disk before a context is there."""
        self._project = Path.cwd()
        self._params = ObjectStorageParams()
        self._mirrors: list[Mirror] = []
        self._catalog: CatalogProtocol[Any, Any] | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read `object_storage.yml`.

        Raises:
            SettingsError: With a line for each mistake.
        """
        self._project = Path(context.project_path)
        given = context.config_loader[OBJECT_STORAGE]
        check_parameters({OBJECT_STORAGE: given}, {OBJECT_STORAGE: ObjectStorageParams})
        self._params = ObjectStorageParams.model_validate(given)

    # Before the checks of GuardHook, which read what is fetched here.
    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Check the stores, and fetch what the run reads.

        Raises:
            ObjectStorageError: If a store cannot be used, or an input is unfinished there.
            SettingsError: If obstore is not installed, or torchrun has started processes that train
                together.
            DataError: If a folder cannot be written here.
        """
        self._catalog, wait = catalog, self._params.max_wait_seconds
        if self._params.folders and process_of_run(pipeline) is not None:
            raise SettingsError(
                "`object_storage.folders` must be empty where torchrun's processes train together: "
                f"all would write to {', '.join(self._params.folders)}; fetch the data first"
            )
        folders = self._params.folders
        self._mirrors = [
            Mirror(self._project / name, connect(uri, wait)) for name, uri in folders.items()
        ]
        for mirror in self._mirrors:
            mirror.store.check()
        for folder, uri in folders.items():
            logger.info("%s is kept at %s", folder, uri)
        for dataset, path, mirror in self._mirrored(sorted(pipeline.inputs())):
            check_writable(mirror.folder)
            if isinstance(dataset, FetchesItself):
                dataset.mirror = mirror
            elif not mirror.pull(path):
                mirror.push(path)

    # Before ResumeHook, which removes the states that an output was made from.
    @hook_impl(tryfirst=True)
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Send an output."""
        for _, path, mirror in self._mirrored([dataset_name]):
            mirror.push(path)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Send what the node wrote into a folder that it was given."""
        for dataset, path, mirror in self._mirrored(node.inputs):
            if (getattr(dataset, "metadata", None) or {}).get(FILLED_BY_NODES):
                mirror.push(path)

    def _mirrored(self, names: list[str]) -> Iterator[tuple[Any, Path, Mirror]]:
        """The datasets that are kept on object storage, with their paths here."""
        catalog = self._catalog
        if catalog is None or not self._mirrors:
            return
        for name in names:
            dataset = catalog.get(name)
            # Kedro's datasets have no public name for their path.
            if (path := getattr(dataset, "_filepath", None)) is None:
                continue
            within = (Path(path), *Path(path).parents)
            mirrors = [mirror for mirror in self._mirrors if mirror.folder in within]
            if mirrors:
                innermost = max(mirrors, key=lambda mirror: len(mirror.folder.parts))
                yield dataset, Path(path), innermost
