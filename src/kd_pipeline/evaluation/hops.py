"""The comparison of a chain's last hop with its twins: what hop_comparison.json holds."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kd_pipeline.errors import DataError
from kd_pipeline.evaluation.comparison import TEACHER, paired_gains


def compare_hops(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    *,
    last: str,
    twins: Sequence[str],
    num_samples: int,
    confidence_level: float,
    seed: int,
) -> dict[str, Any]:
    """Measure the last hop of a chain against models that differ in what they learnt from alone.

    Args:
        predictions: One row per role, replicate and test example, with `label`, `predicted`, `nll`.
        metrics: One row per role and replicate; none of a teacher that could not be measured.
        last: Role of the last hop.
        twins: Roles with the same architecture, settings and seeds.
        num_samples: Bootstrap samples of a paired difference.
        confidence_level: Of every interval.
        seed: Of the bootstrap.

    Returns:
        `group` and `env` (null, for whoever knows them), `hops` (all roles in order), `last`,
        `gains` (the last hop over each twin, under `over_<twin>`), and `method`.

    Raises:
        DataError: If a role is missing, or replicates or examples differ.
    """
    roles = list(dict.fromkeys(metrics["role"]))
    if missing := [role for role in (last, *twins) if role not in roles]:
        raise DataError(f"`hop_predictions` must hold {', '.join(missing)}, got {roles}")
    gains = paired_gains(
        predictions,
        arm=last,
        references=twins,
        num_samples=num_samples,
        confidence_level=confidence_level,
        seed=seed,
    )
    of_last = predictions[predictions["role"] == last]
    known = metrics.loc[metrics["role"] == TEACHER, "data_known"]
    return {
        "group": None,
        "env": None,
        "hops": roles,
        "last": last,
        "gains": {f"over_{twin}": gain for twin, gain in gains.items()},
        "method": {
            "num_test_examples": int(of_last["example_id"].nunique()),
            "num_replicates": int(of_last["replicate"].nunique()),
            "num_bootstrap_samples": num_samples,
            "confidence_level": confidence_level,
            # Without rows nothing is known of it, though all() of nothing is true.
            "teacher_measured": not known.empty,
            "teacher_data_known": not known.empty and bool(known.all()),
        },
    }
