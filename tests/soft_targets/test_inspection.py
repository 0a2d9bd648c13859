"""What a cache holds, for people: by hand, by law, and whatever the parts."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets import inspection
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.inspection import (
    CONFIDENT,
    DISAGREEING,
    NUM_PAIRS,
    TEMPERATURES,
    UNCERTAIN,
    Pick,
    Sample,
    confidence_histogram,
    known_labels,
    most_confusable_pairs,
    pick_examples,
    sample,
    summarise,
)
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import write_soft_targets

NO_LABELS = pd.Series([], index=pd.Index([], dtype=np.int64), dtype=np.int64)


def cached(
    folder: Path,
    logits: NDArray[np.floating],
    *,
    encoding: Encoding | None = None,
    rows_per_part: int | None = None,
    max_rows: int = 50_000,
    **params: Any,
) -> Sample:
    """Logits [members, views, examples, classes] of examples 10, 11, ... and classes a, b, ..."""
    num_members, num_views, count, num_classes = logits.shape
    names = tuple(chr(ord("a") + number) for number in range(num_classes))
    fingerprints = tuple(f"member {number}" for number in range(num_members))
    made = write_soft_targets(
        folder / "store",
        list(logits.astype(np.float32)),
        np.arange(10, 10 + count),
        provenance=Provenance(names, fingerprints, "i", "s", {}, num_views),
        encoding=encoding,
        rows_per_part=rows_per_part,
    )
    return sample(made, SoftTargetsParams(**params), MemoryBudget(2**30), max_rows=max_rows)


def probable(probabilities: Any) -> NDArray[np.float64]:
    """Logits of one member whose softmax is [views, examples, classes]."""
    return np.log(np.array(probabilities))[None]


def random_logits(*shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, shape).astype(np.float16).astype(np.float32)


def test_agreement_confidence_and_entropy_match_values_worked_by_hand(tmp_path: Path) -> None:
    made = cached(tmp_path, probable([[[0.75, 0.25], [0.5, 0.5]]]))
    labels = pd.Series([1], index=[10])
    row = summarise(made, labels).iloc[0]
    confident = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert row["entropy_at_1"] == pytest.approx((confident + np.log(2)) / 2, abs=1e-3)
    assert row["mean_confidence"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-3)
    assert row["agreement_with_labels"] == 0.0  # Only example 10 has a label, and it is class b.
    assert (row["teacher"], row["fingerprint"]) == ("0", "member 0")
    assert (row["rows"], row["examples"], row["confidence_temperature"]) == (2, 2, 1.0)
    assert row["uniform_entropy"] == pytest.approx(np.log(2))
    counted = confidence_histogram(made, labels).set_index("low")[["right", "wrong", "unlabelled"]]
    # 0.75 with a label against it, and 0.5 without one.
    assert counted.loc[0.75].tolist() == [0, 1, 0] or counted.loc[0.7].tolist() == [0, 1, 0]
    assert counted.loc[0.5].tolist() == [0, 0, 1]
    assert int(counted.to_numpy().sum()) == 2


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_an_ensemble_is_summed_up_member_by_member_and_averaged(tmp_path: Path, kind: str) -> None:
    """Two members confident in different classes: their average is uniform, either way."""
    made = cached(tmp_path, np.array([[[[8, 0]]], [[[0, 8]]]]), ensemble_average=kind)
    table = summarise(made, NO_LABELS)
    assert table["teacher"].tolist() == ["0", "1", "ensemble"]
    assert table["fingerprint"].tolist() == ["member 0", "member 1", "ensemble"]
    assert table["agreement_with_labels"].isna().all()
    for temperature in TEMPERATURES:
        entropies = table[f"entropy_at_{temperature:g}"]
        assert entropies[0] == pytest.approx(entropies[1], rel=1e-5)
        assert entropies[2] == pytest.approx(np.log(2), rel=1e-3)
        assert entropies[0] < 0.98 * np.log(2)
    assert table["mean_confidence"].tolist() == pytest.approx([1, 1, 0.5], abs=1e-3)


def test_entropy_rises_with_temperature_up_to_that_of_all_classes_alike(tmp_path: Path) -> None:
    for _, row in summarise(cached(tmp_path, random_logits(2, 2, 50, 7)), NO_LABELS).iterrows():
        entropies = [row[f"entropy_at_{temperature:g}"] for temperature in TEMPERATURES]
        assert entropies == sorted(entropies)
        assert entropies[-1] < row["uniform_entropy"] == pytest.approx(np.log(7))


def test_the_parts_change_nothing(tmp_path: Path) -> None:
    logits, labels = random_logits(2, 2, 100, 5), pd.Series(np.arange(70) % 5, np.arange(10, 80))
    whole = cached(tmp_path / "whole", logits)
    split = cached(tmp_path / "split", logits, rows_per_part=16)
    for table in (summarise, confidence_histogram, most_confusable_pairs):
        pd.testing.assert_frame_equal(table(whole, labels), table(split, labels))
    assert str(pick_examples(whole, labels)) == str(pick_examples(split, labels))


def test_of_more_rows_as_many_of_each_view_are_read_and_counted(tmp_path: Path) -> None:
    logits, labels = random_logits(1, 3, 400, 5), pd.Series(np.arange(400) % 5, np.arange(10, 410))
    made = cached(tmp_path / "some", logits, rows_per_part=64, max_rows=301)
    assert np.bincount(made.views).tolist() == [100, 100, 100]
    rows = logits[0, made.views, made.example_ids - 10].astype(np.float16)
    np.testing.assert_array_equal(made.rows.logits[0], rows)
    some = summarise(made, labels).iloc[0]
    assert (some["rows"], some["examples"]) == (300, 400)
    everything = summarise(cached(tmp_path / "all", logits), labels).iloc[0]
    assert some["entropy_at_4"] == pytest.approx(everything["entropy_at_4"], rel=0.1)


def test_the_top_k_are_read_at_their_own_temperature_with_the_rest_as_one_class(
    tmp_path: Path,
) -> None:
    logits = random_logits(1, 1, 30, 9)
    made = cached(tmp_path, logits, encoding=Encoding(top_k=3, temperature=2.0))
    assert made.distribution(2.0).probabilities.dtype == np.float32
    row = summarise(made, pd.Series(np.zeros(30, dtype=int), np.arange(10, 40))).iloc[0]
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


CERTAIN = np.array([[[[60_000, -60_000], [0, 0], [-60_000, 60_000]]]])
"""Of one member, in one view: certain of a, undecided, certain of b."""


def test_a_certain_teacher_has_a_confidence_of_one_and_no_entropy(tmp_path: Path) -> None:
    made = cached(tmp_path, CERTAIN)
    given = made.distribution(1.0)
    assert given.probabilities.dtype == np.float32
    assert given.confidences.tolist() == [1, 0.5, 1]
    assert given.entropies.tolist() == [0, pytest.approx(np.log(2)), 0]
    counted = confidence_histogram(made, pd.Series([0, 1], index=[10, 11]))
    assert (counted.dtypes[["right", "wrong", "unlabelled"]] == np.int64).all()
    assert list(counted) == ["low", "high", "right", "wrong", "unlabelled"]
    assert counted.iloc[-1].tolist() == [0.95, 1.0, 1, 0, 1]
    # Of two classes alike the first is taken, against the label.
    assert counted.iloc[10].tolist() == [0.5, 0.55, 0, 1, 0]
    assert int(counted[["right", "wrong", "unlabelled"]].to_numpy().sum()) == 3
    assert summarise(made, pd.Series([0, 1], [10, 11]))["agreement_with_labels"].item() == 0.5
    picks = pick_examples(made, NO_LABELS)
    assert of_kind(picks, CONFIDENT) == [(10, 0), (12, 0)]
    assert of_kind(picks, UNCERTAIN) == [(11, 0), (10, 0), (12, 0)]


def test_a_mean_is_taken_in_float64(tmp_path: Path) -> None:
    """From 2**24 on float32 has no odd numbers."""
    made = cached(tmp_path, random_logits(1, 2, 4, 2))
    values = np.array([2**24, 1, 1, 1] * 2, dtype=np.float32)
    assert made.mean(values) == (2**24 + 3) / 4


def test_the_rows_that_are_read_are_the_same_every_time_and_one_of_each_view_at_least(
    tmp_path: Path,
) -> None:
    made = cached(tmp_path / "some", random_logits(1, 2, 40, 3), max_rows=20)
    drawn = np.random.default_rng(0)
    expected = [sorted(drawn.permutation(40)[:10] + 10) for _ in range(2)]
    assert made.example_ids.reshape(2, 10).tolist() == expected
    few = cached(tmp_path / "few", random_logits(1, 3, 40, 3), max_rows=1)
    assert few.views.tolist() == [0, 1, 2]


def test_of_many_classes_fewer_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MAX_LOGITS", 60)
    logits = random_logits(1, 1, 40, 9)
    assert len(cached(tmp_path / "dense", logits).example_ids) == 60 // 9
    top_k = cached(tmp_path / "top", logits, encoding=Encoding(top_k=3, temperature=2.0))
    assert len(top_k.example_ids) == 60 // 3


def test_labels_are_those_of_the_table_that_are_known(examples: pd.DataFrame) -> None:
    label = examples["label"].mask(examples["example_id"] > 4)
    hidden = examples.assign(label=label, class_name=None)
    assert known_labels(hidden).to_dict() == {0: 0, 2: 1, 4: 2}
    assert known_labels(hidden).dtype == np.int64
    assert known_labels(hidden.assign(label=pd.NA)).empty


FOUR = [[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]]]


def test_masses_and_examples_match_values_worked_by_hand(tmp_path: Path) -> None:
    table = most_confusable_pairs(cached(tmp_path, probable(FOUR)), NO_LABELS, temperature=1.0)
    first = table.iloc[0]
    assert (first["class_a"], first["class_b"]) == ("a", "b")
    assert first["mass_a_to_b"] == pytest.approx(0.3, abs=1e-3)  # Of examples 10 and 11.
    assert first["mass_b_to_a"] == pytest.approx(0.3, abs=1e-3)  # Of example 12.
    assert first["mean_mass"] == pytest.approx(0.3, abs=1e-3)
    assert (first["num_a"], first["num_b"]) == (2, 1)
    assert (first["examples_a"], first["examples_b"]) == ("11 10", "12")
    assert table["mean_mass"].is_monotonic_decreasing
    assert len(table) == 3


def test_an_example_counts_for_its_label(tmp_path: Path) -> None:
    made = cached(tmp_path, probable(FOUR))
    labels = pd.Series([0], index=[12])  # An a that resembles a b.
    first = most_confusable_pairs(made, labels, temperature=1.0).iloc[0]
    assert first["mass_a_to_b"] == pytest.approx((0.2 + 0.4 + 0.6) / 3, abs=1e-3)
    assert (first["num_a"], first["num_b"], first["examples_a"]) == (3, 0, "12 11 10")
    labels = pd.Series([1], index=[10])  # A b that resembles an a.
    first = most_confusable_pairs(made, labels, temperature=1.0).iloc[0]
    assert (first["class_a"], first["class_b"]) == ("a", "b")
    assert first["mass_b_to_a"] == pytest.approx((0.7 + 0.3) / 2, abs=1e-3)
    assert (first["examples_a"], first["examples_b"]) == ("11", "10 12")


def test_an_example_is_named_once_however_many_views(tmp_path: Path) -> None:
    one = [[0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]
    two = [[0.9, 0.1], [0.55, 0.45], [0.2, 0.8]]
    row = most_confusable_pairs(cached(tmp_path, probable([one, two])), NO_LABELS).iloc[0]
    assert row["examples_a"] == "11 10"
    assert (row["num_a"], row["temperature"]) == (4, 4.0)


def test_temperature_softens_the_masses(tmp_path: Path) -> None:
    made = cached(tmp_path, probable([[[0.99, 0.01], [0.01, 0.99]]]))
    cold, warm = (
        most_confusable_pairs(made, NO_LABELS, temperature=t)["mean_mass"].item() for t in (1, 4)
    )
    assert cold == pytest.approx(0.01, abs=1e-3)
    assert warm == pytest.approx(1 / (1 + 99 ** (1 / 4)), abs=1e-3)


def test_pairs_of_the_top_k_are_counted_at_their_own_temperature(tmp_path: Path) -> None:
    logits = probable([[[0.5, 0.3, 0.1, 0.05, 0.05]]])
    made = cached(tmp_path, logits, encoding=Encoding(top_k=2, temperature=1.0))
    table = most_confusable_pairs(made, NO_LABELS)
    assert table[["class_a", "class_b", "temperature"]].to_numpy().tolist() == [["a", "b", 1.0]]
    assert table["mass_a_to_b"].item() == pytest.approx(0.3, abs=1e-3)


def test_only_so_many_pairs_are_listed(tmp_path: Path) -> None:
    made = cached(tmp_path, random_logits(1, 1, 40, 12))  # 66 pairs.
    assert len(most_confusable_pairs(made, NO_LABELS)) == NUM_PAIRS


def test_pairs_examples_and_classes_alike_come_in_their_order(tmp_path: Path) -> None:
    """Of 20 classes in a ring each is taken for itself, the two beside it and the second one on."""
    logits = np.full((1, 1, 20, 20), -60_000)
    for label in range(20):
        logits[0, 0, label, np.arange(label - 1, label + 3) % 20] = 0
    made = cached(tmp_path / "ring", logits)
    labels = pd.Series(np.arange(20), np.arange(10, 30))
    pairs = most_confusable_pairs(made, labels)[["class_a", "class_b"]].to_numpy().tolist()
    names = made.manifest.provenance.class_names
    nearest, second = (
        sorted(sorted((names[label], names[(label + step) % 20])) for label in range(20))
        for step in (1, 2)
    )
    assert pairs == [*nearest, *second]
    for pick in pick_examples(made, labels):
        support = sorted((pick.label + step) % 20 for step in range(-1, 3))
        other = next(label for label in range(20) if label not in support)
        assert pick.class_ids.tolist() == [*support, other]
        assert pick.class_ids.dtype == np.int64
    logits = np.zeros((1, 1, 40, 4))
    logits[0, 0, ::2] = [0, 0, -60_000, -60_000]
    rows = most_confusable_pairs(cached(tmp_path / "two", logits), NO_LABELS)
    assert rows["examples_a"][0] == "10 12 14"


def test_the_most_confident_row_has_the_widest_gap_to_the_second_class(tmp_path: Path) -> None:
    logits = np.array([[[[5, 4.9, 0], [3, 0, 0], [2, 0, 0]]]])
    assert of_kind(pick_examples(cached(tmp_path, logits), NO_LABELS), CONFIDENT) == [(11, 0)]


def test_an_example_without_mass_on_a_class_is_not_named_for_it(tmp_path: Path) -> None:
    logits = probable([[[0.6, 0.3, 0.06, 0.04], [0.6, 0.05, 0.3, 0.05]]])
    made = cached(tmp_path, logits, encoding=Encoding(top_k=2, temperature=1.0))
    table = most_confusable_pairs(made, NO_LABELS)
    assert table[["class_b", "examples_a"]].to_numpy().tolist() == [["b", "10"], ["c", "11"]]


def test_as_many_classes_as_may_be_are_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MAX_CLASSES", 3)
    assert len(most_confusable_pairs(cached(tmp_path, probable(FOUR)), NO_LABELS)) == 3


def test_too_many_classes_are_warned_of_and_not_tabled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = cached(tmp_path, np.zeros((1, 1, 2, 4_097)))
    with caplog.at_level(logging.WARNING, logger="kd_pipeline"):
        table = most_confusable_pairs(made, NO_LABELS)
    assert table.empty
    assert tuple(table.columns) == inspection.PAIR_COLUMNS
    assert caplog.messages == ["more than 4096 classes: no table of confusable pairs"]


def of_kind(picks: list[Pick], kind: str) -> list[tuple[int, int]]:
    return [(pick.example_id, pick.view) for pick in picks if pick.kind == kind]


def test_the_extremes_of_each_kind_are_picked(tmp_path: Path) -> None:
    logits = np.array(
        [
            [[9, 0, 0], [8, 0, 0], [0, 7, 0], [0, 0.1, 0], [0, 0, 6]],
            [[9, 1, 0], [8, 0, 0], [0, 7, 1], [0, 0.0, 0], [0, 0, 6]],
        ]
    )
    labels = pd.Series([0, 0, 1, 1, 0], index=range(10, 15))  # 14 is taken for class c.
    picks = pick_examples(cached(tmp_path, logits[None]), labels)
    # One per class: not 11. In its second view 13 is right by a hair, and 14 is against its label.
    assert of_kind(picks, CONFIDENT) == [(10, 0), (12, 0)]
    # By the view of highest entropy, and no example twice.
    assert of_kind(picks, UNCERTAIN)[:2] == [(13, 1), (14, 0)]
    assert len({example for example, _ in of_kind(picks, UNCERTAIN)}) == 4
    # In its second view 13 is a tie that falls to class a.
    assert of_kind(picks, DISAGREEING) == [(14, 0), (13, 1)]
    first = picks[0]
    assert (first.label, first.class_ids[0]) == (0, 0)
    assert list(first.probabilities) == [1.0, 4.0]
    powers = np.exp(np.array([9, 0, 0]) / 4)
    np.testing.assert_allclose(first.probabilities[4.0], powers / powers.sum(), rtol=1e-3)


def test_without_labels_nothing_disagrees(tmp_path: Path) -> None:
    picks = pick_examples(cached(tmp_path, random_logits(1, 1, 20, 6)), NO_LABELS)
    assert {pick.kind for pick in picks} == {CONFIDENT, UNCERTAIN}
    assert {pick.label for pick in picks} == {-1}
    assert all(len(pick.class_ids) == 5 for pick in picks)


def test_picks_of_the_top_k_show_their_classes_at_their_temperature(tmp_path: Path) -> None:
    logits = random_logits(1, 1, 20, 9)
    made = cached(tmp_path, logits, encoding=Encoding(top_k=3, temperature=2.0))
    for pick in pick_examples(made, NO_LABELS):
        row = logits[0, 0, pick.example_id - 10]
        assert pick.class_ids.tolist() == np.argsort(-row)[:3].tolist()
        powers = np.exp(row / 2)
        expected = np.sort(powers / powers.sum())[::-1][:3]
        assert list(pick.probabilities) == [2.0]
        np.testing.assert_allclose(pick.probabilities[2.0], expected, rtol=1e-2)


def test_of_the_top_class_alone_the_rest_counts_as_the_second(tmp_path: Path) -> None:
    logits = random_logits(1, 1, 20, 9)
    made = cached(tmp_path, logits, encoding=Encoding(top_k=1, temperature=2.0))
    powers = np.exp(logits[0, 0] / 2)
    top = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    surest = of_kind(pick_examples(made, NO_LABELS), "confident")
    assert surest[0][0] == 10 + int(np.abs(np.log(top / (1 - top))).argmax())
