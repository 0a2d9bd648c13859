"""The summary of soft targets: by hand."""

import numpy as np
import pytest

from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import make_soft_targets
from kd_pipeline.soft_targets.summary import summarise_soft_targets


def test_agreement_confidence_and_entropy_match_values_worked_by_hand() -> None:
    logits = np.array([[[[np.log(3), 0.0], [0.0, 0.0]]]], dtype=np.float32)
    provenance = Provenance(("a", "b"), ("t",), "i", "s", {}, 1)
    made = make_soft_targets(logits, np.array([1, 2]), provenance=provenance)
    row = summarise_soft_targets(made, {1: 1}, temperatures=(1.0,)).iloc[0]
    sure = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert row["entropy_at_1"] == pytest.approx((sure + np.log(2)) / 2, abs=1e-3)
    assert row["mean_confidence"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-3)
    assert row["agreement_with_labels"] == 0.0  # Only example 1 has a label, and it is class 1.
    assert (row["rows"], row["examples"], row["fingerprint"]) == (2, 2, "t")
