"""Who sees which example: deterministic, stratified splits keyed by seed and example id."""

import hashlib
import logging
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.randomness import derive_seed, random_bits

ROLES = ("teacher_train", "transfer", "validation", "test")
COLUMNS = ("example_id", "role", "use_label", "for_student")

logger = logging.getLogger(__name__)


def split_examples(
    examples: pd.DataFrame,
    *,
    class_names: Sequence[str],
    seed: int,
    test_fraction: float,
    validation_fraction: float,
    labels_per_class: int | None = None,
    fraction: float | None = None,
    relation: str = "overlapping",
    transfer_fraction: float = 1.0,
    labelled: bool = False,
    excluded_classes: Collection[str] = (),
) -> pd.DataFrame:
    """Give every example its role or roles.

    The order in which a class's examples are dealt out is a hash of (seed, purpose, example id):
    adding images moves few others. A copy of a test or validation image is kept
    out of everything else.

    Args:
        examples: The table that `check_examples` accepts.
        class_names: Every class, so that an empty one is found.
        seed: Seed of all draws.
        test_fraction: Share of each class for the test set, where the source brings none.
        validation_fraction: Share of what remains for validation.
        labels_per_class: Labelled examples of each class that train the teacher, or
        fraction: the share of them.
        relation: `equal`, `overlapping` or `disjoint`: the transfer set against the teacher's.
        transfer_fraction: Share of the eligible examples that make the transfer set.
        labelled: Whether students may use labels that the teacher did not train on.
        excluded_classes: Class names that no student training row may have.

    Returns:
        The `splits` table, sorted by role and example id, checked.

    Raises:
        ParameterError: If a count or name does not fit the examples.
    """
    _check_class_names(excluded_classes, class_names)
    label = dict(zip(examples["example_id"], examples["label"], strict=True))
    known = {e for e, value in label.items() if not pd.isna(value)}

    test, validation, pool = _hold_out(
        examples,
        label,
        known,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )
    teacher = _draw_teacher(
        pool & known,
        label,
        class_names,
        labels_per_class=labels_per_class,
        fraction=fraction,
        seed=derive_seed(seed, "teacher"),
    )
    excluded = {class_names.index(name) for name in excluded_classes}
    allowed = {e for e in pool if e not in known or label[e] not in excluded}
    eligible = {"equal": teacher, "overlapping": pool, "disjoint": pool - teacher}[relation]
    transfer = _draw_share(
        eligible & allowed, label, transfer_fraction, derive_seed(seed, "transfer")
    )
    if not transfer:
        rule = "leave at least one example in the transfer set"
        raise ParameterError("transfer_split.transfer", rule, relation)
    usable = known if labelled else known & teacher
    tables = [
        _rows("teacher_train", teacher, use_label=teacher, for_student=teacher & allowed),
        _rows("transfer", transfer, use_label=transfer & usable, for_student=transfer),
        _rows("validation", validation, use_label=validation, for_student=set()),
        _rows("test", test, use_label=test, for_student=set()),
    ]
    return check_splits(pd.concat(tables, ignore_index=True))


def check_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Refuse splits that leak: this is the catalog's validator for `splits`.

    Raises:
        DataError: If validation or test share an example with anything, a row is double, a role
            is unknown or empty, or a held-out row is open to students.
    """
    if tuple(splits.columns) != COLUMNS:
        raise DataError(f"splits must have the columns {COLUMNS}, got {tuple(splits.columns)}")
    unknown = set(splits["role"]) - set(ROLES)
    missing = set(ROLES) - set(splits["role"])
    if unknown or missing:
        raise DataError(f"splits must have the roles {ROLES}: unknown {unknown}, empty {missing}")
    if splits.duplicated(["example_id", "role"]).any():
        raise DataError("splits must name an example once in a role")
    ids = {role: set(rows["example_id"]) for role, rows in splits.groupby("role")}
    training = ids["teacher_train"] | ids["transfer"]
    for name, first, second in (
        ("test and training", ids["test"], training),
        ("validation and training", ids["validation"], training),
        ("test and validation", ids["test"], ids["validation"]),
    ):
        if shared := first & second:
            raise DataError(f"{name} must be disjoint: {len(shared)} shared, {sorted(shared)[:3]}")
    held_out = splits["role"].isin(["validation", "test"])
    if splits.loc[held_out, "for_student"].any():
        raise DataError("splits must keep validation and test rows from the students' training")
    return splits


def split_fingerprint(splits: pd.DataFrame) -> str:
    """16 hex digits over the table's rows."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        values = splits[column]
        text = values.astype(str) if column == "role" else values.astype("int64").astype(str)
        digest.update("\n".join(text).encode())
    return digest.hexdigest()[:16]


def ids_with_role(splits: pd.DataFrame, role: str) -> NDArray[np.int64]:
    """Example ids of one role, ascending."""
    return np.sort(splits.loc[splits["role"] == role, "example_id"].to_numpy(np.int64))


def student_rows(splits: pd.DataFrame) -> pd.DataFrame:
    """The rows open to students, one per example.

    Returns:
        Columns example_id, `use_label` (in either role) and `in_transfer`; by example id.
    """
    rows = splits[splits["for_student"]]
    rows = rows.assign(in_transfer=rows["role"] == "transfer")
    return rows.groupby("example_id", as_index=False)[["use_label", "in_transfer"]].any()


