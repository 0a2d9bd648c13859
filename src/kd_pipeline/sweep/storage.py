"""Where trials are kept: Optuna's journal, a file, or a PostgreSQL server."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kd_pipeline.errors import DataError, ParameterError, SettingsError

if TYPE_CHECKING:  # An extra, which other pipelines do not need.
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.storages.journal import JournalFileOpenLock

JOURNAL = "trials.log"
SERVER = "OPTUNA_STORAGE"
"""Optuna's own variable: URL of a server that keeps the trials in place of the journal. It is no
setting, because it may hold a password."""
_CONNECT_SECONDS = 10

logger = logging.getLogger(__name__)


def check_installed() -> None:
    """Refuse a sweep without what it needs.

    Raises:
        SettingsError: With how to install Optuna, or the driver of PostgreSQL.
        ParameterError: If the server is another one than PostgreSQL.
    """
    if importlib.util.find_spec("optuna") is None:
        raise SettingsError("a sweep needs Optuna: pip install 'kd_pipeline[sweep]'")
    if not (url := os.environ.get(SERVER)):
        return
    if not url.startswith("postgresql+psycopg://"):
        raise ParameterError(SERVER, "begin with postgresql+psycopg://", url.partition("//")[0])
    if importlib.util.find_spec("psycopg") is None:
        raise SettingsError(f"`{SERVER}` needs a driver: pip install 'kd_pipeline[postgresql]'")


def open_storage(folder: Path) -> "BaseStorage":
    """Open the server of `OPTUNA_STORAGE`, else the journal in a folder, which is made if missing.

    A damaged journal raises a `ValueError` here or when it is read.
    """
    import optuna

    # It would log every trial.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url := os.environ.get(SERVER):
        return _server(url)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / JOURNAL
    backend = optuna.storages.journal.JournalFileBackend(str(file), _journal_lock(file))
    return optuna.storages.JournalStorage(backend)


def _server(url: str) -> "RDBStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError
    from sqlalchemy.pool import NullPool

    # A connection for each use: none is held between trials, since a server allows a hundred, and
    # a server that was restarted in the meantime is connected to again.
    options = {"poolclass": NullPool, "connect_args": {"connect_timeout": _CONNECT_SECONDS}}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except (IntegrityError, ProgrammingError):  # Another process is making the tables too.
        return RDBStorage(url, engine_kwargs=options)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise what the storage fails with as an error of this project.

    Raises:
        DataError: Naming the server, without its password, or the trial.
    """
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        server = make_url(os.environ.get(SERVER, "")).render_as_string(hide_password=True)
        reason = next(iter(str(error.__cause__ or error).splitlines()), "")
        raise DataError(f"the trials at {server} cannot be reached: {reason}") from error
    except UpdateFinishedTrialError as error:
        message = "another process has taken up a trial of this one: run a shard once at a time"
        raise DataError(message) from error


def mend_journal(folder: Path) -> None:
    """Cut off a last line that a kill or a full disk has left unfinished.

    The next line would be written behind it, and neither could be read.
    """
    file = folder / JOURNAL
    if not file.is_file():
        return
    lock = _journal_lock(file)
    lock.acquire()  # Another process may be writing a line.
    try:
        content = file.read_bytes()
        if content and not content.endswith(b"\n"):
            logger.warning("%s ends in half a line, which is removed", file)
            file.write_bytes(content[: content.rfind(b"\n") + 1])
    finally:
        lock.release()


def _journal_lock(file: Path) -> "JournalFileOpenLock":
    from optuna.storages.journal import JournalFileOpenLock

    # Optuna's default lock is a symbolic link, which Windows allows few users to make.
    return JournalFileOpenLock(str(file))
