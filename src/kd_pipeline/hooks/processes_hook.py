"""A training in several processes, which torchrun starts: joined before anything is read."""

import hashlib
import json
import logging
from importlib.metadata import version
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, MemoryDataset
from kedro.pipeline import Pipeline

from kd_pipeline.hooks.shards import process_of_run
from kd_pipeline.provenance import package_digest

_PARAMETERS = "params:"


class ProcessesHook:
    """Joins the processes of one training, and keeps all but the first from writing."""

    def __init__(self) -> None:
        """This process is alone."""
        self._has_joined = False

    # Before the checks, some of which read whole stores.
    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Meet the others, if there are any; outputs stay in memory in all but the first.

        Raises:
            ProcessesError: If one does not come, or has other code or other settings.
        """
        process = process_of_run(pipeline)
        if process is None:
            return
        from kd_pipeline.training.distributed import join

        if process.index > 0:
            # What is logged is the same in all, up to the end of the process; errors are not.
            logging.disable(logging.WARNING)
            for name in pipeline.all_outputs():
                catalog[name] = MemoryDataset(copy_mode="assign")
        facts = {"torch": version("torch"), **code_and_settings(pipeline, catalog)}
        join(process.index, process.count, facts)
        self._has_joined = True

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Part from the others. After an error the end of the process does so."""
        if not self._has_joined:
            return
        from kd_pipeline.training.distributed import leave

        leave()
        self._has_joined = False


def code_and_settings(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> dict[str, str]:
    """Digests of this package's source and of each block of parameters that a run reads."""
    blocks = sorted(name for name in pipeline.inputs() if name.startswith(_PARAMETERS))
    settings = {
        name.removeprefix(_PARAMETERS): hashlib.blake2b(
            json.dumps(catalog.load(name), sort_keys=True, default=str).encode(), digest_size=8
        ).hexdigest()
        for name in blocks
    }
    return {"code": package_digest(), **settings}
