"""The verifying node: an honest cache is reported on, one of other splits is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.pipelines.verify_soft_targets.nodes import verify_soft_targets
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.views import ViewPolicy
from kd_pipeline.views.settings import ViewsParams

PARAMS = SoftTargetVerificationParams(seed=3, num_rows=10)
CACHING = SoftTargetCachingParams(batch_size=7, device="cpu")
VIEWS = ViewsParams.model_validate(
    {"seed": 3, "num_views": 2, "transforms": [{"name": "shift", "max_pixels": 2}]}
)


@pytest.fixture
def teacher(images: ImageSet) -> ModelCheckpoint:
    about = {"architecture": "small_cnn", "arguments": {"channels": [4, 8]}}
    preprocessing = Preprocessing((1, 8, 8), (0.4,), (0.3,))
    classifier = build_untrained(**about, preprocessing=preprocessing, num_classes=3, seed=0)
    return snapshot(classifier, **about, class_names=images.class_names, facts={})


@pytest.fixture
def made(
    teacher: ModelCheckpoint, images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> SoftTargets:
    ids = ids_with_role(splits, "transfer")
    policy = ViewPolicy(**VIEWS.policy_arguments())
    predictor = open_predictor(teacher, images, batch_size=30, policy=policy)
    return write_soft_targets(
        tmp_path / "soft_targets",
        [[predictor.logits(ids, view=view).numpy() for view in (0, 1)]],
        ids,
        provenance=Provenance(
            images.class_names,
            (teacher.fingerprint,),
            images.fingerprint,
            split_fingerprint(splits),
            policy.description,
            2,
        ),
        facts={"precision": "float32", "device": "cpu"},
    )


def test_the_report_is_plain_data(
    made: SoftTargets, teacher: ModelCheckpoint, images: ImageSet, splits: pd.DataFrame
) -> None:
    report = verify_soft_targets(made, [teacher], images, splits, PARAMS, CACHING, VIEWS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["rows"], report["seed"], report["arithmetic"]) == (10, 3, "float32")
    worst = report["worst"]
    assert worst["absolute_difference"] <= worst["tolerance"]
    assert worst["example_id"] in made.example_ids
    assert report["worst_absolute_difference"] < 1e-3


def test_other_splits_are_refused(
    made: SoftTargets, teacher: ModelCheckpoint, images: ImageSet, splits: pd.DataFrame
) -> None:
    other = splits.drop(index=splits.index[np.flatnonzero(splits["role"] == "transfer")[0]])
    with pytest.raises(StaleArtefactError, match="do not match this run's splits"):
        verify_soft_targets(made, [teacher], images, other, PARAMS, CACHING, VIEWS)
