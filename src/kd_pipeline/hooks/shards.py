"""Which of several processes a run is: a shard of labelling or a sweep, or one that trains."""

from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from kd_pipeline.errors import ParameterError
from kd_pipeline.hooks.guards import load_block
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.shards import WORLD_SIZE, Shard, find_shard, launched
from kd_pipeline.sweep.settings import SweepParams

IN_SHARDS = "in_shards"
"""Tag of the nodes that a run of shards may name: those that label, and those after them."""
_PARTS = "soft_target_parts"
_CACHING = "soft_target_caching"
_CHECKPOINTS, _SWEEP = ".checkpoints", "sweep"


def labelling_shard(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> Shard | None:
    """The shard that this run labels; None if it labels nothing, or alone.

    Raises:
        ParameterError: If the run has other stages, which each process would run too.
    """
    labelling = [n for n in pipeline.nodes if any(i.split(".")[-1] == _PARTS for i in n.inputs)]
    if not labelling or f"params:{_CACHING}" not in catalog:
        return None
    shard = find_shard(load_block(catalog, _CACHING, SoftTargetCachingParams), block=_CACHING)
    in_shards = all(IN_SHARDS in node.tags for node in pipeline.nodes)
    if shard is not None and not (in_shards and len(labelling) == 1):
        rule = "be 1 in a run of more than one teacher's soft_target_caching"
        raise ParameterError(f"{_CACHING}.num_shards", rule, shard.count)
    return shard


def process_of_run(pipeline: Pipeline) -> Shard | None:
    """Which of torchrun's processes this is, in a run that trains; None where it is alone.

    Raises:
        ParameterError: If torchrun runs other stages, which each process would run too.
    """
    process = launched()
    if process is None or process.count == 1:
        return None
    if all(IN_SHARDS in node.tags or f"params:{_SWEEP}" in node.inputs for node in pipeline.nodes):
        return None
    if not all(any(o.endswith(_CHECKPOINTS) for o in node.outputs) for node in pipeline.nodes):
        rule = "be 1 in a run of more than training (or labelling): `kedro run` runs the others"
        raise ParameterError(WORLD_SIZE, rule, process.count)
    return process


def lock_of_run(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> str:
    """Which lock keeps other runs out: `0-of-4` lets the other shards of this work in, "" no run.

    Raises:
        ParameterError: If the run may not be the one of several that it is to be.
    """
    if process := process_of_run(pipeline):
        # Not the names of the labelling's shards, which write what those that train read.
        return f"{process.name}-training"
    if shard := labelling_shard(pipeline, catalog):
        return shard.name
    # Not the names of the labelling's shards, which write what those of a sweep read.
    shard = sweep_shard(pipeline, catalog)
    return f"{shard.name}-trials" if shard else ""


def is_follower(pipeline: Pipeline) -> bool:
    """Whether this process only computes: the first of those that train reports and writes."""
    process = process_of_run(pipeline)
    return process is not None and process.index > 0


def sweep_shard(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> Shard | None:
    """The shard whose trials this run is for; None if it runs none, or all.

    Raises:
        ParameterError: If the run has other stages, which each process would run too.
    """
    if f"params:{_SWEEP}" not in pipeline.inputs():
        return None
    shard = find_shard(load_block(catalog, _SWEEP, SweepParams), block=_SWEEP)
    if shard and not all(f"params:{_SWEEP}" in node.inputs for node in pipeline.nodes):
        raise ParameterError(f"{_SWEEP}.num_shards", "be 1 in a run of other stages", shard.count)
    return shard