def summarise_splits(
    splits: pd.DataFrame, examples: pd.DataFrame, class_names: Sequence[str]
) -> pd.DataFrame:
    """Count examples by role and class, and how many labels may be used.

    Returns:
        One row per role: role, examples, labels_used, for_students, then a column per class
        (images without a label count under `unlabelled`).
    """
    named = splits.merge(examples[["example_id", "class_name"]], on="example_id", how="left")
    named["class_name"] = named["class_name"].fillna("unlabelled").astype(str)
    classes = pd.crosstab(named["role"], named["class_name"])
    columns = [*class_names, *(["unlabelled"] if "unlabelled" in classes else [])]
    totals = named.groupby("role").agg(
        examples=("example_id", "size"),
        labels_used=("use_label", "sum"),
        for_students=("for_student", "sum"),
    )
    table = totals.join(classes.reindex(columns=columns, fill_value=0))
    return table.reindex(list(ROLES)).reset_index()


def _hold_out(
    examples: pd.DataFrame,
    label: Mapping[int, int],
    known: set[int],
    *,
    seed: int,
    test_fraction: float,
    validation_fraction: float,
) -> tuple[set[int], set[int], set[int]]:
    """Test, validation, and the pool that is left, free of copies of either."""
    in_test = set(examples.loc[examples["partition"] == "test", "example_id"])
    test = (in_test & known) or _draw_per_class(
        known, label, share=test_fraction, seed=derive_seed(seed, "test")
    )
    # A test image without a label can be neither scored nor trained on.
    rest = _without_copies(set(examples["example_id"]), of=test, examples=examples) - in_test
    validation = _draw_per_class(
        rest & known, label, share=validation_fraction, seed=derive_seed(seed, "validation")
    )
    return test, validation, _without_copies(rest, of=validation, examples=examples)


def _check_class_names(excluded: Collection[str], class_names: Sequence[str]) -> None:
    name = "transfer_split.transfer.excluded_classes"
    for class_name in excluded:
        if class_name not in class_names:
            legal = class_names if len(class_names) <= 20 else None
            raise ParameterError(name, "name classes of the images", class_name, legal=legal)
    if set(excluded) >= set(class_names):
        raise ParameterError(name, "leave at least one class", list(excluded))


def _draw_teacher(
    ids: Collection[int],
    label: Mapping[int, int],
    class_names: Sequence[str],
    *,
    labels_per_class: int | None,
    fraction: float | None,
    seed: int,
) -> set[int]:
    """The teacher's examples, some of every class."""
    if labels_per_class is not None:
        return _draw_count_per_class(ids, label, class_names, count=labels_per_class, seed=seed)
    teacher = _draw_share(ids, label, fraction or 1.0, seed)
    taught = {int(label[e]) for e in teacher}
    missing = [name for index, name in enumerate(class_names) if index not in taught]
    if missing:
        rule = "leave the teacher an example of every class, beside test and validation"
        raise ParameterError("transfer_split.teacher", rule, f"none of {', '.join(missing[:5])}")
    return teacher


def _order(ids: Collection[int], seed: int) -> list[int]:
    """Ids in the order of their hashes."""
    tensor = torch.tensor(sorted(ids), dtype=torch.int64)
    keys = random_bits(tensor, stream=seed)
    return [int(e) for e in tensor[torch.argsort(keys, stable=True)]]


def _by_class(ids: Collection[int], label: Mapping[int, int], seed: int) -> dict[object, list[int]]:
    classes: dict[object, list[int]] = {}
    for example_id in _order(ids, seed):
        value = label[example_id]
        classes.setdefault(None if pd.isna(value) else int(value), []).append(example_id)
    return classes


def _draw_per_class(
    ids: Collection[int], label: Mapping[int, int], *, share: float, seed: int
) -> set[int]:
    """A share of each class, but one at least; of a class of one, nothing below a share of 1."""
    drawn: set[int] = set()
    for ordered in _by_class(ids, label, seed).values():
        count = max(1, math.floor(share * len(ordered) + 0.5))
        if share < 1:
            count = min(count, len(ordered) - 1)
        drawn.update(ordered[:count])
    return drawn


def _draw_share(
    ids: Collection[int], label: Mapping[int, int], share: float, seed: int
) -> set[int]:
    return set(ids) if share == 1 else _draw_per_class(ids, label, share=share, seed=seed)


def _draw_count_per_class(
    ids: Collection[int],
    label: Mapping[int, int],
    class_names: Sequence[str],
    *,
    count: int,
    seed: int,
) -> set[int]:
    classes = _by_class(ids, label, seed)
    for index, class_name in enumerate(class_names):
        if (have := len(classes.get(index, []))) < count:
            rule = f"be at most the {have} labelled training examples of class {class_name!r}"
            raise ParameterError("transfer_split.teacher.labels_per_class", rule, count)
    return {e for ordered in classes.values() for e in ordered[:count]}


def _without_copies(ids: set[int], *, of: set[int], examples: pd.DataFrame) -> set[int]:
    """Ids outside `of` whose pixels are not those of any example in it."""
    hashes = dict(zip(examples["example_id"], examples["content_hash"], strict=True))
    taken = {hashes[e] for e in of}
    copies = {e for e in ids - of if hashes[e] in taken}
    if copies:
        logger.warning(
            "%d examples have the very pixels of a held-out example and are left out of "
            "training, first ids %s",
            len(copies),
            sorted(copies)[:3],
        )
    return ids - of - copies


def _rows(role: str, ids: set[int], *, use_label: set[int], for_student: set[int]) -> pd.DataFrame:
    ordered = sorted(ids)
    return pd.DataFrame(
        {
            "example_id": np.array(ordered, dtype=np.int64),
            "role": role,
            "use_label": [e in use_label for e in ordered],
            "for_student": [e in for_student for e in ordered],
        }
    )
