"""Looks ahead at soft targets: what settings alone can show is refused before the first node."""

from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.training_guard import SOFT_TARGETS, TEACHER, training_nodes
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.losses.tails import check_tail
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.block_settings import ArmParams, ChainHop, TeacherParams
from kd_pipeline.views.settings import ViewsParams


def check_soft_targets(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    """Refuse a cache that its arms could not learn from, and a teacher that cannot run live.

    Kedro trains the arms without a teacher first: what is refused later costs all of them.

    Raises:
        ParameterError: Naming the parameter.
    """
    made = SOFT_TARGETS in pipeline.all_outputs()
    arms = {
        str(node.namespace): node.inputs
        for node in training_nodes(pipeline)
        if f"params:{node.namespace}" in node.inputs and node.namespace != "teacher"
    }
    cached = [arm for arm, inputs in arms.items() if SOFT_TARGETS in inputs]
    live = [arm for arm, inputs in arms.items() if TEACHER in inputs]
    if made or cached:
        ViewsParams.model_validate(catalog.load("params:views")).num_cached_views()
    if made:
        caching = SoftTargetCachingParams.model_validate(catalog.load("params:soft_target_caching"))
        for arm in cached:
            check_top_k(arm, ArmParams.model_validate(catalog.load(f"params:{arm}")), caching)
        _check_members(caching, catalog)
    if live:
        _check_live(live[0], catalog)


def check_top_k(block: str, taught: ArmParams | ChainHop, caching: SoftTargetCachingParams) -> None:
    """Refuse a loss or temperature that a top-k cache cannot serve.

    Args:
        block: Of the parameters of an arm or hop, for the error.
        taught: Whose soft targets are to come from the cache.
        caching: How the cache is made; a dense one serves all.

    Raises:
        ParameterError: Naming the parameter within the block.
    """
    if caching.temperature is None:
        return
    try:
        check_tail(taught.soft_loss, taught.temperature, cached_at=caching.temperature)
    except ParameterError as error:
        raise error.within(block) from error


def _check_members(caching: SoftTargetCachingParams, catalog: CatalogProtocol[Any, Any]) -> None:
    num_members = TeacherParams.model_validate(catalog.load("params:teacher")).num_members
    if caching.top_k is not None and num_members > 1:
        rule = "be null for a teacher of several members: a top-k cache cannot be mixed"
        raise ParameterError("soft_target_caching.top_k", rule, caching.top_k)
    reading = SoftTargetsParams.model_validate(catalog.load("params:soft_targets"))
    if reading.member_weights is not None and len(reading.member_weights) != num_members:
        rule = f"have one weight for each of the teacher's {num_members} members"
        weights = list(reading.member_weights)
        raise ParameterError("soft_targets.member_weights", rule, weights)


def _check_live(arm: str, catalog: CatalogProtocol[Any, Any]) -> None:
    given = TeacherParams.model_validate(catalog.load("params:teacher")).given
    if kinds := [entry.kind for entry in given if entry.kind == "logits"]:
        rule = f"be a model where {arm} learns from a live teacher: imported logits see no pixels"
        raise ParameterError("teacher.given.kind", rule, kinds[0])
