"""LabelledImages: ids by role, labels where there are any, and the facts of its provenance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.dataset import NO_LABEL, LabelledImages, without_test_labels
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import split_fingerprint
from kd_pipeline.errors import DataError


@pytest.fixture
def data() -> LabelledImages:
    ids = np.array([2, 3, 5, 7], dtype=np.int64)
    labels = pd.array([1, None, 0, 1], dtype="Int64")
    names = pd.array(["b", None, "a", "b"], dtype="string")
    images = ImageSet(ids, np.zeros((4, 1, 2, 2), dtype=np.uint8), ("a", "b"))
    splits = pd.DataFrame(
        {
            "example_id": [7, 3, 2, 5],
            "role": ["transfer", "transfer", "test", "transfer"],
            "use_label": False,
            "for_student": True,
        }
    )
    examples = pd.DataFrame({"example_id": ids, "label": labels, "class_name": names})
    return LabelledImages(images, examples, splits)


def relabelled(data: LabelledImages, example_id: int) -> LabelledImages:
    """The same data with one example, which has a label, in the other class."""
    examples = data.examples.copy()
    row = examples["example_id"] == example_id
    label = 1 - examples.loc[row, "label"].item()
    examples.loc[row, "label"] = label
    examples.loc[row, "class_name"] = data.images.class_names[label]
    return replace(data, examples=examples)


def test_labels_are_in_the_order_of_the_ids(data: LabelledImages) -> None:
    assert data.labels_of([7, 3, 5]).tolist() == [1, NO_LABEL, 0]
    assert data.labels_of([]).tolist() == []


def test_labelled_rows_of_a_role(data: LabelledImages) -> None:
    assert data.ids("transfer").tolist() == [3, 5, 7]
    ids, labels = data.labelled("transfer")
    assert ids.tolist() == [5, 7]
    assert labels.tolist() == [0, 1]
    assert [len(part) for part in data.labelled("validation")] == [0, 0]


def test_labels_that_are_used_are_in_the_provenance_of_what_learns_from_them(
    data: LabelledImages,
) -> None:
    """Example 2 is a test image; of the transfer set only what may be used counts."""
    splits = data.splits.assign(use_label=data.splits["example_id"] == 5)
    data = replace(data, splits=splits)
    own = data.labelled_provenance
    assert own == data.provenance | {"labels": own["labels"]}
    assert relabelled(data, 2).labelled_provenance["labels"] != own["labels"]
    assert relabelled(data, 5).labelled_provenance["labels"] != own["labels"]
    assert relabelled(data, 7).labelled_provenance == own
    assert relabelled(data, 2).provenance == data.provenance


@pytest.mark.parametrize("names", [("b", "a"), ("a",), ("a", "c")])
def test_labels_of_other_class_names_are_refused(
    data: LabelledImages, names: tuple[str, ...]
) -> None:
    """One to one as they are, they would be those of other classes in every image."""
    images = ImageSet(data.images.example_ids, data.images.pixels, names)
    with pytest.raises(DataError, match=r"`label` must be the position of `class_name`.*'[ab]'"):
        replace(data, images=images)


def test_provenance_is_of_classes_images_and_splits(data: LabelledImages) -> None:
    assert data.provenance == {
        "class_names": ["a", "b"],
        "images": data.images.fingerprint,
        "splits": split_fingerprint(data.splits),
    }


def test_labels_of_the_test_set_and_no_others_are_taken_out(data: LabelledImages) -> None:
    hidden = without_test_labels(data.examples, data.splits)
    in_test = hidden["example_id"].isin(data.ids("test"))
    assert hidden.loc[in_test, "label"].isna().all()
    rest = data.examples.loc[~in_test]
    pd.testing.assert_frame_equal(hidden.loc[~in_test], rest)
    assert list(data.ids("test")) == [2]
    assert data.examples["label"].isna().sum() == 1
