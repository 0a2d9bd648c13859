"""Both sources give the training loop the same logits, and each refuses what it cannot serve."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint, student_rows
from kd_pipeline.errors import CheckpointError, ParameterError, StaleArtefactError
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.top_k import TopKLogits, ghost_buckets
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.ensemble import Mixing
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.arm_rows import arm_rows
from kd_pipeline.training.data import TrainingData
from kd_pipeline.training.replay import Replay
from kd_pipeline.training.rows import TrainingRows
from kd_pipeline.training.settings import TrainingSettings
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_logits import TeacherLogits
from kd_pipeline.training.teacher_sources import CachedTeacher, LiveTeacher, Teacher
from kd_pipeline.views import ViewPolicy

SETTINGS = TrainingSettings(num_epochs=2, batch_size=16)
SOFT = Objective(soft_weight=1.0, temperature=4.0)
SHIFT = {"name": "shift", "max_pixels": 2}
POLICIES = {
    "clean": ViewPolicy(),
    "shift": ViewPolicy(3, (SHIFT,)),
    "mixup": ViewPolicy(3, (SHIFT, {"name": "mixup", "alpha": 1.0})),
    "cutmix": ViewPolicy(3, (SHIFT, {"name": "cutmix", "alpha": 1.0})),
}
MakeCache = Callable[..., SoftTargets]


@pytest.fixture
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> TrainingData:
    return TrainingData(images, examples, splits)


def member(images: ImageSet, seed: int, **changes: Any) -> ModelCheckpoint:
    """A network with dropout and batch norm, so that a wrong mode would show."""
    arguments = {"channels": [4, 8], "dropout": 0.5}
    classifier = build_untrained(
        architecture="small_cnn",
        arguments=arguments,
        preprocessing=Preprocessing((1, 8, 8), (0.4,), (0.3,)),
        num_classes=3,
        seed=seed,
    )
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(2)
    made = snapshot(
        classifier,
        architecture="small_cnn",
        arguments=arguments,
        class_names=images.class_names,
        facts={},
    )
    return replace(made, **changes)


def label(
    teacher: list[ModelCheckpoint],
    data: TrainingData,
    folder: Path,
    policy: ViewPolicy,
    num_views: int,
) -> SoftTargets:
    return label_transfer_set(
        teacher,
        data.images,
        ids_with_role(data.splits, "transfer"),
        parts=PartsFolder(folder),
        splits_fingerprint=split_fingerprint(data.splits),
        policy=policy,
        num_views=num_views,
        batch_size=32,
        device="cpu",
        precision="float32",
    )


def rows_of(data: TrainingData, objective: Objective = SOFT) -> TrainingRows:
    return arm_rows(data, student_rows(data.splits), objective, SETTINGS, has_teacher=True)


def logits_of(
    source: TeacherLogits, data: TrainingData, rows: TrainingRows, policy: ViewPolicy, views: int
) -> list[Tensor]:
    """What a source says in eight steps over passes 0 to 3 of random rows."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, len(rows), (8, 16), generator=generator)
    passes = torch.randint(0, 4, (8, 16), generator=generator)
    partners = data.transfer_partners(SETTINGS) if policy.mixes else None
    shown = Replay(rows, policy, views, partners).chunk(positions, passes)
    of_step = source.chunk(positions, passes)
    found = [of_step(step, shown.pixels(step)) for step in range(8)]
    assert all(isinstance(logits, Tensor) for logits in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("mixing", [Mixing(), Mixing("arithmetic", (3.0, 1.0))])
def test_cached_and_live_logits_of_replayed_views_are_the_same(
    data: TrainingData, tmp_path: Path, policy: ViewPolicy, mixing: Mixing
) -> None:
    """The promise of the cache: the student sees exactly what the teacher saw."""
    views = 1 if policy == ViewPolicy() else 3
    teacher = [member(data.images, seed) for seed in (0, 1)]
    cache = label(teacher, data, tmp_path, policy, views)
    rows = rows_of(data)
    sources: list[Teacher] = [CachedTeacher(cache, mixing), LiveTeacher(teacher, mixing)]
    cached, live = (
        logits_of(source.logits(rows, SOFT, SETTINGS), data, rows, policy, views)
        for source in sources
    )
    for ours, theirs in zip(cached, live, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert torch.cat(live).std(dim=0).min() > 0.05  # They do depend on what is shown.


def test_students_of_both_sources_are_alike(data: TrainingData, tmp_path: Path) -> None:
    teacher = [member(data.images, 0)]
    policy = POLICIES["mixup"]
    cache = label(teacher, data, tmp_path / "cache", policy, 2)

    def student(source: Teacher, name: str) -> ModelCheckpoint:
        checkpoints, _ = train_students(
            data,
            teacher=source,
            objective=SOFT,
            model={"name": "mlp", "arguments": {"hidden": [8]}},
            settings=SETTINGS,
            seed=0,
            num_replicates=1,
            policy=policy,
            num_views=2,
            parameters={},
            states=StateFolder(tmp_path / name),
        )
        return checkpoints[0]

    cached, live = student(CachedTeacher(cache), "cached"), student(LiveTeacher(teacher), "live")
    assert cached.facts["teacher"] == live.facts["teacher"] == [teacher[0].fingerprint]
    assert cached.facts["shared"] == live.facts["shared"]
    for name, weights in cached.state.items():
        torch.testing.assert_close(weights, live.state[name], rtol=0.01, atol=0.01)


def test_a_live_teacher_labels_in_eval_mode_and_learns_nothing(data: TrainingData) -> None:
    teacher = [member(data.images, 0)]
    rows = rows_of(data)
    source = LiveTeacher(teacher).logits(rows, SOFT, SETTINGS)
    before = {k: v.clone() for k, v in source.members[0].network.state_dict().items()}
    of_step = source.chunk(torch.arange(8)[None], torch.zeros(1, 8, dtype=torch.int64))
    pixels = rows.pixels_of(torch.arange(8))
    first, again = of_step(0, pixels), of_step(0, pixels)
    assert isinstance(first, Tensor)
    assert not first.requires_grad
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # Dropout is off.
    after = source.members[0].network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_cache_above_the_budget_is_read_from_disk_and_says_the_same(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache, top_k: int | None
) -> None:
    encoding = Encoding(top_k, None if top_k is None else 4.0)
    cache = make_cache(tmp_path, data.images, data.splits, encoding=encoding)
    rows = rows_of(data)
    tight = replace(SETTINGS, memory_budget_mb=0)
    steps = torch.arange(len(rows))[None], torch.zeros(1, len(rows), dtype=torch.int64)
    found = []
    for settings in (SETTINGS, tight):
        source = CachedTeacher(cache).logits(rows, SOFT, settings)
        found.append(source.chunk(*steps)(0, torch.empty(0)))
    if top_k is None:
        assert torch.equal(*found)
    else:
        for name in ("class_ids", "logits", "tail_logits"):
            assert torch.equal(*(getattr(top, name) for top in found))


def test_a_top_k_cache_gives_buckets_or_a_spread_tail(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache
) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, 1, 78, 3)).astype(np.float32)
    count = len(ids_with_role(data.splits, "transfer"))
    logits = logits[:, :, :count]
    cache = make_cache(tmp_path, data.images, data.splits, logits=logits, encoding=Encoding(1, 4.0))
    rows = rows_of(data)
    steps = torch.arange(len(rows))[None], torch.zeros(1, len(rows), dtype=torch.int64)
    ghost, spread = (
        CachedTeacher(cache, tail=tail)
        .logits(rows, SOFT, SETTINGS)
        .chunk(*steps)(0, torch.empty(0))
        for tail in ("ghost", "uniform")
    )
    dense = torch.from_numpy(logits[0, 0])
    probabilities = (dense / 4).softmax(1)
    best = probabilities.max(1)
    assert isinstance(ghost, TopKLogits)
    assert torch.equal(ghost.class_ids[:, 0], best.indices)
    _, buckets = ghost_buckets(dense, ghost)
    tolerance = {"rtol": 2e-3, "atol": 1e-3}
    bucketed = torch.stack([best.values, 1 - best.values], dim=1)
    torch.testing.assert_close((buckets / 4).softmax(1), bucketed, **tolerance)
    assert isinstance(spread, Tensor)
    expected = ((1 - best.values) / 2)[:, None].expand(-1, 3).clone()
    expected = expected.scatter(1, best.indices[:, None], best.values[:, None])
    torch.testing.assert_close((spread / 4).softmax(1), expected, **tolerance)


