"""Which process makes which parts of a store, where several label it together."""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from kd_pipeline.shards import Shard

if TYPE_CHECKING:
    from kd_pipeline.soft_targets.manifest import Part

_NUM_SHOWN = 8
_COMMAND = "`kedro run --pipelines=soft_target_caching`"


def parts_of(shard: Shard, layout: Sequence["Part"]) -> Sequence["Part"]:
    """A shard's parts: a run of the layout, so that it loads as few members as can be.

    Runs differ by one part at most. Were parts dealt out in turn, the short last part of every
    view could always be the same shard's.
    """
    return layout[shard.slice_of(len(layout))]


def describe_missing(
    count: int, layout: Sequence["Part"], there: Iterable[str], at_work: Container[str]
) -> str:
    """How many parts are there, how many are missing, and which shards make those.

    Args:
        count: Of shards.
        layout: All parts.
        there: Files of those that are made.
        at_work: Names of the shards whose processes run.
    """
    found = set(there)
    shards = (Shard(index, count) for index in range(count))
    left = {one: sum(part.file not in found for part in parts_of(one, layout)) for one in shards}
    missing = Counter({one.name: number for one, number in left.items() if number})
    shown = [
        f"{number} of shard {name} ({'at work' if name in at_work else 'not at work'})"
        for name, number in list(missing.items())[:_NUM_SHOWN]
    ]
    if len(missing) > _NUM_SHOWN:
        shown.append(f"more of {len(missing) - _NUM_SHOWN} other shards")
    num_missing = missing.total()
    text = f"{len(layout) - num_missing} of {len(layout)} parts are there"
    if not missing:
        return f"{text}; {_COMMAND} without shards summarises them"
    remedy = f"a shard not at work is run again, or {_COMMAND} without shards makes the rest"
    return f"{text}, {num_missing} missing: {', '.join(shown)}; {remedy}"
