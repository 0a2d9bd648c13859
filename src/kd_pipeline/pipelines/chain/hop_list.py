"""Which hops there are: the list in the parameters, for whoever wires pipelines.

Kedro's pipelines are wired before a node sees any parameter. The configuration of a session, with
its `--env` and `--params`, is known earlier still: it says which hops to wire. Without a session,
as in `kedro registry list`, the list is that of `conf/base`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kedro.framework import project
from kedro.utils import find_kedro_project
from pydantic import ValidationError

from kd_pipeline.errors import ParameterError
from kd_pipeline.training.block_settings import ChainParams

BLOCK = "chain"
BASE_FILE = Path("conf", "base", "parameters_chain.yml")

_session: Mapping[str, Any] | None = None


def follow(configuration: Mapping[str, Any] | None) -> None:
    """Take the list from this session's configuration from now on; None goes back to base.

    Args:
        configuration: A config loader, which is asked for `parameters` when pipelines are wired.
    """
    global _session  # noqa: PLW0603 - Kedro's own pipelines are global, and are wired from this
    _session = configuration
    if project.PACKAGE_NAME is not None:
        # Pipelines that an earlier session of this process has wired are not this one's.
        project.pipelines.configure(f"{project.PACKAGE_NAME}.pipeline_registry")


def hop_names() -> tuple[str, ...]:
    """Names of the hops in their order; none where there is no list.

    Raises:
        ParameterError: If the list is not one of hops.
    """
    if _session is None:
        return _in_base()
    if (block := _session["parameters"].get(BLOCK)) is None:
        return ()
    try:
        return tuple(hop.name for hop in ChainParams.model_validate(block).hops)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in (BLOCK, *first["loc"]))
        raise ParameterError(name, f"be valid ({first['msg']})", first["input"]) from error


def _in_base() -> tuple[str, ...]:
    """From the file as it is written: `${...}` cannot be resolved here, nor is it in a name.

    Raises:
        ParameterError: If what is written is no list of hops with names.
    """
    roots = (find_kedro_project(Path.cwd()), Path(__file__).parents[4])
    files = [root / BASE_FILE for root in roots if root is not None]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return ()
    parameters = yaml.safe_load(file.read_text(encoding="utf-8"))
    if parameters is None:
        return ()
    if not isinstance(parameters, Mapping):
        raise ParameterError(BASE_FILE.as_posix(), "hold blocks of parameters", parameters)
    if (block := parameters.get(BLOCK)) is None:
        return ()
    hops = block.get("hops") if isinstance(block, Mapping) else None
    if not isinstance(hops, list) or not hops:
        raise ParameterError(f"{BLOCK}.hops", "be a list of hops", hops or block)
    return tuple(_name(position, hop) for position, hop in enumerate(hops))


def _name(position: int, hop: Any) -> str:
    name = hop.get("name") if isinstance(hop, Mapping) else None
    if not isinstance(name, str):
        raise ParameterError(f"{BLOCK}.hops.{position}", "be a block with a `name`", hop)
    return name