def test_a_row_without_a_soft_target_has_no_soft_term(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache
) -> None:
    """Labelled rows beyond the transfer set: the position that they point to must not matter."""
    splits = data.splits
    outside = ids_with_role(splits, "teacher_train")[:2]
    kept = splits[~((splits["role"] == "transfer") & splits["example_id"].isin(outside))]
    data = TrainingData(data.images, data.examples, kept)
    both = Objective(soft_weight=0.5, temperature=4.0)
    rows = rows_of(data, both)
    assert rows.has_soft_target is not None
    without = ~rows.has_soft_target
    assert rows.example_ids[without].tolist() == outside.tolist()
    cache = make_cache(tmp_path, data.images, kept)
    source = CachedTeacher(cache).logits(rows, both, SETTINGS)
    steps = torch.arange(len(rows))[None], torch.zeros(1, len(rows), dtype=torch.int64)
    logits = source.chunk(*steps)(0, torch.empty(0))
    assert isinstance(logits, Tensor)
    labels = data.labels_of(rows.example_ids.numpy())
    assert torch.equal(logits.argmax(1)[~without], labels[~without])


def check(teacher: Teacher, data: TrainingData, **changes: Any) -> None:
    objective = changes.pop("objective", SOFT)
    teacher.check(data, objective, **{"policy": ViewPolicy(), "num_views": 1, **changes})


