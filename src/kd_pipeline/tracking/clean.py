"""`python -m kd_pipeline.tracking.clean`: list what deleted runs have left behind, or remove it."""

import argparse
import shutil
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from kd_pipeline.tracking.fluent import fluent_uri, without_warnings
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store, open_client

_DELETED_RUNS = "SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'deleted'"
_DELETED_EXPERIMENTS = (
    "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'deleted'"
)
# A registered model stays although its run is gone.
_MODELS_WITHOUT_RUN = """
    SELECT model_id, name FROM logged_models WHERE lifecycle_stage = 'deleted' OR (
        source_run_id NOT IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')
        AND 'models:/' || model_id NOT IN (SELECT source FROM model_versions))
"""


def main(arguments: list[str] | None = None) -> int:
    """List what would be removed, and with `--confirm yes` remove it; 1 if there is no database."""
    parser = argparse.ArgumentParser(prog="make clean-runs", description=__doc__)
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="the project's root")
    parser.add_argument("--confirm", default="", help="yes removes what is listed")
    options = parser.parse_args(arguments)
    store = locate_store(options.project, MLflowParams())
    if store.artifacts is None or not _database(store).is_file():
        sys.stderr.write(
            f"{store.public_uri} is no database of this project: nothing is removed. "
            "For a server `mlflow gc` removes deleted runs\n"
        )
        return 1
    left = find_left_over(store)
    for what in left.values():
        sys.stdout.write(f"{what}\n")
    if not left:
        sys.stdout.write("Nothing is left of deleted runs.\n")
    elif options.confirm == "yes":
        remove_left_over(store)
        sys.stdout.write("Removed.\n")
    else:
        sys.stdout.write("Nothing was removed: `make clean-runs CONFIRM=yes` removes these.\n")
    return 0


def find_left_over(store: Store) -> dict[str, str]:
    """What deleted runs have left in a project's own store: a line for each, by its id.

    These are deleted experiments, runs and models, models whose run is gone unless they are
    registered, and folders of artifacts that no run or model of the database has: unless another
    database lies beside it, whose artifacts they may be.
    """
    found: dict[str, str] = {}
    with closing(sqlite3.connect(_database(store))) as connection:
        for kind, query in (
            ("experiment", _DELETED_EXPERIMENTS),
            ("run", _DELETED_RUNS),
            ("model", _MODELS_WITHOUT_RUN),
        ):
            for one, name in connection.execute(query):
                found[str(one)] = f"{kind} {name} ({one})"
        query = "SELECT run_uuid FROM runs UNION SELECT model_id FROM logged_models"
        known = {one for (one,) in connection.execute(query)}
    database = _database(store)
    is_alone = all(path == database for path in database.parent.glob("*.db"))
    for one, folder in _folders(store).items():
        if one in found or (is_alone and one not in known):
            found[one] = f"{found.get(one, f'folder {one}')}: {_size(folder) / 1e6:.1f} MB"
    return found


def remove_left_over(store: Store) -> None:
    """Remove what `find_left_over` lists, for good; what lies in the database by `mlflow gc`."""
    client, left = open_client(store), find_left_over(store)
    with closing(sqlite3.connect(_database(store))) as connection:
        models = [one for one, _ in connection.execute(_MODELS_WITHOUT_RUN)]
        query = "SELECT model_id FROM logged_models WHERE lifecycle_stage = 'active'"
        active = {one for (one,) in connection.execute(query)}
    for one in active.intersection(models):
        client.delete_logged_model(one)
    with without_warnings():
        from mlflow.cli import gc

    arguments = ["--backend-store-uri", store.uri, "--tracking-uri", store.uri]
    with fluent_uri(store.uri):
        gc.main(arguments, standalone_mode=False)
    left |= find_left_over(store)
    for one, folder in _folders(store).items():
        if one in left:
            shutil.rmtree(folder)


def _database(store: Store) -> Path:
    return Path(store.uri.removeprefix("sqlite:///"))


def _folders(store: Store) -> Mapping[str, Path]:
    """The folders of runs and models beside the database, by id."""
    root = Path(url2pathname(urlsplit(store.artifacts or "").path))
    runs = [path for path in root.glob("*") if len(path.name) == 32]
    return {path.name: path for path in (*runs, *root.glob("models/m-*"))}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
