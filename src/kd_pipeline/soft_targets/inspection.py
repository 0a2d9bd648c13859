"""How soft the targets of a cache are, how often right, and which classes are confused.

Everything is computed from up to 50,000 rows (and 50 million logits per member), spread evenly over
the views: from all rows where there are no more. The summary's column `rows` is their number.
"""

import logging
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.gathering import allocate, put
from kd_pipeline.soft_targets.manifest import Manifest
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.teacher_logits import TeacherLogits

logger = logging.getLogger(__name__)

MAX_ROWS, MAX_LOGITS = 50_000, 50_000_000
ENSEMBLE = "ensemble"
"""The average of the members, which students learn from. Members are named by their number."""
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
ENTROPY = "entropy_at_"
VERDICTS = ("right", "wrong", "unlabelled")
NUM_CONFIDENCE_BINS = 20
NUM_PAIRS, NUM_EXAMPLES = 50, 3
PAIR_COLUMNS = (
    "class_a", "class_b", "temperature", "mean_mass", "mass_a_to_b", "mass_b_to_a",
    "num_a", "num_b", "examples_a", "examples_b",
)  # fmt: skip
MAX_CLASSES = 4_096
"""Of the table of all pairs, which takes 8 bytes each: 128 MiB."""
NUM_PICKS, NUM_CLASSES_SHOWN = 4, 5
CONFIDENT, UNCERTAIN, DISAGREEING = "confident", "uncertain", "against the label"


@dataclass(frozen=True)
class Distribution:
    """A teacher's tempered probabilities of n rows."""

    probabilities: NDArray[np.float32]
    """[n, num_classes], or [n, k + 1] of a top-k cache, the tail last."""
    class_ids: NDArray[np.integer[Any]]
    """[n, num_classes | k], the class of each probability but the tail's."""

    @property
    def of_classes(self) -> NDArray[np.float32]:
        """[n, num_classes | k]: without the tail, which is no class."""
        return self.probabilities[:, : self.class_ids.shape[1]]

    @property
    def top_classes(self) -> NDArray[np.int64]:
        """[n], the most likely class."""
        at = self.of_classes.argmax(axis=1)[:, None]
        return np.take_along_axis(self.class_ids, at, axis=1)[:, 0].astype(np.int64)

    @property
    def confidences(self) -> NDArray[np.float32]:
        """[n], the probability of the most likely class."""
        return np.asarray(self.of_classes.max(axis=1))

    @property
    def entropies(self) -> NDArray[np.float32]:
        """[n] in nats; the tail counts as one class, so that of a top-k cache is a lower bound."""
        p = self.probabilities
        return np.asarray(-(p * np.log(p.clip(min=1e-30))).sum(axis=1))


@dataclass(frozen=True)
class Sample:
    """Rows of a cache, as many of each view."""

    manifest: Manifest
    params: SoftTargetsParams
    example_ids: NDArray[np.int64]
    """[n], by view and within it ascending."""
    views: NDArray[np.int64]
    """[n]"""
    rows: TeacherLogits[NDArray[Any]]
    """[members, n, ...], as stored."""

    @property
    def sources(self) -> list[str]:
        """Each member and, last, the ensemble where there are several: what students learn from."""
        members = [str(member) for member in range(self.manifest.num_members)]
        return [*members, ENSEMBLE] if len(members) > 1 else members

    def temperatures(self, *asked: float) -> tuple[float, ...]:
        """The temperatures asked for, or the one that a top-k cache is tied to."""
        declared = self.manifest.encoding.temperature
        return asked if declared is None else (declared,)

    def distribution(self, temperature: float, source: str | None = None) -> Distribution:
        """Probabilities of one of the sources; None is the one that students learn from.

        Of the logits as they are cached: `teacher_calibration`, which divides them, is left out.
        """
        source = source or self.sources[-1]
        if source == ENSEMBLE:
            average = average_logits(self.rows.logits, self.params, temperature=temperature)
            rows = TeacherLogits(average)
        else:
            rows = self.rows[int(source)]
        logits = rows.logits.astype(np.float32)
        class_ids = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        if rows.class_ids is not None and rows.tail_logits is not None:
            tails = rows.tail_logits.astype(np.float32)
            logits, class_ids = np.concatenate([logits, tails[:, None]], axis=1), rows.class_ids
        scaled = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
        exponentials = np.exp(scaled, out=scaled)
        return Distribution(exponentials / exponentials.sum(axis=1, keepdims=True), class_ids)

    def labels(self, labels: pd.Series) -> NDArray[np.int64]:
        """Class index [n] of each row, -1 where its label is not known."""
        return np.asarray(labels.reindex(self.example_ids, fill_value=-1).to_numpy(np.int64))

    def mean(self, values: NDArray[np.float32]) -> float:
        """Mean of values [n], view by view in float64."""
        views = values.reshape(self.manifest.provenance.num_views, -1)
        return sum(float(view.sum(dtype=np.float64)) for view in views) / len(values)


