"""Which examples are shown: the extremes, always the same, never one twice."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kd_pipeline.soft_targets import blocks
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.gallery import (
    CONFIDENT,
    DISAGREEING,
    UNCERTAIN,
    Pick,
    pick_examples,
)
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

NO_LABELS = pd.Series([], index=pd.Index([], dtype=np.int64), dtype=np.int64)


def store(
    folder: Path,
    logits: NDArray[np.floating],
    *,
    encoding: Encoding | None = None,
    rows_per_part: int = 65_536,
) -> SoftTargets:
    """Logits [views, examples, classes] of one member; ids from 10 on."""
    views, count, classes = logits.shape
    names = tuple(f"class {index}" for index in range(classes))
    return write_soft_targets(
        folder / "store",
        [list(logits.astype(np.float32))],
        np.arange(10, 10 + count),
        provenance=Provenance(names, ("t",), "i", "s", {}, views),
        encoding=encoding or Encoding(),
        rows_per_part=rows_per_part,
    )


def of_kind(picks: list[Pick], kind: str) -> list[tuple[int, int]]:
    return [(pick.example_id, pick.view) for pick in picks if pick.kind == kind]


def test_the_extremes_of_each_kind_are_picked(tmp_path: Path) -> None:
    logits = np.array(
        [
            [[9, 0, 0], [8, 0, 0], [0, 7, 0], [0, 0.1, 0], [0, 0, 6]],
            [[9, 1, 0], [8, 0, 0], [0, 7, 1], [0, 0.0, 0], [0, 0, 6]],
        ]
    )
    labels = pd.Series([0, 0, 1, 1, 0], index=range(10, 15))  # 14 is taken for class 2.
    picks = pick_examples(store(tmp_path, logits), labels, num_each=2)
    assert of_kind(picks, CONFIDENT) == [(10, 0), (12, 0)]  # One per class: not 11.
    # By the view that is least sure; then 14 or whichever comes next, never 13 again.
    assert of_kind(picks, UNCERTAIN)[0] == (13, 1)
    assert len({example for example, _ in of_kind(picks, UNCERTAIN)}) == 2
    # In its second view 13 is a tie that falls to class 0.
    assert of_kind(picks, DISAGREEING) == [(14, 0), (13, 1)]
    first = picks[0]
    assert (first.label, first.class_ids[0]) == (0, 0)
    assert list(first.probabilities) == [1.0, 4.0]
    powers = np.exp(np.array([9, 0, 0]) / 4)
    np.testing.assert_allclose(first.probabilities[4.0], powers / powers.sum(), rtol=1e-3)


def test_parts_and_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (2, 90, 6))
    labels = pd.Series(np.arange(50) % 6, index=np.arange(10, 60))
    whole = pick_examples(store(tmp_path / "whole", logits), labels)
    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 7)
    split = pick_examples(store(tmp_path / "split", logits, rows_per_part=16), labels)
    for kind in (CONFIDENT, UNCERTAIN, DISAGREEING):
        assert of_kind(split, kind) == of_kind(whole, kind)
        assert len(of_kind(whole, kind)) == 4


def test_without_labels_nothing_disagrees(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, 20, 6))
    picks = pick_examples(store(tmp_path, logits), NO_LABELS)
    assert {pick.kind for pick in picks} == {CONFIDENT, UNCERTAIN}
    assert {pick.label for pick in picks} == {-1}
    assert all(len(pick.class_ids) == 5 for pick in picks)


def test_a_top_k_cache_shows_its_classes_at_its_temperature(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, 20, 9))
    made = store(tmp_path, logits, encoding=Encoding(top_k=3, temperature=2.0))
    for pick in pick_examples(made, NO_LABELS):
        row = logits[0, pick.example_id - 10]
        assert pick.class_ids.tolist() == np.argsort(-row)[:3].tolist()
        powers = np.exp(row / 2)
        expected = np.sort(powers / powers.sum())[::-1][:3]
        assert list(pick.probabilities) == [2.0]
        np.testing.assert_allclose(pick.probabilities[2.0], expected, rtol=1e-2)
