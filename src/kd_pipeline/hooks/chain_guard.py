"""Looks ahead along a chain: what its last hop would refuse is refused before the first trains."""

from typing import TYPE_CHECKING, Any

from kedro.io import CatalogProtocol

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.soft_target_guard import check_top_k
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.block_settings import ChainParams, StudentParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.training.data import TrainingData


def check_hops(data: "TrainingData", catalog: CatalogProtocol[Any, Any]) -> None:
    """Build every hop's model, and see whether its teacher's cache can serve it.

    Raises:
        ParameterError: Naming the hop and its parameter, `chain.hops.<name>...`, or the views
            where they are fresh in every pass: no cache holds those.
    """
    from kd_pipeline.training.checks import check_student
    from kd_pipeline.training.settings import TrainingSettings

    chain = ChainParams.model_validate(catalog.load("params:chain"))
    student = StudentParams.model_validate(catalog.load("params:student"))
    caching = SoftTargetCachingParams.model_validate(catalog.load("params:soft_target_caching"))
    reading = SoftTargetsParams.model_validate(catalog.load("params:soft_targets"))
    ViewsParams.model_validate(catalog.load("params:views")).num_cached_views()
    for hop in chain.hops:
        block = f"chain.hops.{hop.name}"
        training = (hop.training or student.training).model_dump(mode="json")
        model = hop.model.model_dump(mode="json")
        check_student(data, model=model, settings=TrainingSettings(**training), block=block)
        check_top_k(block, hop, caching)
    _check_members(chain, caching, reading)


def _check_members(
    chain: ChainParams, caching: SoftTargetCachingParams, reading: SoftTargetsParams
) -> None:
    teaching = chain.hops[:-1]
    if caching.top_k is not None and (many := [hop for hop in teaching if hop.num_members > 1]):
        rule = "be 1 where `soft_target_caching.top_k` is set: such caches cannot be mixed"
        raise ParameterError(f"chain.hops.{many[0].name}.num_members", rule, many[0].num_members)
    gate, weights = caching.min_validation_accuracy, reading.member_weights
    if teaching and gate is not None and weights is not None:
        rule = "be null in a chain with `soft_target_caching.min_validation_accuracy`, which "
        raise ParameterError(
            "soft_targets.member_weights", f"{rule}measures every hop's teacher", list(weights)
        )
