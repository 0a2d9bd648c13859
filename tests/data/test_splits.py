"""Splits: properties for any seed and shares, and what is refused."""

import hashlib
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data.settings import TeacherShare, TransferShare, TransferSplitParams
from kd_pipeline.data.splits import (
    check_splits,
    count_training_examples,
    ids_with_role,
    split_examples,
    split_fingerprint,
    student_rows,
    summarise_splits,
)
from kd_pipeline.errors import DataError, ParameterError

CLASSES = ("a", "b", "c")


def table(num: int = 90, partition: str = "pool", first: int = 0) -> pd.DataFrame:
    labels = np.arange(num) % 3
    ids = np.arange(first, first + num)
    return pd.DataFrame(
        {
            "example_id": ids,
            "label": pd.array(labels, dtype="Int64"),
            "class_name": [CLASSES[label] for label in labels],
            "source": "made",
            "partition": partition,
            "content_hash": [f"h{i}" for i in ids],
        }
    )


def split(examples: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """Settings of the transfer set are given without their block."""
    teacher = changes.pop("teacher", {"labels_per_class": 5})
    transfer = {key: changes.pop(key) for key in TransferShare.model_fields.keys() & changes.keys()}
    params = TransferSplitParams(
        teacher=TeacherShare(**teacher),
        transfer=TransferShare(**transfer),
        **{"test_fraction": 0.3, "validation_fraction": 0.1, **changes},
    )
    return split_examples(examples, CLASSES, params)


def ids(splits: pd.DataFrame, role: str) -> set[int]:
    return set(ids_with_role(splits, role).tolist())


@given(
    seed=st.integers(0, 2**31 - 1),
    test_fraction=st.floats(0.05, 0.6),
    relation=st.sampled_from(["equal", "overlapping", "disjoint"]),
    labelled=st.booleans(),
)
def test_splits_are_disjoint_complete_and_stratified(
    seed: int, test_fraction: float, relation: str, labelled: bool
) -> None:
    examples = table()
    splits = split(
        examples, seed=seed, test_fraction=test_fraction, relation=relation, labelled=labelled
    )
    check_splits(splits)
    teacher, transfer, test = (ids(splits, r) for r in ("teacher_train", "transfer", "test"))
    expected = {"equal": teacher, "overlapping": teacher | transfer, "disjoint": transfer - teacher}
    assert transfer == expected[relation]
    assert (
        sorted(examples.set_index("example_id").loc[sorted(teacher), "label"])
        == [0] * 5 + [1] * 5 + [2] * 5
    )
    counts = examples.set_index("example_id").loc[sorted(test), "label"].value_counts()
    assert counts.tolist() == [math.floor(test_fraction * 30 + 0.5)] * 3
    used = splits[(splits["role"] == "transfer") & splits["use_label"]]
    assert set(used["example_id"]) == (transfer if labelled else transfer & teacher)


@pytest.mark.parametrize("seed", range(5))
def test_splits_do_not_depend_on_row_order_and_survive_new_images(seed: int) -> None:
    examples = table()
    before = split(examples, seed=seed)
    shuffled = examples.sample(frac=1, random_state=seed)
    assert split_fingerprint(before) == split_fingerprint(split(shuffled, seed=seed))
    grown = split(pd.concat([examples, table(9, first=1000)]), seed=seed)
    assert (
        len(ids(before, "test") - ids(grown, "test")) <= 3
    )  # One per class may be pushed out by a newcomer.


@pytest.mark.parametrize(("share", "size"), [(0.001, 1), (0.05, 2), (0.5, 15), (0.999, 29)])
def test_a_share_is_rounded_and_leaves_no_class_without_images_on_either_side(
    share: float, size: int
) -> None:
    """Half an image counts as one. Of each class there are 30 images beside the test set."""
    examples = pd.concat([table(90, "train"), table(30, "test", first=500)])
    whole = {"teacher": {"fraction": 1.0}, "relation": "equal"}
    splits = split(examples, validation_fraction=share, **whole)
    for role, expected in (("validation", size), ("teacher_train", 30 - size)):
        labels = [example_id % 3 for example_id in ids(splits, role)]
        assert [labels.count(label) for label in range(3)] == [expected] * 3


@pytest.mark.parametrize(
    ("teacher", "fingerprint"),
    [({"labels_per_class": 5}, "d278b5c3b915199d"), ({"fraction": 0.4}, "4d6a4c24ac4c4730")],
)
def test_a_seed_splits_as_it_always_has(teacher: dict[str, Any], fingerprint: str) -> None:
    """Caches and checkpoints on disk hold the fingerprint of their splits."""
    splits = split(table(), seed=3, teacher=teacher, relation="disjoint", fraction=0.5)
    assert split_fingerprint(splits) == fingerprint


def test_another_seed_splits_otherwise() -> None:
    assert ids(split(table()), "test") != ids(split(table(), seed=1), "test")


@pytest.mark.parametrize("role", ["teacher_train", "validation", "transfer"])
def test_another_seed_draws_each_part_otherwise(role: str) -> None:
    """With the test set given; chance alone lets a sixth of each class's images coincide."""
    examples = pd.concat([table(300, "train"), table(30, "test", first=500)])
    shares = {"teacher": {"fraction": 0.2}, "relation": "disjoint", "fraction": 0.2}
    first, second = (
        ids(split(examples, seed=seed, validation_fraction=0.2, **shares), role) for seed in (0, 1)
    )
    assert len(first & second) < len(first) / 2


def test_training_examples_are_those_of_teacher_and_students_each_once() -> None:
    for relation in ("equal", "overlapping", "disjoint"):
        splits = split(table(), relation=relation)
        both = ids(splits, "teacher_train") | ids(splits, "transfer")
        assert count_training_examples(splits) == len(both)


def test_a_copy_of_a_validation_image_stays_out_of_training() -> None:
    examples, whole = table(), split(table())
    alike = {min(ids(whole, "validation")), *sorted(ids(whole, "transfer"))[:4]}
    examples.loc[examples["example_id"].isin(alike), "content_hash"] = "the same"
    splits = split(examples)
    assert alike & ids(splits, "validation")
    assert not alike & (ids(splits, "teacher_train") | ids(splits, "transfer"))


def test_a_test_set_of_the_source_is_kept_as_it_is() -> None:
    examples = pd.concat([table(60, "train"), table(30, "test", first=500)])
    assert ids(split(examples), "test") == set(range(500, 530))


def test_a_test_image_without_a_label_has_no_role() -> None:
    """It can be neither scored nor trained on."""
    examples = pd.concat([table(60, "train"), table(30, "test", first=500)], ignore_index=True)
    unlabelled = examples["example_id"] >= 520
    examples.loc[unlabelled, ["label", "class_name"]] = [pd.NA, None]
    splits = split(examples)
    assert ids(splits, "test") == set(range(500, 520))
    assert set(splits["example_id"]) == {*range(60), *range(500, 520)}


def test_copies_of_held_out_images_are_kept_out_of_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    examples = table()
    held_out = ids(split(examples), "test")
    copied = examples.copy()
    original = min(held_out)
    copies = [i for i in range(90) if i not in held_out][:4]
    copied.loc[copied["example_id"].isin(copies), "content_hash"] = f"h{original}"
    splits = split(copied)
    left_out = "4 examples are copies of a held-out one and are left out of training"
    assert caplog.messages == [f"{left_out}, first ids {copies[:3]}"]
    assert original in ids(splits, "test")
    everywhere_else = set(splits.loc[splits["role"] != "test", "example_id"])
    assert not everywhere_else & set(copies)


def test_students_may_use_every_label_that_the_teacher_had_and_no_other() -> None:
    for relation in ("overlapping", "disjoint"):
        splits = split(table(), relation=relation)
        rows = student_rows(splits)
        labelled = set(rows.loc[rows["use_label"], "example_id"])
        assert labelled == ids(splits, "teacher_train")
        assert set(rows.loc[rows["in_transfer"], "example_id"]) == ids(splits, "transfer")
        assert rows["example_id"].is_unique


def test_a_class_left_out_is_seen_by_no_student() -> None:
    splits = split(table(), excluded_classes=["b"])
    seen = student_rows(splits)["example_id"] % 3
    assert set(seen) == {0, 2}
    assert {i % 3 for i in ids(splits, "teacher_train")} == {0, 1, 2}
    assert {i % 3 for i in ids(splits, "test")} == {0, 1, 2}


def test_unlabelled_images_serve_as_transfer_set_only() -> None:
    examples = table()
    examples.loc[examples["example_id"] >= 60, "label"] = pd.NA
    examples.loc[examples["example_id"] >= 60, "class_name"] = None
    splits = split(examples, labelled=True)
    unlabelled = set(range(60, 90))
    assert unlabelled <= ids(splits, "transfer")
    for role in ("teacher_train", "validation", "test"):
        assert not unlabelled & ids(splits, role)
    assert not splits.loc[splits["example_id"] >= 60, "use_label"].any()
    assert summarise_splits(splits, examples, CLASSES).loc[1, "unlabelled"] == 30


def test_classes_may_be_called_as_columns_of_the_summary() -> None:
    names = ("examples", "role", "unlabelled")
    examples = table()
    examples["class_name"] = [names[CLASSES.index(name)] for name in examples["class_name"]]
    summary = summarise_splits(split(examples), examples, names)
    columns = [f"{name} (class)" for name in names]
    assert list(summary)[4:] == columns
    assert (summary[columns].sum(axis=1) == summary["examples"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher": {"labels_per_class": 500}},
            "^`transfer_split.teacher.labels_per_class` must be at most the 19 labelled training "
            "examples of class 'a', got 500$",
        ),
        (
            {"excluded_classes": ["z"]},
            "^`transfer_split.transfer.excluded_classes` must name classes of the images, got 'z'; "
            "legal: a, b, c$",
        ),
        (
            {"excluded_classes": list(CLASSES)},
            r"^`transfer_split.transfer.excluded_classes` must leave at least one class, got \['a'",
        ),
        (
            {"teacher": {"fraction": 1.0}, "relation": "disjoint"},
            "^`transfer_split.transfer` must leave at least one example in the transfer set, got "
            "'disjoint'$",
        ),
    ],
)
def test_rejects_what_the_examples_cannot_give(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        split(table(), **changes)


def test_a_class_of_which_the_teacher_would_see_nothing_is_refused() -> None:
    examples = table()
    rare = examples["example_id"].isin(range(5, 90, 3))  # One image of class c is left.
    few = examples[~rare]
    rule = "leave the teacher an example of every class, beside test and validation"
    with pytest.raises(
        ParameterError, match=f"^`transfer_split.teacher` must {rule}, got 'none of c"
    ):
        split(few, teacher={"fraction": 0.5})
    names = [f"class {number}" for number in range(9)]  # Of the last six there is no image.
    params = TransferSplitParams(teacher={"fraction": 0.5})
    with pytest.raises(ParameterError, match=f"got 'none of {', '.join(names[3:8])}'$"):
        split_examples(table(), names, params)


def test_a_number_of_labels_may_be_all_that_there_are() -> None:
    """Of each class 19 are beside test and validation."""
    splits = split(table(), teacher={"labels_per_class": 19})
    assert len(ids(splits, "teacher_train")) == 3 * 19


def test_a_number_of_labels_is_refused_for_a_class_without_any() -> None:
    params = TransferSplitParams(teacher={"labels_per_class": 1})
    with pytest.raises(ParameterError, match=r"at most the 0 labelled .* of class 'd', got 1$"):
        split_examples(table(), (*CLASSES, "d"), params)


def test_a_long_list_of_legal_classes_is_not_printed() -> None:
    names = tuple(f"class {number}" for number in range(21))
    params = TransferSplitParams(
        teacher={"fraction": 1.0}, transfer={"excluded_classes": ["z"]}, test_fraction=0.3
    )
    with pytest.raises(ParameterError, match=r"must name classes of the images, got 'z'$"):
        split_examples(table(), names, params)
    with pytest.raises(ParameterError, match="got 'z'; legal: class 0, "):
        split_examples(table(), names[:20], params)


@pytest.mark.parametrize(
    ("source", "role", "message"),
    [
        ("test", "teacher_train", "test and training must be disjoint: 4 shared"),
        ("test", "transfer", "test and training must be disjoint: 4 shared"),
        ("test", "validation", "test and validation must be disjoint: 4 shared"),
        ("validation", "transfer", "validation and training must be disjoint: 4 shared"),
        ("validation", "teacher_train", "validation and training must be disjoint: 4 shared"),
    ],
)
def test_the_validator_finds_a_leak(source: str, role: str, message: str) -> None:
    splits = split(table())
    leaked = splits[splits["role"] == source].head(4).assign(role=role)
    first = leaked["example_id"].tolist()[:3]
    with pytest.raises(DataError, match=re.escape(f"{message}, {first}")):
        check_splits(pd.concat([splits, leaked], ignore_index=True))


def test_the_validator_finds_what_is_no_table_of_splits() -> None:
    splits = split(table())
    columns = "^splits must have the columns .*'for_student'.*, got .*'role', 'use_label'.$"
    with pytest.raises(DataError, match=columns):
        check_splits(splits.drop(columns="for_student"))
    with pytest.raises(DataError, match=r"^splits must have the roles .*: unknown set.., empty"):
        check_splits(splits[splits["role"] != "validation"])
    other = splits.head(1).assign(role="training")
    with pytest.raises(DataError, match=r"unknown \{'training'\}, empty set"):
        check_splits(pd.concat([splits, other], ignore_index=True))
    with pytest.raises(DataError, match=r"^splits must name an example once in a role, got it tw"):
        # Whatever else its two rows state.
        again = splits.head(1).assign(use_label=~splits["use_label"])
        check_splits(pd.concat([splits, again], ignore_index=True))


def test_the_summary_counts_by_hand() -> None:
    examples = table(6)
    rows = [
        (0, "teacher_train", True, True),
        (0, "transfer", True, True),
        (1, "transfer", False, True),
        (2, "transfer", False, True),
        (3, "validation", True, False),
        (4, "test", True, False),
        (5, "test", True, False),
    ]
    splits = pd.DataFrame(rows, columns=["example_id", "role", "use_label", "for_student"])
    names = ("c", "a", "d", "b")  # In an order of their own; nothing is a d.
    summary = summarise_splits(splits, examples, names)
    assert list(summary) == ["role", "examples", "labels_used", "for_students", *names]
    assert summary.to_numpy().tolist() == [
        ["teacher_train", 1, 1, 1, 0, 1, 0, 0],
        ["transfer", 3, 1, 3, 1, 1, 0, 1],
        ["validation", 1, 1, 0, 0, 1, 0, 0],
        ["test", 2, 2, 0, 1, 0, 0, 1],
    ]


def test_the_fingerprint_is_that_of_the_caches_on_disk() -> None:
    """SHA-256 of the columns one after another, each value on a line."""
    rows = [(7, "transfer", True, False), (9, "test", False, True)]
    splits = pd.DataFrame(rows, columns=["example_id", "role", "use_label", "for_student"])
    digest = hashlib.sha256("".join(["7\n9", "transfer\ntest", "1\n0", "0\n1"]).encode())
    assert split_fingerprint(splits) == digest.hexdigest()[:16]


def test_the_fingerprint_of_a_long_table_is_that_of_its_whole_columns() -> None:
    ids = np.arange(70_000) * 7
    splits = pd.DataFrame(
        {"example_id": ids, "role": "transfer", "use_label": ids % 2 == 0, "for_student": True}
    )
    columns = [ids, ["transfer"] * len(ids), (ids % 2 == 0).astype(int), [1] * len(ids)]
    text = "".join("\n".join(map(str, column)) for column in columns)
    assert split_fingerprint(splits) == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("role", ["validation", "test"])
def test_the_validator_finds_held_out_rows_open_to_students(role: str) -> None:
    splits = split(table())
    splits.loc[splits["role"] == role, "for_student"] = True
    with pytest.raises(DataError, match=r"^splits must keep validation and test rows from the stu"):
        check_splits(splits)


def test_the_fingerprint_sees_every_column() -> None:
    splits = split(table())
    prints = {split_fingerprint(splits)}
    for column in ("use_label", "for_student"):
        changed = splits.copy()
        changed.loc[0, column] = not changed.loc[0, column]
        prints.add(split_fingerprint(changed))
    assert len(prints) == 3


def test_all_labels_are_those_of_the_whole_pool() -> None:
    examples = table()
    every = split(examples, teacher={"labels_per_class": "all"})
    pd.testing.assert_frame_equal(every, split(examples, teacher={"fraction": 1.0}))
    few = split(examples, teacher={"labels_per_class": 5})
    assert every["use_label"].sum() > few["use_label"].sum()
