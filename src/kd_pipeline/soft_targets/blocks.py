"""A cache of soft targets a few thousand rows at a time, every ensemble member side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.ensemble import Mixing, mix_logits
from kd_pipeline.soft_targets.parts import PartRows
from kd_pipeline.soft_targets.store import SoftTargets

ROWS_PER_BLOCK = 4_096
MIXED = "mixed"
"""Who speaks when the members of an ensemble are mixed; members are called by their number."""


@dataclass(frozen=True)
class Block:
    """Rows of one view, as every member sees them."""

    view: int
    example_ids: NDArray[np.int64]
    """[n]"""
    logits: NDArray[np.float32]
    """[members, n, num_classes | k]"""
    class_ids: NDArray[np.uint16] | None
    """[members, n, k] in a top-k cache: which class each logit belongs to."""
    tail_logits: NDArray[np.float32] | None
    """[members, n] in a top-k cache: all other classes in one, at the declared temperature."""

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True)
class Opinion:
    """What one voice, a member or the mixed ensemble, says of a block at one temperature."""

    probabilities: NDArray[np.float32]
    """[n, num_classes], or [n, k + 1] in a top-k cache, the tail last."""
    class_ids: NDArray[np.uint16] | None
    """[n, k] in a top-k cache."""

    @property
    def of_classes(self) -> NDArray[np.float32]:
        """[n, num_classes | k]: without the tail, which is no class."""
        return self.probabilities if self.class_ids is None else self.probabilities[:, :-1]

    @property
    def top_classes(self) -> NDArray[np.int64]:
        """[n], the class each example most likely is."""
        at = self.of_classes.argmax(axis=1)
        ids = at if self.class_ids is None else self.class_ids[np.arange(len(at)), at]
        return np.asarray(ids, dtype=np.int64)

    @property
    def confidences(self) -> NDArray[np.float32]:
        """[n], the probability of the top class."""
        return np.asarray(self.of_classes.max(axis=1))

    @property
    def entropies(self) -> NDArray[np.float32]:
        """[n] in nats; in a top-k cache the tail counts as one class, so this is a lower bound."""
        p = self.probabilities
        return np.asarray(-(p * np.log(p.clip(min=1e-30))).sum(axis=1))


def iterate_blocks(soft_targets: SoftTargets) -> Iterator[Block]:
    """Read a cache once: one part of each member in memory, whatever the number of rows.

    Raises:
        StaleArtefactError: If a part is damaged or the members' parts hold other examples.
    """
    provenance = soft_targets.manifest.provenance
    members = range(len(provenance.teacher_fingerprints))
    for view in range(provenance.num_views):
        streams = [soft_targets.parts(member=member, view=view) for member in members]
        for parts in zip(*streams, strict=True):
            for part in parts:
                if not np.array_equal(part.example_ids, parts[0].example_ids):
                    raise StaleArtefactError(
                        f"`soft_targets` of teachers {parts[0].member} and {part.member} must hold "
                        f"the same examples in view {view}, got others"
                    )
            for start in range(0, len(parts[0].example_ids), ROWS_PER_BLOCK):
                yield _block(parts, slice(start, start + ROWS_PER_BLOCK))


def voices(soft_targets: SoftTargets) -> list[str]:
    """Every member by its number and, last, the mixed ensemble where there is one to mix.

    The members of a top-k cache cannot be mixed: each lists classes of its own.
    """
    num_members = len(soft_targets.manifest.provenance.teacher_fingerprints)
    dense = soft_targets.manifest.encoding.top_k is None
    return [*map(str, range(num_members)), *([MIXED] if num_members > 1 and dense else [])]


def speaker(soft_targets: SoftTargets) -> str:
    """The voice that a student hears: the mixed ensemble, or else the first member."""
    last = voices(soft_targets)[-1]
    return last if last == MIXED else "0"


def readable_temperatures(
    soft_targets: SoftTargets, temperatures: tuple[float, ...]
) -> tuple[float, ...]:
    """The temperatures asked for, or the one that a top-k cache is tied to."""
    declared = soft_targets.manifest.encoding.temperature
    return temperatures if declared is None else (declared,)


def hear(block: Block, voice: str, *, mixing: Mixing, temperature: float) -> Opinion:
    """The distribution over classes that a voice gives to every row of a block."""
    if voice == MIXED:
        logits = mix_logits(block.logits, mixing=mixing, temperature=temperature)
        return Opinion(softmax(logits, temperature), None)
    member = int(voice)
    logits = block.logits[member]
    if block.class_ids is None or block.tail_logits is None:
        return Opinion(softmax(logits, temperature), None)
    bucketed = np.concatenate([logits, block.tail_logits[member][:, None]], axis=1)
    return Opinion(softmax(bucketed, temperature), block.class_ids[member])


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Tempered probabilities along the last axis."""
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / np.float32(temperature)
    exponentials = np.exp(scaled)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _block(parts: tuple[PartRows, ...], rows: slice) -> Block:
    class_ids = [part.class_ids[rows] for part in parts if part.class_ids is not None]
    tails = [part.tail_logits[rows] for part in parts if part.tail_logits is not None]
    return Block(
        view=parts[0].view,
        example_ids=parts[0].example_ids[rows],
        logits=np.stack([part.logits[rows] for part in parts]).astype(np.float32),
        class_ids=np.stack(class_ids) if class_ids else None,
        tail_logits=np.stack(tails).astype(np.float32) if tails else None,
    )