def test_fresh_views_are_only_for_a_live_teacher(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache
) -> None:
    check(LiveTeacher([member(data.images, 0)]), data, num_views=None)
    cached = CachedTeacher(make_cache(tmp_path, data.images, data.splits))
    with pytest.raises(ParameterError, match=r"`views\.num_views` must be a number"):
        check(cached, data, num_views=None)


def test_a_top_k_cache_refuses_other_temperatures_and_all_logits(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache
) -> None:
    cached = CachedTeacher(
        make_cache(tmp_path, data.images, data.splits, encoding=Encoding(2, 4.0))
    )
    check(cached, data)
    with pytest.raises(ParameterError, match="`temperature` must be 4"):
        check(cached, data, objective=Objective(1.0, temperature=2.0))
    with pytest.raises(ParameterError, match="`soft_loss` must not need every logit"):
        check(cached, data, objective=Objective(1.0, soft_loss="logit_mse"))
    with pytest.raises(ParameterError, match=r"`soft_targets\.tail` must be known"):
        check(replace(cached, tail="none"), data)


def test_a_live_teacher_of_another_split_or_other_classes_is_refused(data: TrainingData) -> None:
    with pytest.raises(StaleArtefactError, match="trained on other splits"):
        check(LiveTeacher([member(data.images, 0, facts={"splits": "other"})]), data)
    with pytest.raises(CheckpointError, match="must have the images' classes"):
        check(LiveTeacher([member(data.images, 0, class_names=("a", "b", "c"))]), data)


def test_what_the_logits_depend_on_is_part_of_a_trainings_identity(
    data: TrainingData, tmp_path: Path, make_cache: MakeCache
) -> None:
    """An interrupted training must not go on with another teacher, mixture or tail."""
    rows = rows_of(data)
    first = make_cache(tmp_path / "a", data.images, data.splits)
    other = make_cache(tmp_path / "b", data.images, data.splits, teacher_fingerprints=("u",))
    sources: list[Teacher] = [
        CachedTeacher(first),
        CachedTeacher(other),
        CachedTeacher(first, Mixing("arithmetic")),
        CachedTeacher(first, tail="uniform"),
        LiveTeacher([member(data.images, 0)]),
        LiveTeacher([member(data.images, 0)], precision="bfloat16"),
        LiveTeacher([member(data.images, 1)]),
    ]
    identities = [str(source.logits(rows, SOFT, SETTINGS).identity) for source in sources]
    assert len(set(identities)) == len(sources)
    again = CachedTeacher(make_cache(tmp_path / "c", data.images, data.splits))
    assert str(again.logits(rows, SOFT, SETTINGS).identity) == identities[0]
