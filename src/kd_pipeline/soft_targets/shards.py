"""Which process makes which parts of a store, where several label it together."""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_pipeline.soft_targets.manifest import Part

_NUM_SHOWN = 8
_COMMAND = "`kedro run --pipelines=soft_target_caching`"


@dataclass(frozen=True)
class Shard:
    """One process of several that make disjoint parts of one store."""

    index: int
    count: int
    """Of processes; more than there are parts leaves some without any."""

    @property
    def name(self) -> str:
        """As `0-of-4`."""
        return f"{self.index}-of-{self.count}"

    def of(self, layout: Sequence["Part"]) -> Sequence["Part"]:
        """Its parts: a run of the layout, so that it loads as few members as can be.

        Runs differ by one part at most. Were parts dealt out in turn, the short last part of every
        view could always be the same shard's.
        """
        start, stop = (len(layout) * at // self.count for at in (self.index, self.index + 1))
        return layout[start:stop]

    def describe_missing(
        self, layout: Sequence["Part"], there: Iterable[str], at_work: Container[str]
    ) -> str:
        """How many parts are there, how many are missing, and which shards make those.

        Args:
            layout: All parts.
            there: Files of those that are made.
            at_work: Names of the shards whose processes run.
        """
        found = set(there)
        shards = (Shard(index, self.count) for index in range(self.count))
        left = {one: sum(part.file not in found for part in one.of(layout)) for one in shards}
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
