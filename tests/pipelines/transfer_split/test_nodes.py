"""The transfer-split node hands every parameter on, and counts what it made."""

from typing import Any

import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import TransferSplitParams
from kd_pipeline.data.splits import check_splits
from kd_pipeline.pipelines.transfer_split.nodes import split_transfer_set


def split(images: ImageSet, examples: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    block = {"teacher": {"labels_per_class": 4}} | changes
    splits, _ = split_transfer_set(images, examples, TransferSplitParams.model_validate(block))
    return splits


def ids(splits: pd.DataFrame, role: str) -> set[int]:
    return set(splits.loc[splits["role"] == role, "example_id"])


def test_splits_are_checked_and_summarised(images: ImageSet, examples: pd.DataFrame) -> None:
    params = TransferSplitParams.model_validate({"teacher": {"labels_per_class": 4}})
    splits, summary = split_transfer_set(images, examples, params)
    pd.testing.assert_frame_equal(check_splits(splits), splits)
    by_role = summary.set_index("role")
    assert list(by_role.index) == ["teacher_train", "transfer", "validation", "test"]
    assert by_role.loc["teacher_train", ["examples", *images.class_names]].tolist() == [12, 4, 4, 4]
    assert by_role.loc["transfer", "labels_used"] == 12
    assert by_role.loc["test", "for_students"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"test_fraction": 0.4},
        {"validation_fraction": 0.3},
        {"teacher": {"labels_per_class": 5}},
        {"teacher": {"fraction": 0.5}},
        {"transfer": {"relation": "equal"}},
        {"transfer": {"relation": "disjoint"}},
        {"transfer": {"fraction": 0.5}},
        {"transfer": {"labelled": True}},
        {"transfer": {"excluded_classes": ["low"]}},
    ],
)
def test_every_parameter_matters(
    images: ImageSet, examples: pd.DataFrame, changes: dict[str, Any]
) -> None:
    assert not split(images, examples).equals(split(images, examples, **changes))


def test_relations_of_the_transfer_set_to_the_teachers(
    images: ImageSet, examples: pd.DataFrame
) -> None:
    equal, overlapping, disjoint = (
        split(images, examples, transfer={"relation": relation})
        for relation in ("equal", "overlapping", "disjoint")
    )
    assert ids(equal, "transfer") == ids(equal, "teacher_train")
    assert ids(overlapping, "transfer") > ids(overlapping, "teacher_train")
    assert not ids(disjoint, "transfer") & ids(disjoint, "teacher_train")
