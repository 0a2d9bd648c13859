"""What a sweep leaves: the table of all trials, the best values, and a preset that has them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kd_pipeline.atomic import replace_folder
from kd_pipeline.config import AS_IN_YAML, Params
from kd_pipeline.errors import DataError
from kd_pipeline.sweep.search import ArmSearch
from kd_pipeline.sweep.settings import SHARED, SweepParams
from kd_pipeline.sweep.space import apply_values
from kd_pipeline.sweep.trials import MEASURED

HEAD = "# Written by `kedro run --pipelines=sweep`"
"""First line of every preset that a sweep may overwrite."""

logger = logging.getLogger(__name__)


def trial_table(searches: Sequence[ArmSearch]) -> pd.DataFrame:
    """All trials of all arms; a parameter that an arm does not search is empty."""
    return pd.concat([search.trials for search in searches], ignore_index=True)


def preset_values(searches: Sequence[ArmSearch], params: SweepParams) -> dict[str, Any]:
    """The values of the preset: shared ones of one arm, so that arms stay comparable."""
    return {
        name: value
        for search in searches
        for name, value in search.best.items()
        if search.arm == params.shared_source or not name.startswith(f"{SHARED}.")
    }


def best_values_table(searches: Sequence[ArmSearch], params: SweepParams) -> pd.DataFrame:
    """A row per arm and parameter: the arm's own best value, and the one in the preset."""
    chosen, rows = preset_values(searches, params), []
    for search in searches:
        states = search.trials["state"]
        best = search.trials[search.trials["trial"] == search.best_trial].iloc[0]
        head = {
            "arm": search.arm,
            "trials": len(states),
            "pruned": int((states == "pruned").sum()),
            "best_trial": search.best_trial,
            **{name: best[name] for name in MEASURED},
        }
        for name, value in search.best.items():
            rows.append({**head, "parameter": name, "best": value, "in_preset": chosen[name]})
    return pd.DataFrame(rows)


def check_preset(conf: Path, name: str) -> None:
    """Refuse the name of a folder that no sweep has written.

    Raises:
        DataError: Naming it.
    """
    folder = conf / name
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    for file in files:
        if not file.read_text(encoding="utf-8", errors="replace").startswith(HEAD):
            raise DataError(
                f"`sweep.preset` must be a folder of `conf` that is new or was written by a sweep, "
                f"got {name}, which has {file.relative_to(folder)}"
            )


def write_preset(
    conf: Path,
    parameters: Mapping[str, Any],
    searches: Sequence[ArmSearch],
    params: SweepParams,
) -> str:
    """Write `parameters_<preset>.yml`: all blocks of this run, with the best values in their place.

    Args:
        conf: The folder of presets.
        parameters: All blocks of this run: a preset names one of its own only instead of another.
        searches: Of the arms.
        params: The block `sweep`.

    Returns:
        The file's text.

    Raises:
        DataError: If no sweep has written the folder that is there.
    """
    check_preset(conf, params.preset)
    text = preset_text(parameters, searches, params)
    with replace_folder(conf / params.preset) as folder:
        (folder / f"parameters_{params.preset}.yml").write_text(text, encoding="utf-8")
    logger.info("Run it: kedro run --pipelines=distill --env=%s", params.preset)
    return text


def preset_text(
    parameters: Mapping[str, Any], searches: Sequence[ArmSearch], params: SweepParams
) -> str:
    """The blocks with the best values, those that were searched first."""
    blocks = {name: _plain(block) for name, block in parameters.items() if name != "sweep"}
    chosen = preset_values(searches, params)
    for search in searches:
        own = {name: chosen[name] for name in search.best if name.startswith(f"{search.arm}.")}
        blocks = apply_values(blocks, search.arm, own)
    shared = {name: value for name, value in chosen.items() if name.startswith(f"{SHARED}.")}
    blocks = apply_values(blocks, params.shared_source, shared)
    tuned = [SHARED, *(search.arm for search in searches)]
    order = [*tuned, *(name for name in blocks if name not in tuned)]
    ordered = {name: blocks[name] for name in order}
    return "\n".join([*_head(searches, params), yaml.safe_dump(ordered, sort_keys=False)])


def _plain(block: Any) -> Any:
    """A block as in YAML: Kedro hands on those that it has validated as their settings."""
    if isinstance(block, Params):
        return block.model_dump(
            mode="json", exclude_unset=True, exclude_computed_fields=True, context=AS_IN_YAML
        )
    return block


def _head(searches: Sequence[ArmSearch], params: SweepParams) -> list[str]:
    """Comments: what was chosen, and what each arm would have by itself."""
    chosen = preset_values(searches, params)
    lines = [
        f"{HEAD}; the next one overwrites it.",
        f"# {params.num_trials} trials of each arm, by {params.metric}, the mean of "
        f"{params.num_replicates} student(s). All arms share `student`:",
        f"# its values are the best of {params.shared_source} (`sweep.shared_from`).",
    ]
    for search in searches:
        best = search.trials[search.trials["trial"] == search.best_trial].iloc[0]
        lines.append(f"# {search.arm}: {params.metric} {best[params.metric]:.4f} with its own best")
        for name, value in search.best.items():
            note = "" if chosen[name] == value else f" (here {chosen[name]})"
            lines.append(f"#   {name}: {value}{note}")
    return lines
