"""The verifying node: an honest cache is reported on, one of other splits is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.labelling.members import Member, read_given_logits
from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.pipelines.verify_soft_targets.nodes import verify_soft_targets
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.training.settings import TeacherParams, Training
from kd_pipeline.views.settings import ViewsParams

CACHING = SoftTargetCachingParams(batch_size=30, device="cpu")
VIEWS = ViewsParams(seed=3, num_views=2, transforms=[{"name": "shift", "max_pixels": 2}])


@pytest.fixture
def given(
    tables: dict[str, Any],
    data: LabelledImages,
    untrained: Callable[..., ModelCheckpoint],
    tmp_path: Path,
) -> Callable[..., dict[str, Any]]:
    """What the node takes: a cache, its teacher, and another batch size than it was made with."""

    def make(
        member: Member | None = None, views: ViewsParams = VIEWS, **changes: Any
    ) -> dict[str, Any]:
        member = member or untrained()
        parts = PartsFolder(tmp_path / "soft_targets")
        return tables | {
            "soft_targets": label_transfer_set([member], data, parts, CACHING, views),
            "checkpoints": [member],
            "params": SoftTargetVerificationParams(seed=3, num_rows=10),
            "teacher": TeacherParams(model=Model(name="mlp"), training=Training(num_epochs=1)),
            "caching": CACHING.model_copy(update={"batch_size": 7}),
            "views": views,
            **changes,
        }

    return make


def test_the_report_is_plain_data(given: Callable[..., dict[str, Any]]) -> None:
    arguments = given()
    report = verify_soft_targets(**arguments)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["rows"], report["seed"], report["arithmetic"]) == (10, 3, "float32")
    worst = report["worst"]
    assert worst["absolute_difference"] <= worst["tolerance"]
    assert worst["example_id"] in arguments["soft_targets"].example_ids
    assert report["worst_absolute_difference"] < 1e-3


def test_logits_computed_elsewhere_are_compared_with_their_file(
    given: Callable[..., dict[str, Any]],
    data: LabelledImages,
    write_logits: Callable[..., TeacherParams],
) -> None:
    ids = data.ids("transfer")
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    teacher = write_logits(ids, logits, data.images.class_names)
    (member,) = read_given_logits(teacher.given_logits, data)
    arguments = given(member, ViewsParams(), checkpoints=[], teacher=teacher)
    assert verify_soft_targets(**arguments)["rows"] == 10


def test_other_splits_are_refused(given: Callable[..., dict[str, Any]]) -> None:
    arguments = given()
    splits = arguments["splits"]
    first = splits.index[np.flatnonzero(splits["role"] == "transfer")[0]]
    with pytest.raises(StaleArtefactError, match="do not match this run's splits"):
        verify_soft_targets(**arguments | {"splits": splits.drop(index=first)})
