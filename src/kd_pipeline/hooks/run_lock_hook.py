"""One run at a time in a project: two would mix their artefacts and report them as one."""

import json
import os
import socket
from collections.abc import Generator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from kd_pipeline.errors import DataError

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
    def before_pipeline_run(self, pipeline: Pipeline) -> Generator[None, object, object]:
        """Refuse a run beside another one, unless it does not matter to either.

        Raises:
            DataError: Naming the process that runs, its host and its start.
        """
        self._release()
        if not all(BESIDE_OTHERS in node.tags for node in pipeline.nodes):
            self._lock = take_lock(self._file)
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

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def take_lock(file: Path) -> "FileLock | None":
    """Lock a file and write into it who holds it; None where no file can be written.

    Raises:
        DataError: If another process, or another run in this one, holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"another run writes to {file.parent}{_holder(file)}: wait for it or stop it"
        ) from error
    except OSError:
        return None  # GuardHook refuses a folder that cannot be written.
    start = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": start}
    file.write_text(json.dumps(holder), encoding="utf-8")
    return lock


def _holder(file: Path) -> str:
    # It may not have been written yet.
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return f" (process {found['pid']} on {found['host']}, since {found['start']})"
    return ""
