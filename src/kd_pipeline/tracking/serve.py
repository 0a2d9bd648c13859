"""`python -m kd_pipeline.tracking.serve`: the champion on MLflow's scoring server, on loopback."""

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kd_pipeline.errors import TrackingStoreError
from kd_pipeline.tracking.fluent import fluent_uri, without_warnings
from kd_pipeline.tracking.registry import CHAMPION, MODEL_NAME, find_champion
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import Store, locate_store, redact

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

MAX_BODY_BYTES = 32_000_000
"""Of one request: enough for the largest image in base64."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; 1 if there is no champion or its store is away."""
    parser = argparse.ArgumentParser(prog="python -m kd_pipeline.tracking.serve")
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="the project's root")
    parser.add_argument("--name", default=MODEL_NAME, help="the registered model")
    parser.add_argument("--port", type=int, default=5001, help="on 127.0.0.1")
    options = parser.parse_args(arguments)
    store = locate_store(options.project, MLflowParams())
    from mlflow.exceptions import MlflowException

    try:
        champion = find_champion(store, options.name)
    except (MlflowException, TrackingStoreError) as error:
        sys.stderr.write(f"MLflow at {store.public_uri} cannot be reached: {redact(str(error))}\n")
        return 1
    if champion is None:
        sys.stderr.write(
            f"`{options.name}` has no version with the alias `{CHAMPION}` in MLflow at "
            f"{store.public_uri}: `kedro run --pipelines=model_export` registers one where "
            "`model_export.registered_name` is student; MLFLOW_TRACKING_URI names another store\n"
        )
        return 1
    import uvicorn

    sys.stderr.write(f"Version {champion.version} of `{options.name}`:\n")
    uvicorn.run(make_app(store, options.name), host="127.0.0.1", port=options.port)
    return 0


def make_app(store: Store, name: str = MODEL_NAME) -> "FastAPI":
    """MLflow's scoring server for the champion, with a bound on the size of requests.

    MLflow has none: it answers a body that is no JSON with all of it, several times as long.
    """
    with without_warnings():
        from mlflow import pyfunc
        from mlflow.pyfunc import scoring_server

    with fluent_uri(store.uri):
        model = pyfunc.load_model(f"models:/{name}@{CHAMPION}")
    app: FastAPI = scoring_server.init(model)
    app.middleware("http")(_bound_body)
    return app


async def _bound_body(
    request: "Request", answer: "Callable[[Request], Awaitable[Response]]"
) -> "Response":
    from fastapi.responses import JSONResponse

    length = request.headers.get("content-length", "0" if request.method == "GET" else "unknown")
    if length.isdecimal() and int(length) <= MAX_BODY_BYTES:
        return await answer(request)
    async for _ in request.stream():
        pass  # Many clients read no answer before they have sent everything.
    message = f"a request must have at most {MAX_BODY_BYTES} bytes, got {length}"
    return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, 413)


if __name__ == "__main__":
    sys.exit(main())
