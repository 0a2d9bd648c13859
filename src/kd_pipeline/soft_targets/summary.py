"""How soft the soft targets are, and how right: what helps to choose a temperature.

Everything is counted in one pass over the parts, so that memory does not grow with the rows.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.soft_targets.blocks import (
    MIXED,
    Opinion,
    hear,
    iterate_blocks,
    readable_temperatures,
    speaker,
    voices,
)
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.store import SoftTargets

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
NUM_CONFIDENCE_BINS = 20
VERDICTS = ("right", "wrong", "unlabelled")
ENTROPY = "entropy_at_"


@dataclass(frozen=True)
class Summary:
    """What one pass over the cache has counted."""

    table: pd.DataFrame
    """One row per member and, of an ensemble, one of the members mixed, as `summarise` says."""
    confidences: pd.DataFrame
    """One row per bin of confidence of what the student hears: `low`, `high` and how many rows
    are `right`, `wrong` and `unlabelled`."""


@dataclass
class _Tally:
    """Sums over the rows of one voice."""

    num_rows: int = 0
    num_labelled: int = 0
    num_right: int = 0
    confidence: float = 0.0
    entropies: dict[float, float] = field(default_factory=dict)

    def add(self, opinion: Opinion, labels: NDArray[np.int64]) -> None:
        known = labels >= 0
        self.num_rows += len(labels)
        self.num_labelled += int(known.sum())
        self.num_right += int((opinion.top_classes == labels)[known].sum())
        self.confidence += float(opinion.confidences.sum(dtype=np.float64))

    def add_entropies(self, opinion: Opinion, temperature: float) -> None:
        total = float(opinion.entropies.sum(dtype=np.float64))
        self.entropies[temperature] = self.entropies.get(temperature, 0.0) + total

    def row(self) -> dict[str, object]:
        row: dict[str, object] = {
            "rows": self.num_rows,
            "agreement_with_labels": _share(self.num_right, self.num_labelled),
            "mean_confidence": _share(self.confidence, self.num_rows),
        }
        for temperature, total in self.entropies.items():
            row[f"{ENTROPY}{temperature:g}"] = _share(total, self.num_rows)
        return row


def summarise(
    soft_targets: SoftTargets,
    labels: pd.Series,
    *,
    mixing: Mixing | None = None,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> Summary:
    """Describe what each member says and, of an ensemble, what the mixture says.

    Args:
        soft_targets: The cache. One of the top k is read at its own temperature alone.
        labels: Class index of each example whose label is known, by example id, whether or not
            a student may use it: this is for looking at, and nothing trains on it.
        mixing: How a student mixes an ensemble.
        temperatures: At which the mean entropy is given; confidence is given at the first.

    Returns:
        `table`: teacher (a member's number or `mixed`), fingerprint, examples, rows (examples
        times views), agreement_with_labels (top-1; null where no label is known),
        mean_confidence, confidence_temperature, uniform_entropy (of all classes alike: log of
        their number) and `entropy_at_<temperature>`, both in nats.
    """
    mixing = mixing or Mixing()
    temperatures = readable_temperatures(soft_targets, temperatures)
    tallies = {voice: _Tally() for voice in voices(soft_targets)}
    heard = speaker(soft_targets)
    counts = np.zeros((NUM_CONFIDENCE_BINS, len(VERDICTS)), dtype=np.int64)
    for block in iterate_blocks(soft_targets):
        known = labels_of(labels, block.example_ids)
        for voice, tally in tallies.items():
            for temperature in temperatures:
                opinion = hear(block, voice, mixing=mixing, temperature=temperature)
                tally.add_entropies(opinion, temperature)
                if temperature == temperatures[0]:
                    tally.add(opinion, known)
                    if voice == heard:
                        counts += _histogram(opinion, known)
    table = _table(soft_targets, tallies, temperatures)
    return Summary(table=table, confidences=_bins(counts))


def known_labels(examples: pd.DataFrame) -> pd.Series:
    """Class index by example id, of the rows of the table `examples` that have a label."""
    labelled = examples.dropna(subset="label")
    labels = labelled["label"].to_numpy(dtype=np.int64)
    return pd.Series(labels, index=labelled["example_id"].to_numpy(dtype=np.int64))


def labels_of(labels: pd.Series, example_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class index [n] of each example, -1 where its label is not known."""
    return np.asarray(labels.reindex(example_ids, fill_value=-1).to_numpy(dtype=np.int64))


def uniform_entropy(soft_targets: SoftTargets) -> float:
    """Nats of a distribution that knows nothing; in a top-k cache the tail is one more class."""
    manifest = soft_targets.manifest
    top_k = manifest.encoding.top_k
    outcomes = len(manifest.provenance.class_names) if top_k is None else top_k + 1
    return float(np.log(outcomes))


def _table(
    soft_targets: SoftTargets, tallies: dict[str, _Tally], temperatures: tuple[float, ...]
) -> pd.DataFrame:
    provenance = soft_targets.manifest.provenance
    rows = []
    for voice, tally in tallies.items():
        one = voice != MIXED
        row = tally.row()
        rows.append(
            {
                "teacher": voice,
                "fingerprint": provenance.teacher_fingerprints[int(voice)] if one else MIXED,
                "examples": tally.num_rows // provenance.num_views,
                **{name: row.pop(name) for name in list(row) if not name.startswith(ENTROPY)},
                "confidence_temperature": temperatures[0],
                "uniform_entropy": uniform_entropy(soft_targets),
                **row,
            }
        )
    return pd.DataFrame(rows)


def _histogram(opinion: Opinion, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows per bin of confidence and verdict: [bins, right | wrong | unlabelled]."""
    bins = (opinion.confidences * NUM_CONFIDENCE_BINS).astype(np.int64)
    bins = bins.clip(max=NUM_CONFIDENCE_BINS - 1)
    verdicts = np.where(labels < 0, 2, (opinion.top_classes != labels).astype(np.int64))
    cells = bins * len(VERDICTS) + verdicts
    size = NUM_CONFIDENCE_BINS * len(VERDICTS)
    return np.bincount(cells, minlength=size).reshape(NUM_CONFIDENCE_BINS, len(VERDICTS))


def _bins(counts: NDArray[np.int64]) -> pd.DataFrame:
    edges = np.arange(NUM_CONFIDENCE_BINS + 1) / NUM_CONFIDENCE_BINS
    table = pd.DataFrame(counts, columns=list(VERDICTS))
    table.insert(0, "low", edges[:-1])
    table.insert(1, "high", edges[1:])
    return table


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
