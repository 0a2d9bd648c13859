"""Which classes the teacher finds alike: the mass that one class's examples give to another."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.soft_targets.blocks import (
    Opinion,
    hear,
    iterate_blocks,
    readable_temperatures,
    speaker,
)
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.soft_targets.summary import labels_of

logger = logging.getLogger(__name__)

TEMPERATURE = 4.0
NUM_PAIRS = 50
NUM_EXAMPLES = 3
# The table of all pairs takes 8 bytes each: 128 MiB.
MAX_CLASSES = 4_096
COLUMNS = (
    "class_a", "class_b", "temperature", "mean_mass", "mass_a_to_b", "mass_b_to_a",
    "num_a", "num_b", "examples_a", "examples_b",
)  # fmt: skip


@dataclass(frozen=True)
class _Heard:
    """A block, with the class [n] that each of its rows counts for."""

    example_ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    opinion: Opinion


def most_confusable_pairs(
    soft_targets: SoftTargets,
    labels: pd.Series,
    *,
    mixing: Mixing | None = None,
    temperature: float = TEMPERATURE,
    num_pairs: int = NUM_PAIRS,
) -> pd.DataFrame:
    """List the pairs of classes that share most probability, the most confusable first.

    Two passes: one for the masses, and one for the examples of the pairs that are listed.

    Args:
        soft_targets: The cache; an ensemble is mixed, one of the top k read at its temperature.
        labels: Class index by example id. An example without a label counts for the teacher's
            top class.
        mixing: How a student mixes an ensemble.
        temperature: At which masses are measured.
        num_pairs: Rows at most.

    Returns:
        class_a, class_b (names), temperature, mean_mass (of both directions, by which rows are
        sorted), mass_a_to_b (mean probability that examples of a give to b), mass_b_to_a, num_a
        and num_b (rows of each class, views counted), examples_a (ids of the examples of a that
        give b most, the most first, apart by spaces) and examples_b. Empty above 4,096 classes.
    """
    names = soft_targets.manifest.provenance.class_names
    if len(names) > MAX_CLASSES:
        logger.warning("more than %d classes: no table of confusable pairs", MAX_CLASSES)
        return pd.DataFrame(columns=list(COLUMNS))
    (temperature,) = readable_temperatures(soft_targets, (temperature,))
    listen = partial(_listen, soft_targets, labels, mixing or Mixing(), temperature)
    masses, counts = _mean_masses(listen(), len(names))
    pairs = _largest(masses + masses.T, num_pairs)
    givers = _examples(listen(), [*pairs, *((b, a) for a, b in pairs)])
    rows = [
        {
            "class_a": names[a],
            "class_b": names[b],
            "temperature": temperature,
            "mean_mass": (masses[a, b] + masses[b, a]) / 2,
            "mass_a_to_b": masses[a, b],
            "mass_b_to_a": masses[b, a],
            "num_a": counts[a],
            "num_b": counts[b],
            "examples_a": givers[a, b],
            "examples_b": givers[b, a],
        }
        for a, b in pairs
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _listen(
    soft_targets: SoftTargets, labels: pd.Series, mixing: Mixing, temperature: float
) -> Iterator[_Heard]:
    voice = speaker(soft_targets)
    for block in iterate_blocks(soft_targets):
        opinion = hear(block, voice, mixing=mixing, temperature=temperature)
        known = labels_of(labels, block.example_ids)
        classes = np.where(known < 0, opinion.top_classes, known)
        yield _Heard(block.example_ids, classes, opinion)


def _mean_masses(
    blocks: Iterable[_Heard], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean probability that rows of one class give to another, [from, to], and rows per class."""
    masses = np.zeros((num_classes, num_classes))
    counts = np.zeros(num_classes, dtype=np.int64)
    for heard in blocks:
        classes, opinion = heard.classes, heard.opinion
        counts += np.bincount(classes, minlength=num_classes)
        if opinion.class_ids is None:
            np.add.at(masses, classes, opinion.probabilities)
        else:
            np.add.at(masses, (classes[:, None], opinion.class_ids), opinion.of_classes)
    masses /= np.maximum(counts, 1)[:, None]
    return masses, counts


def _largest(both_ways: NDArray[np.float64], num_pairs: int) -> list[tuple[int, int]]:
    first, second = np.triu_indices(len(both_ways), k=1)
    sums = both_ways[first, second]
    # By mass and, where that is equal, by class, so that the order is always the same.
    order = np.lexsort((second, first, -sums))
    found = ((int(first[at]), int(second[at])) for at in order if sums[at] > 0)
    return list(islice(found, num_pairs))


def _examples(
    blocks: Iterable[_Heard], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """Ids of the examples of the first class that give the second most, the most first."""
    best: dict[tuple[int, int], dict[int, float]] = {pair: {} for pair in pairs}
    for heard in blocks:
        for (giver, taker), kept in best.items():
            rows = np.flatnonzero(heard.classes == giver)
            given = _mass_of(heard.opinion, rows, taker)
            for at in np.argsort(-given, kind="stable")[:NUM_EXAMPLES]:
                example = int(heard.example_ids[rows[at]])
                kept[example] = max(kept.get(example, 0.0), float(given[at]))
            best[giver, taker] = dict(_by_mass(kept)[:NUM_EXAMPLES])
    return {pair: " ".join(str(e) for e, m in _by_mass(k) if m > 0) for pair, k in best.items()}


def _by_mass(kept: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(kept.items(), key=lambda item: (-item[1], item[0]))


def _mass_of(opinion: Opinion, rows: NDArray[np.int64], taker: int) -> NDArray[np.float32]:
    if opinion.class_ids is None:
        return np.asarray(opinion.probabilities[rows, taker])
    listed = opinion.class_ids[rows] == taker
    return np.asarray((opinion.of_classes[rows] * listed).sum(axis=1))
