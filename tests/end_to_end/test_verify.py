"""`kedro run --pipelines=verify_soft_targets`: passes after a run, and fails on a forged cache."""

import json
from typing import Any

import numpy as np

from kd_pipeline.errors import SoftTargetMismatchError
from kd_pipeline.soft_targets.store import read_soft_targets, write_soft_targets


def test_a_run_s_own_cache_is_verified(finished: Any, run_here: Any) -> None:
    assert run_here(finished, ["verify_soft_targets"]).error is None
    report = json.loads((finished.data / "08_reporting/soft_target_verification.json").read_text())
    assert report["rows"] == 512
    assert report["worst"]["absolute_difference"] <= report["worst"]["tolerance"]


def test_a_well_made_cache_of_other_logits_is_found(finished: Any, run_here: Any) -> None:
    """Its checksums and its provenance are right: only labelling again finds it."""
    folder = finished.data / "05_model_input/soft_targets"
    made = read_soft_targets(folder)
    logits = np.concatenate([part.rows.logits for part in made.parts()]).astype(np.float32)
    manifest = made.manifest
    write_soft_targets(
        folder,
        [[np.roll(logits, 1, axis=0)]],
        made.example_ids,
        provenance=manifest.provenance,
        facts=manifest.facts,
    )
    message = run_here(finished, ["verify_soft_targets"]).refused(SoftTargetMismatchError)
    assert "cache them anew" in message
