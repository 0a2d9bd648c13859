"""The roles of examples: deterministic, stratified splits keyed by seed and example id."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kd_pipeline.data.settings import TeacherShare, TransferSplitParams
from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.randomness import derive_seed, random_bits

ROLES = ("teacher_train", "transfer", "validation", "test")
COLUMNS = ("example_id", "role", "use_label", "for_student")

_ROWS_AT_ONCE = 65_536
_SUMMARY_COLUMNS = frozenset({"role", "examples", "labels_used", "for_students", "unlabelled"})
"""Of a table, as text."""

logger = logging.getLogger(__name__)


def split_examples(
    examples: pd.DataFrame, class_names: Sequence[str], params: TransferSplitParams
) -> pd.DataFrame:
    """Give every example its role or roles.

    The examples of a class are drawn in the order of a hash of (seed, purpose, example id), so that
    added images move few others. A copy of a test or validation image gets no other role.

    Returns:
        The table `splits`: `example_id` int64, `role`, `use_label` and `for_student` bool; rows in
        the order of `ROLES` and ids.

    Raises:
        ParameterError: If a count or name does not fit the examples.
    """
    excluded = _labels_of(params.transfer.excluded_classes, class_names)
    # What follows copies the table several times: without its texts, but for the hashes.
    drawn = examples[["example_id", "label", "partition", "content_hash"]]
    test, validation, pool = _hold_out(drawn.set_index("example_id").sort_index(), params)
    seed = derive_seed(params.seed, "teacher")
    teacher = _draw_teacher(_labelled(pool), class_names, params.teacher, seed=seed)
    allowed = pool[~pool["label"].isin(excluded)]
    transfer = _draw_transfer(allowed, teacher, params)
    usable = pool if params.transfer.labelled else teacher
    tables = [
        _rows("teacher_train", teacher, use_label=teacher, for_student=allowed),
        _rows("transfer", transfer, use_label=_labelled(usable), for_student=transfer),
        _rows("validation", validation, use_label=validation, for_student=None),
        _rows("test", test, use_label=test, for_student=None),
    ]
    return check_splits(pd.concat(tables, ignore_index=True))


def check_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the splits if they do not leak: the catalog's validator.

    Raises:
        DataError: If validation or test share an example with another role, a row is double, a
            role is unknown or empty, or a held-out row is open to students.
    """
    if tuple(splits.columns) != COLUMNS:
        raise DataError(f"splits must have the columns {COLUMNS}, got {tuple(splits.columns)}")
    unknown = set(splits["role"]) - set(ROLES)
    missing = set(ROLES) - set(splits["role"])
    if unknown or missing:
        raise DataError(f"splits must have the roles {ROLES}: unknown {unknown}, empty {missing}")
    if splits.duplicated(["example_id", "role"]).any():
        raise DataError("splits must name an example once in a role, got it twice")
    test, validation = ids_with_role(splits, "test"), ids_with_role(splits, "validation")
    training = splits.loc[splits["role"].isin(["teacher_train", "transfer"]), "example_id"]
    for name, shared in (
        ("test and training", np.intersect1d(test, training)),
        ("validation and training", np.intersect1d(validation, training)),
        ("test and validation", np.intersect1d(test, validation)),
    ):
        if len(shared):
            raise DataError(f"{name} must be disjoint: {len(shared)} shared, {shared[:3].tolist()}")
    held_out = splits["role"].isin(["validation", "test"])
    if splits.loc[held_out, "for_student"].any():
        raise DataError("splits must keep validation and test rows from the students' training")
    return splits


def split_fingerprint(splits: pd.DataFrame) -> str:
    """16 hex digits over the table's rows."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        values = splits[column] if column == "role" else splits[column].astype("int64")
        for start in range(0, len(values), _ROWS_AT_ONCE):
            lines = "\n".join(map(str, values.iloc[start : start + _ROWS_AT_ONCE].tolist()))
            digest.update(("\n" * (start > 0) + lines).encode())
    return digest.hexdigest()[:16]


def ids_with_role(splits: pd.DataFrame, role: str) -> NDArray[np.int64]:
    """Example ids of one role, ascending."""
    return np.sort(splits.loc[splits["role"] == role, "example_id"].to_numpy(np.int64))


def count_training_examples(splits: pd.DataFrame) -> int:
    """Number of examples that the teacher or the students may train on, labelled or not."""
    return int(
        splits.loc[splits["role"].isin(["teacher_train", "transfer"]), "example_id"].nunique()
    )


def student_rows(splits: pd.DataFrame) -> pd.DataFrame:
    """The rows open to students: example_id, ascending, use_label (in any role), in_transfer."""
    rows = splits[splits["for_student"]]
    rows = rows.assign(in_transfer=rows["role"] == "transfer")
    return rows.groupby("example_id")[["use_label", "in_transfer"]].any().reset_index()


def summarise_splits(
    splits: pd.DataFrame, examples: pd.DataFrame, class_names: Sequence[str]
) -> pd.DataFrame:
    """Count the examples of each role: all, those whose labels are used, and those of each class.

    Returns:
        Columns role, examples, labels_used, for_students, one per class, and `unlabelled` if any;
        a class of such a name has "(class)" behind it.
    """
    named = splits.merge(examples[["example_id", "class_name"]], on="example_id")
    column_of = {c: f"{c} (class)" if c in _SUMMARY_COLUMNS else c for c in class_names}
    named["class_name"] = named["class_name"].map(column_of).fillna("unlabelled")
    classes = pd.crosstab(named["role"], named["class_name"])
    columns = [*column_of.values(), *(["unlabelled"] if "unlabelled" in classes else [])]
    totals = named.groupby("role").agg(
        examples=("example_id", "size"),
        labels_used=("use_label", "sum"),
        for_students=("for_student", "sum"),
    )
    table = totals.join(classes.reindex(columns=columns, fill_value=0))
    return table.reindex(list(ROLES)).reset_index()


# Below, examples are rows of the table `examples`, indexed by example id, ascending.


def _labels_of(excluded: Sequence[str], class_names: Sequence[str]) -> list[int]:
    name = "transfer_split.transfer.excluded_classes"
    if unknown := [class_name for class_name in excluded if class_name not in class_names]:
        legal = class_names if len(class_names) <= 20 else None
        raise ParameterError(name, "name classes of the images", unknown[0], legal=legal)
    if set(excluded) >= set(class_names):
        raise ParameterError(name, "leave at least one class", list(excluded))
    return [class_names.index(class_name) for class_name in excluded]


def _hold_out(
    examples: pd.DataFrame, params: TransferSplitParams
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Test, validation, and the pool that is left, free of copies of either."""
    in_test = examples[examples["partition"] == "test"]
    test = _labelled(in_test)
    if test.empty:
        seed = derive_seed(params.seed, "test")
        test = _draw_per_class(_labelled(examples), params.test_fraction, seed=seed)
    # A test image without a label can be neither scored nor trained on.
    rest = _without(_without_copies(examples, of=test), in_test)
    seed = derive_seed(params.seed, "validation")
    validation = _draw_per_class(_labelled(rest), params.validation_fraction, seed=seed)
    return test, validation, _without_copies(rest, of=validation)


