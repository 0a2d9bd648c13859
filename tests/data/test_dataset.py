"""LabelledImages: ids by role, labels where there are any, and the facts of its provenance."""

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.dataset import NO_LABEL, LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import split_fingerprint


@pytest.fixture
def data() -> LabelledImages:
    ids = np.array([2, 3, 5, 7], dtype=np.int64)
    labels = pd.array([1, None, 0, 1], dtype="Int64")
    images = ImageSet(ids, np.zeros((4, 1, 2, 2), dtype=np.uint8), ("a", "b"))
    splits = pd.DataFrame(
        {
            "example_id": [7, 3, 2, 5],
            "role": ["transfer", "transfer", "test", "transfer"],
            "use_label": False,
            "for_student": True,
        }
    )
    return LabelledImages(images, pd.DataFrame({"example_id": ids, "label": labels}), splits)


def test_labels_are_in_the_order_of_the_ids(data: LabelledImages) -> None:
    assert data.labels_of([7, 3, 5]).tolist() == [1, NO_LABEL, 0]
    assert data.labels_of([]).tolist() == []


def test_labelled_rows_of_a_role(data: LabelledImages) -> None:
    assert data.ids("transfer").tolist() == [3, 5, 7]
    ids, labels = data.labelled("transfer")
    assert ids.tolist() == [5, 7]
    assert labels.tolist() == [0, 1]
    assert [len(part) for part in data.labelled("validation")] == [0, 0]


def test_provenance_is_of_classes_images_and_splits(data: LabelledImages) -> None:
    assert data.provenance == {
        "class_names": ["a", "b"],
        "images": data.images.fingerprint,
        "splits": split_fingerprint(data.splits),
    }
