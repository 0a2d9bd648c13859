"""Past groups of runs side by side: their arms, what differs in settings, and paired differences.

A group is what one `kedro run` compared. As a mapping it has `group`, `env`, `pipeline`, `start`,
`comparison` (as comparison.json), `settings` (by role), `test_fingerprint` and `predictions`; the
last two may be None.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.evaluation.paired import paired_difference
from kd_pipeline.evaluation.roles import BASELINE, measured_roles
from kd_pipeline.evaluation.settings import EvaluationParams

_Json = Mapping[str, Any]


def compare_groups(groups: Sequence[_Json], params: EvaluationParams) -> dict[str, Any]:
    """Compare each two groups, arm by arm, where both read the same test set.

    Returns:
        `groups` (without predictions), `differences` (a later group's arm minus that of an earlier
        one: `later`, `earlier`, `role`, `accuracy` and `nll`), `not_compared` (`later`, `earlier`
        and the `reason`) and `settings` (`setting`, the `roles` for which it differs, and its
        `values`, one per group; None where a group does not have it).
    """
    differences: list[dict[str, Any]] = []
    not_compared = []
    for earlier, later in combinations(groups, 2):
        names = {"later": later["group"], "earlier": earlier["group"]}
        if reason := _why_not(earlier, later):
            not_compared.append({**names, "reason": reason})
        else:
            differences += [{**names, **one} for one in _differences(earlier, later, params)]
    return {
        "groups": [{k: v for k, v in one.items() if k != "predictions"} for one in groups],
        "differences": differences,
        "not_compared": not_compared,
        "settings": differing_settings(groups),
    }


def _why_not(earlier: _Json, later: _Json) -> str | None:
    """Why two groups cannot be compared in pairs; None where they can."""
    for one in (earlier, later):
        if one["predictions"] is None:
            return (
                f"{one['group']} was logged without its predictions, as by "
                "`--from-nodes=compare_arms`"
            )
    fingerprints = (earlier["test_fingerprint"], later["test_fingerprint"])
    if len(set(fingerprints)) > 1:
        return f"their test sets differ: fingerprints {' and '.join(fingerprints)}"
    if not _common_roles(earlier, later):
        return "they have no arm in common"
    return None


def _common_roles(earlier: _Json, later: _Json) -> list[str]:
    """Those of the later group that the earlier one has too, the teacher first."""
    has = set(earlier["predictions"]["role"])
    return [str(role) for role in later["predictions"]["role"].unique() if role in has]


def _differences(earlier: _Json, later: _Json, params: EvaluationParams) -> list[dict[str, Any]]:
    found = []
    for role in _common_roles(earlier, later):
        old, new = (_cells(one["predictions"], role) for one in (earlier, later))
        pairs = {}
        for key in new:
            count = min(len(old[key]), len(new[key]))  # Replicate r of one with r of the other.
            cells = (new[key][:count], old[key][:count])
            pairs[key] = paired_difference(*cells, params, lower_is_better=key == "nll")
        found.append({"role": role, **pairs})
    return found


def _cells(predictions: pd.DataFrame, role: str) -> dict[str, NDArray[np.float64]]:
    """`accuracy` and `nll` of a role, each [num_replicates, num_examples]."""
    rows = predictions[predictions["role"] == role]
    rows = rows.assign(accuracy=rows["predicted"] == rows["label"])
    return {
        key: rows.pivot(index="replicate", columns="example_id", values=key).to_numpy(np.float64)
        for key in ("accuracy", "nll")
    }


def differing_settings(groups: Sequence[_Json]) -> list[dict[str, Any]]:
    """The settings that are not the same in all groups; those of several roles once."""
    found: dict[tuple[str, tuple[str | None, ...]], list[str]] = {}
    for name in ("pipeline", "env"):
        found[name, tuple(one[name] for one in groups)] = []
    roles = dict.fromkeys(role for one in groups for role in one["settings"])
    for role in roles:
        of_role = [one["settings"].get(role) for one in groups]
        if None in of_role:  # The groups' arms differ, which the table of arms shows.
            continue
        for name in dict.fromkeys(name for settings in of_role for name in settings or ()):
            values = tuple((settings or {}).get(name) for settings in of_role)
            found.setdefault((name, values), []).append(role)
    return [
        {"setting": name, "roles": roles, "values": list(values)}
        for (name, values), roles in found.items()
        if len(set(values)) > 1
    ]


def group_table(compared: _Json) -> pd.DataFrame:
    """All numbers as one row per group, arm and metric, and per difference.

    Columns: `group`, `arm`, `metric`, `minus` (the arm or the earlier group that is subtracted,
    if any), `mean`, `std` (over replicates), `ci_low`, `ci_high`, `p_value`, `replicates`.
    """
    rows: list[dict[str, Any]] = []
    for one in compared["groups"]:
        comparison = one["comparison"]
        for arm, measured in measured_roles(comparison).items():
            where = {"group": one["group"], "arm": arm}
            for key in ("accuracy", "nll"):
                spread = measured[key]
                count = {"replicates": len(spread["values"])}
                mean = {"mean": spread["mean"], "std": spread["std"]}
                rows.append({**where, "metric": key, "minus": "", **mean, **count})
            gain = comparison["gains"].get(arm)
            rows += [_row(where, BASELINE, key, gain[key]) for key in ("accuracy", "nll") if gain]
    for one in compared["differences"]:
        where = {"group": one["later"], "arm": one["role"]}
        rows += [_row(where, one["earlier"], key, one[key]) for key in ("accuracy", "nll")]
    columns = ["group", "arm", "metric", "minus", "mean", "std", "ci_low", "ci_high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "replicates"])


def _row(where: _Json, minus: str, key: str, difference: _Json) -> dict[str, Any]:
    low, high = difference["ci95"]
    kept = {name: difference[name] for name in ("mean", "p_value", "replicates")}
    return {**where, "metric": key, "minus": minus, "ci_low": low, "ci_high": high, **kept}
