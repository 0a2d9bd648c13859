"""Verification: an honest cache always passes; a changed logit, view, row or teacher never."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import CheckpointError, SoftTargetMismatchError, StaleArtefactError
from kd_pipeline.labelling.predictor import open_predictor
from kd_pipeline.labelling.verification import (
    NOISE,
    coarser_arithmetic,
    draw_rows,
    split_tail,
    verify_soft_targets,
)
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.views import ViewPolicy

SHIFTED = ViewPolicy(5, ({"name": "shift", "max_pixels": 2},))
MIXED = ViewPolicy(5, ({"name": "shift", "max_pixels": 1}, {"name": "mixup"}))
NUM_VIEWS = 2
ALL_ROWS = 10**6


@pytest.fixture(scope="module")
def teacher(images: ImageSet) -> list[ModelCheckpoint]:
    """Two members that have learnt something: their logits differ from example to example."""
    return [trained(images, seed) for seed in (0, 1)]


def trained(images: ImageSet, seed: int) -> ModelCheckpoint:
    arguments = {"channels": [8, 16]}
    classifier = build_untrained(
        architecture="small_cnn",
        arguments=arguments,
        preprocessing=Preprocessing((1, 8, 8), (0.4,), (0.3,)),
        num_classes=3,
        seed=seed,
    )
    pixels, labels = images.take(images.example_ids), torch.arange(len(images.example_ids)) % 3
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=0.01)
    for _ in range(25):
        loss = functional.cross_entropy(classifier.train()(pixels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return snapshot(
        classifier,
        architecture="small_cnn",
        arguments=arguments,
        class_names=images.class_names,
        facts={},
    )


Logits = NDArray[np.float32]
Write = Callable[..., SoftTargets]
Verify = Callable[..., dict[str, Any]]


@pytest.fixture
def label(
    teacher: list[ModelCheckpoint], images: ImageSet, splits: pd.DataFrame
) -> Callable[..., Logits]:
    """What the members say, [members, views, examples, classes], in odd batches."""

    def label(precision: str = "float32", policy: ViewPolicy = SHIFTED) -> Logits:
        ids = ids_with_role(splits, "transfer")
        members = []
        for member in teacher:
            predictor = open_predictor(
                member, images, batch_size=33, precision=precision, policy=policy, partners=ids
            )
            members.append([predictor.logits(ids, view=v).numpy() for v in range(NUM_VIEWS)])
        return np.array(members)

    return label


@pytest.fixture
def write(
    teacher: list[ModelCheckpoint], images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> Write:
    def write(
        logits: Logits,
        *,
        precision: str = "float32",
        policy: ViewPolicy = SHIFTED,
        encoding: Encoding | None = None,
        fingerprints: tuple[str, ...] | None = None,
    ) -> SoftTargets:
        return write_soft_targets(
            tmp_path / "soft_targets",
            list(logits),
            ids_with_role(splits, "transfer"),
            provenance=Provenance(
                class_names=images.class_names,
                teacher_fingerprints=fingerprints or tuple(m.fingerprint for m in teacher),
                images_fingerprint=images.fingerprint,
                splits_fingerprint="s",
                view_policy=policy.description,
                num_views=NUM_VIEWS,
            ),
            encoding=encoding or Encoding(),
            facts={"precision": precision, "device": "cpu"},
            rows_per_part=20,
        )

    return write


@pytest.fixture
def verify(teacher: list[ModelCheckpoint], images: ImageSet) -> Verify:
    def verify(made: SoftTargets, **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "splits_fingerprint": "s",
            "policy": SHIFTED,
            "num_views": NUM_VIEWS,
            "seed": 0,
            "num_rows": ALL_ROWS,
            "batch_size": 7,
            "device": "cpu",
            "precision": "float32",
            "teacher": teacher,
        } | changes
        return verify_soft_targets(made, settings.pop("teacher"), images, **settings)

    return verify


@pytest.mark.parametrize("policy", [SHIFTED, MIXED], ids=["shifted", "mixed"])
@pytest.mark.parametrize("now", ["float32", "bfloat16"])
@pytest.mark.parametrize("then", ["float32", "bfloat16"])
def test_an_honest_cache_passes_whatever_the_batch_and_precision(
    label: Callable[..., Logits], write: Write, verify: Verify, then: str, now: str,
    policy: ViewPolicy,
) -> None:  # fmt: skip
    logits = label(then, policy)
    made = write(logits, precision=then, policy=policy)
    report = verify(made, precision=now, policy=policy)
    assert report["rows"] == logits[..., 0].size
    worst = report["worst"]
    # With room: what is seen here is not the worst that a machine can do.
    assert worst["absolute_difference"] < 0.6 * worst["tolerance"] or then == now == "float32"
    assert report["arithmetic"] == ("bfloat16" if "bfloat16" in {then, now} else "float32")


def change_a_logit(logits: Logits) -> Logits:
    logits[1, 0, 7, 2] += 0.25 * np.abs(logits[1, 0, 7]).max()
    return logits


def swap_views(logits: Logits) -> Logits:
    return logits[:, ::-1]


def shift_rows(logits: Logits) -> Logits:
    return np.roll(logits, 1, axis=2)


def swap_members(logits: Logits) -> Logits:
    return logits[::-1]


def lose_the_scale(logits: Logits) -> Logits:
    """Log-probabilities: the same softmax at temperature 1, and no logits."""
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spoil", [change_a_logit, swap_views, shift_rows, swap_members, lose_the_scale]
)
def test_what_the_teacher_does_not_say_is_found(
    label: Callable[..., Logits], write: Write, verify: Verify, precision: str,
    spoil: Callable[[Logits], Logits],
) -> None:  # fmt: skip
    made = write(spoil(label(precision)), precision=precision)
    with pytest.raises(SoftTargetMismatchError, match="must hold what the teacher says"):
        verify(made, precision=precision)


def test_the_error_names_the_row(
    label: Callable[..., Logits], write: Write, verify: Verify, splits: pd.DataFrame
) -> None:
    example = ids_with_role(splits, "transfer")[7]
    with pytest.raises(SoftTargetMismatchError) as raised:
        verify(write(change_a_logit(label())))
    message = str(raised.value)
    assert f"teacher 1, view 0, example {example}" in message
    assert "for 'high'" in message
    assert "1 of the " in message


def test_in_float32_on_a_cpu_a_tenth_of_a_per_cent_is_found(
    label: Callable[..., Logits], write: Write, verify: Verify
) -> None:
    logits = label()
    row, largest = logits[0, 0, 3], np.abs(logits[0, 0, 3]).argmax()
    row[largest] *= 1.002
    with pytest.raises(SoftTargetMismatchError):
        verify(write(logits))


@pytest.mark.parametrize("spoil", [change_a_logit, shift_rows, None])
def test_the_top_k_and_their_tail_are_compared(
    label: Callable[..., Logits], write: Write, verify: Verify,
    spoil: Callable[[Logits], Logits] | None,
) -> None:  # fmt: skip
    logits = label()
    made = write(spoil(logits) if spoil else logits, encoding=Encoding(2, 4.0))
    if spoil is None:
        assert verify(made)["rows"] == logits[..., 0].size
        return
    with pytest.raises(SoftTargetMismatchError):
        verify(made)


def test_a_wrong_tail_is_found(label: Callable[..., Logits], write: Write, verify: Verify) -> None:
    """The class that is not listed is the one that changed."""
    logits = label()
    smallest = logits[0, 1, 4].argmin()
    logits[0, 1, 4, smallest] -= 0.25 * np.abs(logits[0, 1, 4]).max()
    with pytest.raises(SoftTargetMismatchError, match="for 'the tail'"):
        verify(write(logits, encoding=Encoding(2, 4.0)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": replace(SHIFTED, seed=6)}, "view policy"),
        ({"num_views": 3}, "number of views"),
        ({"splits_fingerprint": "other"}, "splits"),
    ],
)
def test_a_cache_of_something_else_is_refused_before_anything_is_labelled(
    label: Callable[..., Logits], write: Write, verify: Verify, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(StaleArtefactError, match=f"do not match this run's {named}"):
        verify(write(label()), **changes)


def test_another_teacher_is_refused(
    label: Callable[..., Logits], write: Write, verify: Verify, teacher: list[ModelCheckpoint]
) -> None:
    made = write(label())
    with pytest.raises(StaleArtefactError, match="do not match this run's teacher"):
        verify(made, teacher=teacher[::-1])
    with pytest.raises(CheckpointError, match="classes"):
        verify(made, teacher=[replace(teacher[0], class_names=("x", "y", "z"))])


def test_a_damaged_part_is_found_wherever_it_is(
    label: Callable[..., Logits], write: Write, verify: Verify
) -> None:
    made = write(label())
    file = sorted(made.folder.glob("*.parquet"))[-1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StaleArtefactError, match=file.name):
        verify(made, num_rows=1)


@pytest.mark.parametrize("num_rows", [1, 3, 4, 10, 101, ALL_ROWS])
def test_rows_are_spread_over_members_and_views(
    label: Callable[..., Logits], write: Write, num_rows: int
) -> None:
    made = write(label())
    draws = draw_rows(made, seed=0, num_rows=num_rows)
    counts = [len(draw.example_ids) for draw in draws]
    assert sum(counts) == min(num_rows, 4 * len(made.example_ids))
    assert len(draws) == min(num_rows, 4)
    assert max(counts) - min(counts) <= 1
    for draw in draws:
        assert (np.diff(draw.example_ids) > 0).all()
        assert set(draw.example_ids) <= set(made.example_ids)


def test_a_seed_looks_at_rows_of_its_own(label: Callable[..., Logits], write: Write) -> None:
    made = write(label())
    drawn = [
        [draw.example_ids.tolist() for draw in draw_rows(made, seed=seed, num_rows=40)]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("facts", "precision", "expected"),
    [
        ({"precision": "float32", "device": "cpu"}, "float32", "float32"),
        ({"precision": "float32", "device": "cuda"}, "float32", "tensorfloat32"),
        ({"precision": "float32"}, "float32", "tensorfloat32"),
        ({"precision": "bfloat16", "device": "cpu"}, "float32", "bfloat16"),
        ({"precision": "float32", "device": "cpu"}, "bfloat16", "bfloat16"),
        ({"precision": "auto", "device": "cpu"}, "float32", "bfloat16"),
        ({}, "float32", "bfloat16"),
    ],
)
def test_the_coarser_arithmetic_sets_the_tolerance(
    facts: dict[str, Any], precision: str, expected: str
) -> None:
    assert coarser_arithmetic(facts, "cpu", precision) == expected
    assert list(NOISE.values()) == sorted(NOISE.values())


def test_the_tail_holds_what_is_not_listed() -> None:
    logits = np.array([[2.0, 1.0, 0.0, -1.0]])
    top, tail = split_tail(logits, np.array([[0, 2]]), temperature=2.0)
    assert top.tolist() == [[2.0, 0.0]]
    assert tail.item() == pytest.approx(2 * np.log(np.exp(0.5) + np.exp(-0.5)))
