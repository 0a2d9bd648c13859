"""Which examples to look at: sure ones, unsure ones, and ones where teacher and label disagree."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.soft_targets.blocks import (
    Block,
    hear,
    iterate_blocks,
    readable_temperatures,
    speaker,
)
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.soft_targets.summary import labels_of

TEMPERATURES = (1.0, 4.0)
NUM_EACH = 4
CONFIDENT, UNCERTAIN, DISAGREEING = "confident", "uncertain", "against the label"


@dataclass(frozen=True)
class Pick:
    """One view of an example, and what the teacher says of it."""

    kind: str
    example_id: int
    view: int
    label: int
    """-1 where it is not known."""
    class_ids: NDArray[np.int64]
    """[shown], the most likely classes, the most likely first."""
    probabilities: dict[float, NDArray[np.float64]]
    """[shown] of these classes, by temperature."""


@dataclass
class _Best:
    """The best rows seen so far: at most one per key, ties to the smaller example id."""

    size: int
    rows: dict[int, tuple[float, int, Pick]]

    def worst_score(self) -> float:
        """A row below this cannot get in any more."""
        return -np.inf if len(self.rows) < self.size else min(r[0] for r in self.rows.values())

    def offer(self, key: int, score: float, pick: Pick) -> None:
        held = self.rows.get(key)
        if held is not None and (held[0], -held[1]) >= (score, -pick.example_id):
            return
        self.rows[key] = (score, pick.example_id, pick)
        self.rows = dict(self._ranked()[: self.size])

    def _ranked(self) -> list[tuple[int, tuple[float, int, Pick]]]:
        return sorted(self.rows.items(), key=lambda item: (-item[1][0], item[1][1]))

    def picks(self) -> list[Pick]:
        return [row[2] for _, row in self._ranked()]


def pick_examples(
    soft_targets: SoftTargets,
    labels: pd.Series,
    *,
    mixing: Mixing | None = None,
    num_each: int = NUM_EACH,
    num_classes_shown: int = 5,
) -> list[Pick]:
    """Pick rows to look at, the same ones whenever the cache is the same.

    Args:
        soft_targets: The cache.
        labels: Class index by example id.
        mixing: How a student mixes an ensemble.
        num_each: Picks of each kind at most.
        num_classes_shown: Classes per pick.

    Returns:
        Those with the widest gap between the two most likely classes, one per class; those of
        the highest entropy; and those where the teacher is surest of another class than the
        label's. No example twice within a kind.
    """
    temperatures = readable_temperatures(soft_targets, TEMPERATURES)
    best = {kind: _Best(num_each, {}) for kind in (CONFIDENT, UNCERTAIN, DISAGREEING)}
    for block in iterate_blocks(soft_targets):
        rows = _Rows(soft_targets, block, labels, mixing or Mixing(), temperatures)
        for kind, keys, scores in rows.candidates():
            limit = best[kind].worst_score()
            for at in _promising(keys, scores, limit, num_each):
                pick = rows.pick(kind, int(at), num_classes_shown)
                best[kind].offer(int(keys[at]), float(scores[at]), pick)
    return [pick for kept in best.values() for pick in kept.picks()]


class _Rows:
    """A block as the student hears it."""

    def __init__(
        self,
        soft_targets: SoftTargets,
        block: Block,
        labels: pd.Series,
        mixing: Mixing,
        temperatures: Iterable[float],
    ) -> None:
        voice = speaker(soft_targets)
        self._block = block
        self._labels = labels_of(labels, block.example_ids)
        self._opinions = {
            temperature: hear(block, voice, mixing=mixing, temperature=temperature)
            for temperature in temperatures
        }

    def candidates(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
        """Of each kind, a key [n] of which only the best is kept, and a score [n]."""
        opinion = next(iter(self._opinions.values()))
        ids, classes = self._block.example_ids, opinion.top_classes
        # Logarithms: probabilities of sure rows are all 1 in float32.
        logs = np.log(np.sort(opinion.of_classes, axis=1)[:, -2:].clip(min=1e-30).astype(float))
        margins = logs[:, -1] - logs[:, 0]
        against = (self._labels >= 0) & (self._labels != classes)
        entropies = opinion.entropies.astype(np.float64)
        return [
            (CONFIDENT, classes, np.where(against, -np.inf, margins)),
            (UNCERTAIN, ids, entropies),
            (DISAGREEING, ids, np.where(against, opinion.confidences, -np.inf)),
        ]

    def pick(self, kind: str, row: int, num_shown: int) -> Pick:
        first = next(iter(self._opinions.values()))
        order = np.argsort(-first.of_classes[row], kind="stable")[:num_shown]
        class_ids = order if first.class_ids is None else first.class_ids[row][order]
        return Pick(
            kind=kind,
            example_id=int(self._block.example_ids[row]),
            view=self._block.view,
            label=int(self._labels[row]),
            class_ids=class_ids.astype(np.int64),
            probabilities={
                temperature: opinion.of_classes[row][order].astype(np.float64)
                for temperature, opinion in self._opinions.items()
            },
        )


def _promising(
    keys: NDArray[np.int64], scores: NDArray[np.float64], limit: float, most: int
) -> NDArray[np.int64]:
    """The best row of each of the best keys, the best first."""
    rows = np.flatnonzero((scores >= limit) & np.isfinite(scores))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    _, first = np.unique(keys[rows], return_index=True)
    return np.asarray(rows[np.sort(first)][:most])