def _draw_teacher(
    labelled: pd.DataFrame, class_names: Sequence[str], share: TeacherShare, *, seed: int
) -> pd.DataFrame:
    """The teacher's examples, some of every class."""
    sizes = labelled["label"].value_counts()
    if isinstance(count := share.labels_per_class, int):
        for label, class_name in enumerate(class_names):
            if (have := sizes.get(label, 0)) < count:
                rule = f"be at most the {have} labelled training examples of class {class_name!r}"
                raise ParameterError("transfer_split.teacher.labels_per_class", rule, count)
        shuffled = _shuffled(labelled, seed=seed)
        return shuffled[shuffled.groupby("label").cumcount() < count].sort_index()
    teacher = _draw_per_class(labelled, share.fraction or 1.0, seed=seed)
    drawn = set(teacher["label"])
    if missing := [name for label, name in enumerate(class_names) if label not in drawn]:
        rule = "leave the teacher an example of every class, beside test and validation"
        raise ParameterError("transfer_split.teacher", rule, f"none of {', '.join(missing[:5])}")
    return teacher


def _draw_transfer(
    allowed: pd.DataFrame, teacher: pd.DataFrame, params: TransferSplitParams
) -> pd.DataFrame:
    relation, of_teacher = params.transfer.relation, allowed.index.isin(teacher.index)
    if relation != "overlapping":
        allowed = allowed[of_teacher if relation == "equal" else ~of_teacher]
    seed = derive_seed(params.seed, "transfer")
    transfer = _draw_per_class(allowed, params.transfer.fraction, seed=seed)
    if transfer.empty:
        rule = "leave at least one example in the transfer set"
        raise ParameterError("transfer_split.transfer", rule, relation)
    return transfer


def _draw_per_class(examples: pd.DataFrame, share: float, *, seed: int) -> pd.DataFrame:
    """A share of each class, at least one and, below a share of 1, not all of them.

    Examples without a label count as a class.
    """
    shuffled = _shuffled(examples, seed=seed)
    classes = shuffled.groupby("label", dropna=False)
    sizes = classes["partition"].transform("size")
    counts = np.maximum(1, np.floor(share * sizes + 0.5))
    if share < 1:
        counts = np.minimum(counts, sizes - 1)
    return shuffled[classes.cumcount() < counts].sort_index()


def _shuffled(examples: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Examples in the order of the hashes of their ids."""
    keys = random_bits(torch.tensor(examples.index.to_numpy(np.int64)), stream=seed)
    return examples.iloc[torch.argsort(keys).numpy()]


def _labelled(examples: pd.DataFrame) -> pd.DataFrame:
    return examples[examples["label"].notna()]


def _without(examples: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    return examples[~examples.index.isin(others.index)]


def _without_copies(examples: pd.DataFrame, *, of: pd.DataFrame) -> pd.DataFrame:
    """Examples outside `of` whose pixels are not those of any example in it."""
    rest = _without(examples, of)
    copies = rest["content_hash"].isin(of["content_hash"])
    if copies.any():
        logger.warning(
            "%d examples are copies of a held-out one and are left out of training, first ids %s",
            copies.sum(),
            rest.index[copies][:3].tolist(),
        )
    return rest[~copies]


def _rows(
    role: str, examples: pd.DataFrame, *, use_label: pd.DataFrame, for_student: pd.DataFrame | None
) -> pd.DataFrame:
    ids = examples.index
    return pd.DataFrame(
        {
            "example_id": ids.to_numpy(np.int64),
            "role": role,
            "use_label": ids.isin(use_label.index),
            "for_student": False if for_student is None else ids.isin(for_student.index),
        }
    )
