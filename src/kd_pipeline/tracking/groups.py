"""Past groups of runs, one of each `kedro run` that compared students, read back from MLflow."""

import difflib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.errors import DataError, ParameterError, TrackingStoreError
from kd_pipeline.tracking.fluent import within
from kd_pipeline.tracking.settings import CompareGroupsParams
from kd_pipeline.tracking.store import Store, open_client, reason_of

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

PREDICTIONS = "predictions.parquet"
TEST_FINGERPRINT = "kd.test_fingerprint"

_COLUMNS = ["role", "replicate", "example_id", "label", "predicted", "nll"]
_COMPARED_RUNS = "kd.compared_runs"
_MOST_GROUPS = 5000


def pack_predictions(predictions: "pd.DataFrame") -> bytes:
    """What a later comparison needs of a run's predictions, as a parquet file.

    Accuracy and NLL are compared in pairs of examples; NLL is kept in float32.
    """
    kinds = {"role": "category", "replicate": "int16", "label": "int32", "predicted": "int32"}
    table = predictions[_COLUMNS].astype({**kinds, "nll": "float32"})
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def read_groups(store: Store, params: CompareGroupsParams) -> list[dict[str, Any]]:
    """Read groups from MLflow: those that are named, or the newest, the oldest of them first.

    Returns:
        For each its `group`, `env`, `pipeline` and `start`, its `comparison` (the content of
        comparison.json), `settings` (by role, those of its first replicate), `test_fingerprint`
        and `predictions`; the last two are None for groups that logged no predictions.

    Raises:
        DataError: If there are not two groups.
        ParameterError: If a group is not there, or more are asked for than there are.
        TrackingStoreError: If MLflow cannot be reached, or takes more than
            `store.max_wait_seconds`.
    """
    from mlflow.exceptions import MlflowException

    def read() -> list[dict[str, Any]]:
        client = open_client(store)
        chosen = _choose(_compared(client, store), params, store)
        return [_read(client, run) for run in chosen]

    try:
        return within(store.max_wait_seconds, read)
    except (MlflowException, OSError) as error:
        what = f"MLflow at {store.public_uri} cannot be read"
        raise TrackingStoreError(f"{what}: {reason_of(error)}") from error


def _compared(client: "MlflowClient", store: Store) -> dict[str, "Run"]:
    """The comparison of each group that has ended, the newest first."""
    experiment = client.get_experiment_by_name(store.experiment)
    if experiment is None:
        return {}
    runs = client.search_runs(
        [experiment.experiment_id],
        "tags.kd.role = 'comparison' and attributes.status = 'FINISHED'",
        max_results=_MOST_GROUPS,
        order_by=["attributes.start_time DESC"],
    )
    return {run.data.tags["kd.group"]: run for run in runs if _COMPARED_RUNS in run.data.tags}


def _choose(
    found: Mapping[str, "Run"], params: CompareGroupsParams, store: Store
) -> Sequence["Run"]:
    where = f"in experiment `{store.experiment}` at {store.public_uri}"
    if len(found) < 2:
        raise DataError(
            f"two groups or more that compared students must be {where}, got {len(found)}; "
            "`kedro run --pipelines=distill` adds one"
        )
    if isinstance(params.groups, int):
        if params.groups > len(found):
            rule = f"be at most {len(found)}, the number of groups that compared students {where}"
            raise ParameterError("compare_groups.groups", rule, params.groups)
        return list(found.values())[: params.groups][::-1]
    for group in params.groups:
        if group not in found:
            nearest = difflib.get_close_matches(group, found, n=3, cutoff=0.0)
            rule = f"name groups that compared students {where}, such as {', '.join(nearest)}"
            raise ParameterError("compare_groups.groups", rule, group)
    return [found[group] for group in params.groups]


def _read(client: "MlflowClient", comparison: "Run") -> dict[str, Any]:
    import pandas as pd

    tags, run_id = comparison.data.tags, comparison.info.run_id
    files = {file.path for file in client.list_artifacts(run_id)}
    start = datetime.fromtimestamp(comparison.info.start_time / 1000, tz=UTC)
    predictions = None
    if PREDICTIONS in files and TEST_FINGERPRINT in tags:
        table = pd.read_parquet(io.BytesIO(_download(client, run_id, PREDICTIONS)))
        predictions = table.astype({"role": str})
    return {
        "group": tags["kd.group"],
        "env": tags.get("kd.env", ""),
        "pipeline": tags.get("kd.pipeline", ""),
        "start": f"{start:%Y-%m-%d %H:%M} UTC",
        "comparison": json.loads(_download(client, run_id, "comparison.json")),
        "settings": _settings(client, comparison),
        "test_fingerprint": tags.get(TEST_FINGERPRINT),
        "predictions": predictions,
    }


def _download(client: "MlflowClient", run_id: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def _settings(client: "MlflowClient", comparison: "Run") -> dict[str, dict[str, str]]:
    """The parameters of each role's first replicate, and of the evaluation."""
    ids = ", ".join(f"'{run_id}'" for run_id in comparison.data.tags[_COMPARED_RUNS].split(","))
    first = f"attributes.run_id IN ({ids}) and tags.kd.replicate = '0'"
    runs = client.search_runs([comparison.info.experiment_id], first)
    settings = {run.data.tags["kd.role"]: dict(run.data.params) for run in runs}
    return {**settings, "evaluation": dict(comparison.data.params)}
