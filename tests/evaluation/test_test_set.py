"""Reading the test set along a chain: each role is held against the one that it learnt from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.evaluation.test_set import TestReader, describe_models, read_test_set
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.soft_targets.ensemble import Mixing

SETTINGS: dict[str, Any] = {"batch_size": 16, "device": "cpu", "precision": "float32"}
Data = tuple[ImageSet, pd.DataFrame, pd.DataFrame]


def make_model(seed: int) -> ModelCheckpoint:
    arguments = {"hidden": [4]}
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.25,))
    untrained = build_untrained(
        architecture="mlp",
        arguments=arguments,
        preprocessing=preprocessing,
        num_classes=3,
        seed=seed,
    )
    names = ("low", "middle", "high")
    return snapshot(untrained, architecture="mlp", arguments=arguments, class_names=names, facts={})


@pytest.fixture
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> Data:
    return images, examples, splits


def measure(
    data: Data, students: Mapping[str, Sequence[ModelCheckpoint]], **settings: Any
) -> pd.DataFrame:
    reader = TestReader(*data, num_bins=5, **SETTINGS)
    teacher = [make_model(0)]
    _, metrics = read_test_set(reader, teacher, students, mixing=Mixing(), **settings)
    return metrics.set_index(["role", "replicate"])["test/teacher_agreement"]


def test_agreement_is_with_the_role_learnt_from(data: Data) -> None:
    same = make_model(7)
    students = {"assistant": [same], "small": [same]}
    along = measure(data, students, learnt_from={"assistant": "teacher", "small": "assistant"})
    assert along["assistant", 0] < 1
    assert along["small", 0] == 1
    direct = measure(data, students)
    assert direct["small", 0] == direct["assistant", 0] == along["assistant", 0]


def test_a_role_of_several_models_teaches_as_their_mixture(data: Data) -> None:
    members = [make_model(1), make_model(2), make_model(3)]
    told = {"assistants": "teacher", "small": "assistants"}
    agreement = measure(data, {"assistants": members, "small": members[:1]}, learnt_from=told)
    ids = ids_with_role(data[2], "test")
    logits = [build_classifier(member)(data[0].take(ids)) for member in members]
    mixed = sum(logits[1:], logits[0]).argmax(dim=1)
    assert agreement["small", 0] == pytest.approx((logits[0].argmax(dim=1) == mixed).float().mean())


def test_models_are_named_and_validated_without_the_test_set(data: Data) -> None:
    images, examples, splits = data
    hidden = examples.assign(label=examples["label"].astype("Int64"))
    hidden.loc[hidden["example_id"].isin(ids_with_role(splits, "test")), "label"] = pd.NA
    models = {"teacher": [make_model(0), make_model(1)], "small": [make_model(2), make_model(3)]}
    table = describe_models(images, hidden, splits, models, mixing=Mixing(), **SETTINGS)
    assert table[["role", "replicate", "num_members"]].to_numpy().tolist() == [
        ["teacher", 0, 2],
        ["small", 0, 1],
        ["small", 1, 1],
    ]
    assert set(table["architecture"]) == {'mlp {"hidden": [4]}'}
    ids = ids_with_role(splits, "validation")
    labels = examples.set_index("example_id").loc[ids, "label"].to_numpy(int)
    decided = build_classifier(models["small"][1])(images.take(ids)).argmax(dim=1).numpy()
    found = table["validation_accuracy"].iloc[2]
    assert found == pytest.approx((decided == labels).mean())
    assert not math.isnan(found)


def test_models_without_labelled_validation_rows_are_named_all_the_same(data: Data) -> None:
    images, examples, splits = data
    hidden = examples.assign(label=examples["label"].astype("Int64"))
    hidden.loc[hidden["example_id"].isin(ids_with_role(splits, "validation")), "label"] = pd.NA
    models = {"teacher": [make_model(0)], "small": [make_model(1)]}
    table = describe_models(images, hidden, splits, models, mixing=Mixing(), **SETTINGS)
    assert table["role"].tolist() == ["teacher", "small"]
    assert table["validation_accuracy"].isna().all()
    without = splits[splits["role"] != "validation"]
    table = describe_models(images, examples, without, models, mixing=Mixing(), **SETTINGS)
    assert table["validation_accuracy"].isna().all()
