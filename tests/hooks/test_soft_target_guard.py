"""Soft targets that no arm could learn from are refused before the first node runs."""

from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.soft_target_guard import check_soft_targets
from kd_pipeline.pipeline_registry import register_pipelines

TRAINING = {"num_epochs": 1}
BLOCKS: dict[str, dict[str, Any]] = {
    "views": {},
    "soft_targets": {},
    "soft_target_caching": {},
    "teacher": {"model": {"name": "mlp"}, "training": TRAINING},
    "student_kd": {"soft_weight": 1.0},
    "student_pseudo": {"soft_weight": 1.0, "soft_loss": "pseudo_label"},
    "student_live": {"soft_weight": 1.0},
}
FRESH = {"views": {"num_views": None, "transforms": [{"name": "horizontal_flip"}]}}
TOP_K = {"soft_target_caching": {"top_k": 3, "temperature": 4.0}}
LOGITS = {"num_members": 1, "given": [{"kind": "logits", "file": "logits.npz"}]}


def check(pipeline: str, **changes: dict[str, Any]) -> None:
    blocks = {name: block | changes.get(name, {}) for name, block in BLOCKS.items()}
    entries = {f"params:{name}": MemoryDataset(block) for name, block in blocks.items()}
    check_soft_targets(register_pipelines()[pipeline], DataCatalog(entries))


@pytest.mark.parametrize(
    "pipeline", ["distill", "distill_live", "soft_target_caching", "data_ingest", "chain"]
)
def test_what_fits_is_let_through(pipeline: str) -> None:
    check(pipeline)


def test_fresh_views_are_refused_where_a_cache_is_made_or_read() -> None:
    for pipeline in ("distill", "soft_target_caching", "student_distillation"):
        with pytest.raises(ParameterError, match=r"`views\.num_views` must"):
            check(pipeline, **FRESH)
    check("distill_live", **FRESH)


def test_an_arm_that_a_top_k_cache_cannot_serve_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"`student_kd\.temperature` must be 4"):
        check("distill", **TOP_K)
    mse = {"student_kd": {"soft_loss": "logit_mse"}}
    with pytest.raises(ParameterError, match=r"`student_kd\.soft_loss` must not need every logit"):
        check("distill", **TOP_K, **mse)
    check("distill", **TOP_K, student_kd={"temperature": 4.0})
    check("soft_target_caching", **TOP_K)  # No arm is trained in this run.


def test_members_that_a_cache_cannot_mix_are_refused() -> None:
    several = {"teacher": {"num_members": 2}}
    with pytest.raises(ParameterError, match=r"`soft_target_caching\.top_k` must be null"):
        check("soft_target_caching", **TOP_K, **several)
    with pytest.raises(ParameterError, match=r"`soft_targets\.member_weights` must have one"):
        check("distill", **several, soft_targets={"member_weights": [1.0]})
    check("distill", **several, soft_targets={"member_weights": [1.0, 2.0]})


def test_imported_logits_cannot_teach_live() -> None:
    with pytest.raises(ParameterError, match=r"`teacher\.given\.kind` must be a model"):
        check("distill_live", teacher=LOGITS)
    check("distill", teacher=LOGITS)
