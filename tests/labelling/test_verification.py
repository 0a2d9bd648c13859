"""Verification: an honest cache always passes; a changed logit, view, row or teacher never."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, SoftTargetMismatchError, StaleArtefactError
from kd_pipeline.labelling.members import Member, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.labelling.verification import (
    NOISE,
    coarser_arithmetic,
    draw_rows,
    verify_soft_targets,
)
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.views.settings import ViewsParams

NUM_VIEWS = 2
SHIFTED = ViewsParams(seed=5, num_views=2, transforms=[{"name": "shift", "max_pixels": 2}])
MIXED = ViewsParams(
    seed=5, num_views=2, transforms=[{"name": "shift", "max_pixels": 1}, {"name": "mixup"}]
)
ALL_ROWS = 10**6

Logits = NDArray[np.float32]
Write = Callable[..., SoftTargets]
Verify = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def teacher(data: LabelledImages) -> list[ModelCheckpoint]:
    """Two members that have learnt something: their logits differ from example to example."""
    return [trained(data, seed) for seed in (0, 1)]


def trained(data: LabelledImages, seed: int) -> ModelCheckpoint:
    model = Model(name="small_cnn", arguments={"channels": [8, 16]})
    preprocessing = Preprocessing((1, 8, 8), (0.4,), (0.3,))
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=seed)
    ids = data.images.example_ids
    pixels, labels = data.images.take(ids), data.labels_of(ids)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=0.01)
    for _ in range(25):
        loss = functional.cross_entropy(classifier.train()(pixels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return snapshot(classifier, model, class_names=data.images.class_names, facts={})


@pytest.fixture
def label(teacher: list[ModelCheckpoint], data: LabelledImages) -> Callable[..., Logits]:
    """The members' logits, [members, views, examples, classes], in odd batches."""

    def label(precision: str = "float32", views: ViewsParams = SHIFTED) -> Logits:
        ids = data.ids("transfer")
        computing = Computing(batch_size=33, device="cpu", precision=precision)
        members = []
        for member in teacher:
            predictor = open_predictor(member, data, ids, computing, policy=views.policy)
            every = [predictor.logits(slice(None), view=view) for view in range(NUM_VIEWS)]
            members.append(torch.stack(every).numpy())
        return np.array(members)

    return label


@pytest.fixture
def write(
    teacher: list[ModelCheckpoint], data: LabelledImages, make_cache: Write, tmp_path: Path
) -> Write:
    def write(
        logits: Logits,
        *,
        precision: str = "float32",
        views: ViewsParams = SHIFTED,
        encoding: Encoding | None = None,
    ) -> SoftTargets:
        return make_cache(
            tmp_path / "soft_targets",
            data.images,
            data.splits,
            logits=logits,
            encoding=encoding,
            facts={"precision": precision, "device": "cpu"},
            rows_per_part=20,
            teacher_fingerprints=tuple(member.fingerprint for member in teacher),
            view_policy=views.policy.description,
            num_views=NUM_VIEWS,
        )

    return write


@pytest.fixture
def verify(teacher: list[ModelCheckpoint], data: LabelledImages) -> Verify:
    usual = {"teacher": teacher, "data": data}

    def verify(
        made: SoftTargets,
        *,
        num_rows: int = ALL_ROWS,
        precision: str = "float32",
        views: ViewsParams = SHIFTED,
        **changes: Any,
    ) -> dict[str, Any]:
        params = SoftTargetVerificationParams(num_rows=num_rows)
        caching = SoftTargetCachingParams(batch_size=7, device="cpu", precision=precision)
        return verify_soft_targets(
            made, **(usual | changes), params=params, caching=caching, views=views
        )

    return verify


@pytest.mark.parametrize("views", [SHIFTED, MIXED], ids=["shifted", "mixed"])
@pytest.mark.parametrize("now", ["float32", "bfloat16"])
@pytest.mark.parametrize("then", ["float32", "bfloat16"])
def test_an_honest_cache_passes_whatever_the_batch_and_precision(
    label: Callable[..., Logits], write: Write, verify: Verify, then: str, now: str,
    views: ViewsParams,
) -> None:  # fmt: skip
    logits = label(then, views)
    made = write(logits, precision=then, views=views)
    report = verify(made, precision=now, views=views)
    assert report["rows"] == logits[..., 0].size
    worst = report["worst"]
    # Well below: another machine may be noisier than this one.
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
def test_logits_that_are_not_the_teachers_are_found(
    label: Callable[..., Logits], write: Write, verify: Verify, precision: str,
    spoil: Callable[[Logits], Logits],
) -> None:  # fmt: skip
    made = write(spoil(label(precision)), precision=precision)
    with pytest.raises(SoftTargetMismatchError, match="must hold the teacher's logits"):
        verify(made, precision=precision)


def test_the_error_names_the_row(
    label: Callable[..., Logits], write: Write, verify: Verify, data: LabelledImages
) -> None:
    example = data.ids("transfer")[7]
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
    ("views", "named"),
    [
        (SHIFTED.model_copy(update={"seed": 6}), "view policy"),
        (SHIFTED.model_copy(update={"num_views": 3}), "number of views"),
    ],
)
def test_a_cache_of_other_views_is_refused(
    label: Callable[..., Logits], write: Write, verify: Verify, views: ViewsParams, named: str
) -> None:
    with pytest.raises(StaleArtefactError, match=f"do not match this run's {named}"):
        verify(write(label()), views=views)


def test_a_cache_of_other_splits_is_refused_before_a_part_is_read(
    label: Callable[..., Logits], write: Write, verify: Verify, data: LabelledImages
) -> None:
    made = write(label())
    for part in made.folder.glob("*.parquet"):
        part.unlink()
    with pytest.raises(StaleArtefactError, match="do not match this run's splits"):
        verify(made, data=replace(data, splits=data.splits[data.splits["role"] != "test"]))


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


def test_each_seed_draws_rows_of_its_own(label: Callable[..., Logits], write: Write) -> None:
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
    computing = Computing(device="cpu", precision=precision)
    assert coarser_arithmetic(facts, computing) == expected
    assert list(NOISE.values()) == sorted(NOISE.values())


def test_imported_logits_are_verified_too(
    data: LabelledImages, make_cache: Write, verify: Verify, tmp_path: Path
) -> None:
    ids = data.ids("transfer")
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    teacher: list[Member] = [ImportedLogits(ids, logits, data.images.class_names)]
    made = make_cache(
        tmp_path,
        data.images,
        data.splits,
        logits=[[logits]],
        teacher_fingerprints=(teacher[0].fingerprint,),
    )
    assert verify(made, teacher=teacher, views=ViewsParams())["rows"] == len(ids)
