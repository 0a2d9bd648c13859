"""One run at a time in a project: two would mix their artefacts and report them as one."""

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from kd_pipeline.hooks.shards import lock_of_run
from kd_pipeline.locks import take_lock

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_FILE = Path("data", ".run.lock")
BESIDE_OTHERS = "beside_others"
"""Tag of nodes that neither read nor write what other runs do."""


class RunLockHook:
    """Holds a lock of the operating system from before the first check to the end of a run.

    It ends with its process, however that ends: no file has to be removed by hand. Only `kedro run`
    takes it, once, in the process that it starts.
    """

    def __init__(self) -> None:
        """Nothing is locked before a pipeline runs."""
        self._file = Path.cwd() / LOCK_FILE
        self._lock: FileLock | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the project's root."""
        self._file = Path(context.project_path) / LOCK_FILE

    # A wrapper runs before all other hooks, and after any of them has refused the run.
    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> Generator[None, object, object]:
        """Refuse a run beside another one, unless it does not matter to either.

        Shards of one labelling or of one sweep, and processes of one training, run beside each
        other and beside nothing else.

        Raises:
            DataError: Naming the process that runs, its host and its start.
            ParameterError: If a run of other stages is to be one of several processes.
        """
        self._release()
        if not all(BESIDE_OTHERS in node.tags for node in pipeline.nodes):
            self._take(lock_of_run(pipeline, catalog))
        try:
            return (yield)
        except BaseException:
            self._release()
            raise

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Let others run."""
        self._release()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Let others run."""
        self._release()

    def _take(self, shard: str) -> None:
        busy = f"another run writes to {self._file.parent}"
        with suppress(OSError):  # GuardHook refuses a folder that cannot be written.
            self._lock = take_lock(self._file, busy=busy, shard=shard)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None
