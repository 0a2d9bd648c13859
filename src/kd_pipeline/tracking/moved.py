"""The project's own database after its folder was moved or copied: MLflow keeps absolute paths."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ARTIFACTS = "mlartifacts"
"""The folder of artifacts beside the database."""

_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def follow_project(database: Path, artifacts: str) -> None:
    """Let all locations in another project's `mlartifacts` be those beside the database.

    MLflow offers relative locations only through a server. A location stays where its folder is
    still there and none lies beside the database: then the database alone was copied.

    Args:
        database: Of SQLite; nothing is done where there is none.
        artifacts: URI of the folder of artifacts beside it.
    """
    if not database.is_file():
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        for (old,) in connection.execute(query, (f"file:%/{ARTIFACTS}",)).fetchall():
            if old != artifacts and (_exists(artifacts) or not _exists(old)):
                for table, column in _LOCATIONS:
                    if table in tables:
                        _replace(connection, table, column, old, artifacts)


def _exists(uri: str) -> bool:
    return Path(url2pathname(urlsplit(uri).path)).is_dir()


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    connection.execute(
        f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
        f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
        {"old": old, "new": new},
    )
