"""The summary of soft targets: by hand, by law, and part by part."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kd_pipeline.soft_targets import blocks
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.soft_targets.summary import (
    TEMPERATURES,
    known_labels,
    summarise,
    uniform_entropy,
)


def store(
    folder: Path,
    logits: NDArray[np.floating],
    *,
    encoding: Encoding | None = None,
    rows_per_part: int = 65_536,
) -> SoftTargets:
    """Logits [members, views, examples, classes] of examples 10, 11, 12, ..."""
    members, views, count, classes = logits.shape
    return write_soft_targets(
        folder / "store",
        list(logits.astype(np.float32)),
        np.arange(10, 10 + count),
        provenance=Provenance(
            tuple(f"class {c}" for c in range(classes)),
            tuple(f"member {m}" for m in range(members)),
            "i", "s", {}, views,
        ),
        encoding=encoding or Encoding(),
        rows_per_part=rows_per_part,
    )  # fmt: skip


def random_logits(*shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, shape).astype(np.float16).astype(np.float32)


NO_LABELS = pd.Series([], index=pd.Index([], dtype=np.int64), dtype=np.int64)


def test_agreement_confidence_and_entropy_match_values_worked_by_hand(tmp_path: Path) -> None:
    made = store(tmp_path, np.array([[[[np.log(3), 0.0], [0.0, 0.0]]]]))
    summary = summarise(made, pd.Series([1], index=[10]), temperatures=(1.0,))
    row = summary.table.iloc[0]
    sure = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert row["entropy_at_1"] == pytest.approx((sure + np.log(2)) / 2, abs=1e-3)
    assert row["mean_confidence"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-3)
    assert row["agreement_with_labels"] == 0.0  # Only example 10 has a label, and it is class 1.
    assert (row["teacher"], row["fingerprint"]) == ("0", "member 0")
    assert (row["rows"], row["examples"], row["confidence_temperature"]) == (2, 2, 1.0)
    assert row["uniform_entropy"] == pytest.approx(np.log(2))
    counted = summary.confidences.set_index("low")[["right", "wrong", "unlabelled"]]
    # 0.75 with a label against it, and 0.5 without one.
    assert counted.loc[0.75].tolist() == [0, 1, 0] or counted.loc[0.7].tolist() == [0, 1, 0]
    assert counted.loc[0.5].tolist() == [0, 0, 1]
    assert int(counted.to_numpy().sum()) == 2


def test_an_ensemble_is_summed_up_member_by_member_and_mixed(tmp_path: Path) -> None:
    """Two members sure of different classes: mixed either way they know nothing."""
    made = store(tmp_path, np.array([[[[8.0, 0.0]]], [[[0.0, 8.0]]]]))
    for kind in ("geometric", "arithmetic"):
        table = summarise(made, NO_LABELS, mixing=Mixing(kind=kind)).table
        assert table["teacher"].tolist() == ["0", "1", "mixed"]
        assert table["fingerprint"].tolist() == ["member 0", "member 1", "mixed"]
        assert table["agreement_with_labels"].isna().all()
        for temperature in TEMPERATURES:
            entropies = table[f"entropy_at_{temperature:g}"]
            assert entropies[0] == pytest.approx(entropies[1], rel=1e-5)
            assert entropies[2] == pytest.approx(np.log(2), rel=1e-3)


def test_entropy_rises_with_temperature_up_to_that_of_all_classes_alike(tmp_path: Path) -> None:
    made = store(tmp_path, random_logits(2, 2, 50, 7))
    for _, row in summarise(made, NO_LABELS).table.iterrows():
        entropies = [row[f"entropy_at_{temperature:g}"] for temperature in TEMPERATURES]
        assert entropies == sorted(entropies)
        assert entropies[-1] < uniform_entropy(made) == pytest.approx(np.log(7))


def test_parts_and_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_logits(2, 2, 100, 5), pd.Series(np.arange(70) % 5, np.arange(10, 80))
    whole = summarise(store(tmp_path / "whole", logits), labels)
    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 7)
    split = summarise(store(tmp_path / "split", logits, rows_per_part=16), labels)
    pd.testing.assert_frame_equal(whole.table, split.table, rtol=1e-6)
    pd.testing.assert_frame_equal(whole.confidences, split.confidences)


def test_only_one_part_of_each_member_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(tmp_path, random_logits(2, 2, 64, 5), rows_per_part=16)
    sizes: list[int] = []
    read = SoftTargets.parts

    def watched(self: SoftTargets, member: int | None = None, view: int | None = None):  # type: ignore[no-untyped-def]
        assert member is not None and view is not None
        for part in read(self, member, view):
            sizes.append(len(part.example_ids))
            yield part

    monkeypatch.setattr(SoftTargets, "parts", watched)
    summarise(made, NO_LABELS)
    assert sizes == [16] * 16  # Each of the parts once.


def test_the_top_k_are_read_at_their_own_temperature_with_the_rest_as_one_class(
    tmp_path: Path,
) -> None:
    logits = random_logits(1, 1, 30, 9)
    made = store(tmp_path, logits, encoding=Encoding(top_k=3, temperature=2.0))
    row = summarise(made, pd.Series(np.zeros(30, dtype=int), np.arange(10, 40))).table.iloc[0]
    powers = np.exp(logits[0, 0] / 2)
    p = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)
    bucketed = np.concatenate([p[:, -3:], p[:, :-3].sum(axis=1, keepdims=True)], axis=1)
    assert [n for n in row.index if n.startswith("entropy_at_")] == ["entropy_at_2"]
    entropy = -(bucketed * np.log(bucketed)).sum(axis=1).mean()
    assert row["entropy_at_2"] == pytest.approx(entropy, rel=1e-3)
    assert row["mean_confidence"] == pytest.approx(p[:, -1].mean(), rel=1e-3)
    assert row["confidence_temperature"] == 2.0
    assert row["uniform_entropy"] == pytest.approx(np.log(4))
    assert row["agreement_with_labels"] == (logits[0, 0].argmax(axis=1) == 0).mean()


def test_members_of_a_top_k_cache_are_told_apart_and_not_mixed(tmp_path: Path) -> None:
    made = store(tmp_path, random_logits(2, 1, 20, 9), encoding=Encoding(3, 2.0))
    assert summarise(made, NO_LABELS).table["teacher"].tolist() == ["0", "1"]


def test_labels_are_those_of_the_table_that_are_known(examples: pd.DataFrame) -> None:
    hidden = examples.assign(label=examples["label"].mask(examples["example_id"] > 4))
    assert known_labels(hidden).to_dict() == {0: 0, 2: 1, 4: 2}
    assert known_labels(hidden.assign(label=pd.NA)).empty
