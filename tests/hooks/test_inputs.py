"""Data sets as MLflow lists them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import split_fingerprint
from kd_pipeline.evaluation.test_set import describe_test_set
from kd_pipeline.hooks.inputs import describe_inputs, fingerprint_of_test_set

IMAGES = SimpleNamespace(
    example_ids=np.arange(4),
    pixels=np.zeros((4, 1, 8, 8), np.uint8),
    class_names=("cat", "dog"),
    fingerprint="0123456789abcdef",
)
SPLITS = pd.DataFrame(
    {
        "example_id": [0, 1, 2],
        "role": ["teacher_train", "test", "test"],
        "use_label": [True, True, True],
        "for_student": [True, False, False],
    }
)


def test_images_and_splits_are_identified_by_their_digests() -> None:
    examples = pd.DataFrame({"source": ["digits/0", "digits/1"]})
    inputs = {"images": IMAGES, "examples": examples, "splits": SPLITS, "params:student": object()}
    images, splits = describe_inputs(inputs, context="training")
    assert (images.name, images.digest, images.context) == (
        "digits",
        "0123456789abcdef",
        "training",
    )
    assert images.profile == {"num_images": 4, "shape": [1, 8, 8], "num_classes": 2}
    assert (splits.name, splits.digest) == ("splits", split_fingerprint(SPLITS))
    assert splits.profile == {"teacher_train": 1, "test": 2}


def test_test_images_have_a_name_of_their_own() -> None:
    """MLflow keeps one purpose per run and data set: the second would be dropped in silence."""
    (images,) = describe_inputs({"images": IMAGES}, context="evaluation")
    assert images.name == "images-test"


def test_a_node_without_data_has_no_facts() -> None:
    assert describe_inputs({"params:x": 1}, context="training") == []


def test_a_folder_of_images_has_no_name_of_its_own() -> None:
    examples = pd.DataFrame({"source": ["cat/0.png", "dog/0.png"]})
    inputs = {"images": IMAGES, "examples": examples}
    (images,) = describe_inputs(inputs, context="training")
    assert images.name == "images"


def test_the_test_sets_fingerprint_is_that_of_exported_students(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, data: LabelledImages
) -> None:
    inputs = {"images": images, "examples": examples, "splits": splits, "params": object()}
    expected = describe_test_set(data)["test_fingerprint"]
    assert fingerprint_of_test_set(inputs) == expected
    swapped = splits.assign(
        role=splits["role"].replace({"test": "validation", "validation": "test"})
    )
    assert fingerprint_of_test_set({**inputs, "splits": swapped}) != expected