def sample(
    soft_targets: SoftTargets,
    params: SoftTargetsParams,
    budget: MemoryBudget,
    *,
    max_rows: int = MAX_ROWS,
) -> Sample:
    """Read rows of a cache: all of them, or as many of each view, drawn at random.

    Raises:
        StaleArtefactError: If a part is damaged.
    """
    manifest = soft_targets.manifest
    num_views, num_classes = manifest.provenance.num_views, len(manifest.provenance.class_names)
    num_rows = min(max_rows, MAX_LOGITS // (manifest.encoding.top_k or num_classes))
    count = min(manifest.num_examples, max(1, num_rows // num_views))
    views = np.repeat(np.arange(num_views), count)
    ids = np.empty(len(views), dtype=np.int64)
    rows = allocate(manifest, (manifest.num_members, len(views)), budget)
    random, start = np.random.default_rng(0), 0
    for view, shard in product(range(num_views), range(manifest.num_shards)):
        if shard == 0:
            drawn = np.sort(random.permutation(manifest.num_examples)[:count])
        span = manifest.rows_of(shard)
        here = drawn[(drawn >= span.start) & (drawn < span.stop)] - span.start
        at = slice(start, start + len(here))
        for part in soft_targets.parts(view=view, shard=shard) if len(here) else ():
            ids[at] = part.example_ids[here]
            put(part.rows[here], rows, (part.member, at))
        start = at.stop
    return Sample(manifest, params, ids, views, rows)


def known_labels(examples: pd.DataFrame) -> pd.Series:
    """Class index by example id, of the rows of the table `examples` that have a label."""
    labelled = examples.dropna(subset="label").set_index("example_id")
    return labelled["label"].astype(np.int64)


def summarise(sample: Sample, labels: pd.Series) -> pd.DataFrame:
    """How soft and how right each member is and, of several, their average.

    Args:
        sample: Rows of the cache. One of the top k is read at its own temperature alone.
        labels: Class index of each example whose label is known, by example id, whether or not
            a student may use it: nothing trains on this.

    Returns:
        One row per source, the last being the one that students learn from: teacher (a member's
        number or `ensemble`), fingerprint, examples, rows (those read: examples times views, or
        fewer), agreement_with_labels (top-1; null where no label is known), mean_confidence,
        confidence_temperature, uniform_entropy (of all classes alike; the tail is one class) and
        `entropy_at_<temperature>`, both in nats.
    """
    manifest, known = sample.manifest, sample.labels(labels)
    fingerprints = manifest.provenance.teacher_fingerprints
    temperatures = sample.temperatures(*TEMPERATURES)
    top_k, num_classes = manifest.encoding.top_k, len(manifest.provenance.class_names)
    table = []
    for source in sample.sources:
        first = sample.distribution(temperatures[0], source)
        right = (first.top_classes == known)[known >= 0]
        row: dict[str, object] = {
            "teacher": source,
            "fingerprint": source if source == ENSEMBLE else fingerprints[int(source)],
            "examples": manifest.num_examples,
            "rows": len(known),
            "agreement_with_labels": int(right.sum()) / len(right) if len(right) else None,
            "mean_confidence": sample.mean(first.confidences),
            "confidence_temperature": temperatures[0],
            "uniform_entropy": float(np.log(num_classes if top_k is None else top_k + 1)),
        }
        for temperature in temperatures:
            entropies = sample.distribution(temperature, source).entropies
            row[f"{ENTROPY}{temperature:g}"] = sample.mean(entropies)
        table.append(row)
    return pd.DataFrame(table)


def confidence_histogram(sample: Sample, labels: pd.Series) -> pd.DataFrame:
    """How many rows have which confidence at the first temperature of the summary.

    Returns:
        One row per bin: `low`, `high`, and how many rows are `right`, `wrong` and `unlabelled`.
    """
    given = sample.distribution(sample.temperatures(*TEMPERATURES)[0])
    known = sample.labels(labels)
    bins = (given.confidences * NUM_CONFIDENCE_BINS).astype(np.int64)
    verdicts = np.where(known < 0, 2, (given.top_classes != known).astype(np.int64))
    counts = np.zeros((NUM_CONFIDENCE_BINS, len(VERDICTS)), dtype=np.int64)
    np.add.at(counts, (bins.clip(max=NUM_CONFIDENCE_BINS - 1), verdicts), 1)
    edges = np.arange(NUM_CONFIDENCE_BINS + 1) / NUM_CONFIDENCE_BINS
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
    table[list(VERDICTS)] = counts
    return table


def most_confusable_pairs(
    sample: Sample, labels: pd.Series, *, temperature: float = 4.0
) -> pd.DataFrame:
    """The pairs of classes with most probability on each other, the most confusable first.

    Args:
        sample: Rows of the cache; one of the top k is read at its own temperature.
        labels: Class index by example id. A row without a label counts for its top class.
        temperature: At which probabilities are measured.

    Returns:
        class_a, class_b (names), temperature, mean_mass (of both directions, by which rows are
        sorted), mass_a_to_b (mean probability of b for examples of a), mass_b_to_a, num_a and
        num_b (rows of each class), examples_a (ids of the examples of a with most probability of
        b in any view, the most first, apart by spaces) and examples_b. Empty above 4,096 classes.
    """
    names = sample.manifest.provenance.class_names
    if len(names) > MAX_CLASSES:
        logger.warning("more than %d classes: no table of confusable pairs", MAX_CLASSES)
        return pd.DataFrame(columns=list(PAIR_COLUMNS))
    (temperature,) = sample.temperatures(temperature)
    given, known = sample.distribution(temperature), sample.labels(labels)
    classes = np.where(known < 0, given.top_classes, known)
    counts = np.bincount(classes, minlength=len(names))
    masses = np.zeros((len(names), len(names)))
    np.add.at(masses, (classes[:, None], given.class_ids), given.of_classes)
    masses /= np.maximum(counts, 1)[:, None]

    def examples(of: int, to: int) -> str:
        """Ids of the examples of a class with most mass on another in any view."""
        rows = np.flatnonzero(classes == of)
        mass = (given.of_classes[rows] * (given.class_ids[rows] == to)).sum(axis=1)
        largest = pd.Series(mass).groupby(sample.example_ids[rows]).max()
        order = largest[largest > 0].sort_values(ascending=False, kind="stable").index
        return " ".join(map(str, order[:NUM_EXAMPLES]))

    pairs = [
        (names[a], names[b], temperature, (masses[a, b] + masses[b, a]) / 2, masses[a, b],
         masses[b, a], counts[a], counts[b], examples(a, b), examples(b, a))
        for a, b in _largest(masses + masses.T)
    ]  # fmt: skip
    return pd.DataFrame(pairs, columns=list(PAIR_COLUMNS))


def _largest(both_ways: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The pairs of classes with the largest sums; equal sums in the order of the classes."""
    first, second = np.triu_indices(len(both_ways), k=1)
    sums = both_ways[first, second]
    order = np.argsort(-sums, kind="stable")[:NUM_PAIRS]
    return [(int(first[at]), int(second[at])) for at in order if sums[at] > 0]


@dataclass(frozen=True)
class Pick:
    """One view of an example with its soft targets."""

    kind: str
    example_id: int
    view: int
    label: int
    """-1 where it is not known."""
    class_ids: NDArray[np.int64]
    """[shown], the most likely classes, the most likely first."""
    probabilities: dict[float, NDArray[np.float64]]
    """[shown] of these classes, by temperature."""


def pick_examples(sample: Sample, labels: pd.Series) -> list[Pick]:
    """Rows to show, the same ones whenever the cache is the same.

    Returns:
        Those with the widest gap between the two most likely classes, one per class; those of
        the highest entropy; and those with the highest confidence in another class than the
        label's. No example twice within a kind.
    """
    given = {t: sample.distribution(t) for t in sample.temperatures(1.0, 4.0)}
    first, known = next(iter(given.values())), sample.labels(labels)
    ids, classes = sample.example_ids, first.top_classes
    # Logarithms: the probabilities of confident rows are all 1 in float32.
    # Of the top 1 the other value is the tail's.
    values = first.of_classes if first.of_classes.shape[1] > 1 else first.probabilities
    logs = np.log(np.sort(values)[:, -2:].clip(min=1e-30).astype(float))
    against = (known >= 0) & (known != classes)
    best = {
        CONFIDENT: _best(classes, np.where(against, -np.inf, logs[:, 1] - logs[:, 0]), ids),
        UNCERTAIN: _best(ids, first.entropies, ids),
        DISAGREEING: _best(ids, np.where(against, first.confidences, -np.inf), ids),
    }

    def pick(kind: str, row: int) -> Pick:
        order = np.argsort(-first.of_classes[row], kind="stable")[:NUM_CLASSES_SHOWN]
        shown = first.class_ids[row][order].astype(np.int64)
        shares = {t: d.of_classes[row][order].astype(np.float64) for t, d in given.items()}
        return Pick(kind, int(ids[row]), int(sample.views[row]), int(known[row]), shown, shares)

    return [pick(kind, row) for kind, rows in best.items() for row in rows]


def _best(
    keys: NDArray[np.int64], scores: NDArray[np.floating[Any]], example_ids: NDArray[np.int64]
) -> list[int]:
    """The best row of each of the best keys, the best first; ties to the smaller example id."""
    order = np.lexsort((example_ids, -scores))
    order = order[np.isfinite(scores[order])]
    _, first = np.unique(keys[order], return_index=True)
    return [int(row) for row in order[np.sort(first)][:NUM_PICKS]]
