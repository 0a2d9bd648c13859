"""Confusable pairs: masses worked by hand, both directions, and the examples behind them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kd_pipeline.soft_targets import confusions
from kd_pipeline.soft_targets.confusions import most_confusable_pairs
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

NO_LABELS = pd.Series([], index=pd.Index([], dtype=np.int64), dtype=np.int64)


def store(
    folder: Path, probabilities: NDArray[np.float64], *, encoding: Encoding | None = None
) -> SoftTargets:
    """A cache whose softmax at temperature 1 is [views, examples, classes]; ids from 10 on."""
    views, count, classes = probabilities.shape
    provenance = Provenance(tuple("abcdefghij"[:classes]), ("t",), "i", "s", {}, views)
    return write_soft_targets(
        folder / "store",
        [list(np.log(probabilities).astype(np.float32))],
        np.arange(10, 10 + count),
        provenance=provenance,
        encoding=encoding or Encoding(),
        rows_per_part=2,
    )


def test_masses_and_examples_match_values_worked_by_hand(tmp_path: Path) -> None:
    views = np.array([[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]])
    table = most_confusable_pairs(store(tmp_path, views), NO_LABELS, temperature=1.0)
    first = table.iloc[0]
    assert (first["class_a"], first["class_b"]) == ("a", "b")
    assert first["mass_a_to_b"] == pytest.approx(0.3, abs=1e-3)  # Of examples 10 and 11.
    assert first["mass_b_to_a"] == pytest.approx(0.3, abs=1e-3)  # Of example 12.
    assert first["mean_mass"] == pytest.approx(0.3, abs=1e-3)
    assert (first["num_a"], first["num_b"]) == (2, 1)
    assert (first["examples_a"], first["examples_b"]) == ("11 10", "12")
    assert table["mean_mass"].is_monotonic_decreasing
    assert len(table) == 3


def test_a_label_says_whose_example_it_is(tmp_path: Path) -> None:
    views = np.array([[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]])
    labels = pd.Series([1], index=[10])  # A b that looks like an a.
    table = most_confusable_pairs(store(tmp_path, views), labels, temperature=1.0)
    first = table.iloc[0]
    assert (first["class_a"], first["class_b"]) == ("a", "b")
    assert first["mass_b_to_a"] == pytest.approx((0.7 + 0.3) / 2, abs=1e-3)
    assert (first["examples_a"], first["examples_b"]) == ("11", "10 12")


def test_an_example_is_named_once_however_many_views(tmp_path: Path) -> None:
    one = np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9]])
    two = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8]])
    row = most_confusable_pairs(store(tmp_path, np.stack([one, two])), NO_LABELS).iloc[0]
    assert row["examples_a"] == "11 10"
    assert (row["num_a"], row["temperature"]) == (4, 4.0)


def test_temperature_softens_the_masses(tmp_path: Path) -> None:
    made = store(tmp_path, np.array([[[0.99, 0.01], [0.01, 0.99]]]))
    cold, warm = (
        most_confusable_pairs(made, NO_LABELS, temperature=t)["mean_mass"].item() for t in (1, 4)
    )
    assert cold == pytest.approx(0.01, abs=1e-3)
    assert warm == pytest.approx(1 / (1 + 99 ** (1 / 4)), abs=1e-3)


def test_the_top_k_are_counted_at_their_own_temperature(tmp_path: Path) -> None:
    row = np.array([0.5, 0.3, 0.1, 0.05, 0.05])
    made = store(tmp_path, row[None, None], encoding=Encoding(top_k=2, temperature=1.0))
    table = most_confusable_pairs(made, NO_LABELS)
    assert table[["class_a", "class_b", "temperature"]].to_numpy().tolist() == [["a", "b", 1.0]]
    assert table["mass_a_to_b"].item() == pytest.approx(0.3, abs=1e-3)


def test_only_so_many_pairs_are_listed(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), (1, 40))
    assert len(most_confusable_pairs(store(tmp_path, probabilities), NO_LABELS, num_pairs=4)) == 4


def test_too_many_classes_are_said_and_not_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(confusions, "MAX_CLASSES", 2)
    table = most_confusable_pairs(store(tmp_path, np.full((1, 3, 3), 1 / 3)), NO_LABELS)
    assert table.empty
    assert list(table.columns) == list(confusions.COLUMNS)
    assert "more than 2 classes" in caplog.text
