"""How soft the soft targets are, and how right."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kd_pipeline.soft_targets.store import SoftTargets

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)


def summarise_soft_targets(
    soft_targets: SoftTargets,
    labels: Mapping[int, int],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
) -> pd.DataFrame:
    """Describe each member's soft targets.

    Args:
        soft_targets: The cache.
        labels: Class index of each example whose label is known, whether or not a student may
            use it: this table is for looking at, and nothing trains on it.
        temperatures: At which the mean entropy is given.

    Returns:
        One row per member: teacher, fingerprint, rows, bytes per row on the label agreement,
        mean top-1 confidence and `entropy_at_<temperature>` in nats.
    """
    fingerprints = soft_targets.manifest.provenance.teacher_fingerprints
    rows = []
    for member, fingerprint in enumerate(fingerprints):
        mine = soft_targets.teachers == member
        logits = soft_targets.logits[mine].astype(np.float32)
        known = [labels.get(int(e), -1) for e in soft_targets.example_ids[mine]]
        truth = np.array(known, dtype=np.int64)
        right = (logits.argmax(axis=1) == truth)[truth >= 0]
        row: dict[str, object] = {
            "teacher": member,
            "fingerprint": fingerprint,
            "rows": int(mine.sum()),
            "examples": len(np.unique(soft_targets.example_ids[mine])),
            "agreement_with_labels": float(right.mean()) if len(right) else None,
            "mean_confidence": float(_softmax(logits, 1.0).max(axis=1).mean()),
        }
        for temperature in temperatures:
            probabilities = _softmax(logits, temperature)
            entropy = -(probabilities * np.log(probabilities.clip(min=1e-30))).sum(axis=1)
            row[f"entropy_at_{temperature:g}"] = float(entropy.mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    exponentials = np.exp(scaled)
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
