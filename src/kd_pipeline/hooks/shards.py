"""Whether a run is one shard of the labelling."""

from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.guards import load_block
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.shards import find_shard
from kd_pipeline.soft_targets.shards import Shard

IN_SHARDS = "in_shards"
"""Tag of the nodes that a run of shards may name: those that label, and those after them."""
_PARTS = "soft_target_parts"
_CACHING = "soft_target_caching"


def shard_of_run(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> Shard | None:
    """The shard that this run labels; None if it labels nothing, or alone.

    Raises:
        ParameterError: If the run has other stages, which each process would run too.
    """
    labelling = [n for n in pipeline.nodes if any(i.split(".")[-1] == _PARTS for i in n.inputs)]
    if not labelling or f"params:{_CACHING}" not in catalog:
        return None
    shard = find_shard(load_block(catalog, _CACHING, SoftTargetCachingParams))
    in_shards = all(IN_SHARDS in node.tags for node in pipeline.nodes)
    if shard is not None and not (in_shards and len(labelling) == 1):
        rule = "be 1 in a run of more than one teacher's soft_target_caching"
        raise ParameterError(f"{_CACHING}.num_shards", rule, shard.count)
    return shard
