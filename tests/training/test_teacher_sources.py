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

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import TransferSplitParams
from kd_pipeline.data.splits import ids_with_role, split_examples
from kd_pipeline.errors import CheckpointError, ParameterError, StaleArtefactError
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.losses.top_k import gather_other_classes
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import Calibration, SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.rows import Rows, arm_rows, transfer_partners
from kd_pipeline.training.settings import ArmParams, StudentParams, Training
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import BatchLogits, CachedTeacher, LiveTeacher, Teacher
from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams

TRAINING = Training(num_epochs=2, batch_size=16, device="cpu", precision="float32")
AMPLE = MemoryBudget(2**30)
SOFT = ArmParams(soft_weight=1.0, temperature=4.0)
CACHING = SoftTargetCachingParams(batch_size=32, device="cpu")
SHIFT = {"name": "shift", "max_pixels": 2}
VIEWS = {
    "clean": ViewsParams(),
    "shift": ViewsParams(seed=3, num_views=3, transforms=[SHIFT]),
    "mixup": ViewsParams(seed=3, num_views=3, transforms=[SHIFT, {"name": "mixup"}]),
    "cutmix": ViewsParams(seed=3, num_views=3, transforms=[SHIFT, {"name": "cutmix"}]),
}
MakeCache = Callable[..., SoftTargets]


def member(images: ImageSet, seed: int, **changes: Any) -> ModelCheckpoint:
    """A network with dropout and batch norm, so that a wrong mode would show."""
    model = Model(name="small_cnn", arguments={"channels": [4, 8], "dropout": 0.5})
    preprocessing = Preprocessing((1, 8, 8), (0.4,), (0.3,))
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=seed)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(2)
    made = snapshot(classifier, model, class_names=images.class_names, facts={})
    return replace(made, **changes)


def cached_teacher(cache: SoftTargets, **params: Any) -> CachedTeacher:
    fingerprints = cache.manifest.provenance.teacher_fingerprints
    return CachedTeacher(cache, SoftTargetsParams(**params), fingerprints)


def live_teacher(teacher: list[ModelCheckpoint], **params: Any) -> LiveTeacher:
    precision = params.pop("precision", "float32")
    return LiveTeacher(teacher, SoftTargetsParams(**params), precision)


def label(
    teacher: list[ModelCheckpoint], data: LabelledImages, folder: Path, views: ViewsParams
) -> SoftTargets:
    return label_transfer_set(teacher, data, PartsFolder(folder), CACHING, views)


def rows_of(data: LabelledImages, objective: ObjectiveParams = SOFT) -> Rows:
    return arm_rows(data, objective, TRAINING, AMPLE, has_teacher=True)


def all_at_once(source: BatchLogits, rows: Rows) -> Any:
    """The first view of every row, in one step."""
    steps = torch.arange(len(rows))[None], torch.zeros(1, len(rows), dtype=torch.int64)
    return source.chunk(*steps)(0, torch.empty(0))


def logits_of(
    source: BatchLogits, data: LabelledImages, rows: Rows, views: ViewsParams
) -> list[Tensor]:
    """What a source gives in eight steps over passes 0 to 3 of random rows."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, len(rows), (8, 16), generator=generator)
    passes = torch.randint(0, 4, (8, 16), generator=generator)
    partners = transfer_partners(data, TRAINING, AMPLE).pixels if views.policy.mixes else None
    renderer = ViewRenderer(views.policy, rows.pixels, partners)
    shown = renderer.draw(positions, passes % views.num_cached_views())
    of_step = source.chunk(positions, passes)
    found = [of_step(step, shown.render(step)) for step in range(8)]
    assert all(logits.class_ids is None for logits in found)
    return [logits.logits for logits in found]


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(
    "params", [{}, {"ensemble_average": "arithmetic", "member_weights": (3.0, 1.0)}]
)
def test_cached_and_live_logits_of_replayed_views_are_the_same(
    data: LabelledImages, tmp_path: Path, views: ViewsParams, params: dict[str, Any]
) -> None:
    """The promise of the cache: the student is shown exactly what the teacher labelled."""
    teacher = [member(data.images, seed) for seed in (0, 1)]
    cache = label(teacher, data, tmp_path, views)
    rows = rows_of(data)
    sources: list[Teacher] = [cached_teacher(cache, **params), live_teacher(teacher, **params)]
    cached, live = (
        logits_of(source.open(rows, SOFT, TRAINING, AMPLE), data, rows, views) for source in sources
    )
    for ours, theirs in zip(cached, live, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert torch.cat(live).std(dim=0).min() > 0.05  # They do depend on what is shown.


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_partners_of_a_disjoint_split_are_those_of_the_labelling(
    images: ImageSet, examples: pd.DataFrame, tmp_path: Path, mixing: str
) -> None:
    """The labelled rows beside the transfer set are mixed with, and never mixed in."""
    params = TransferSplitParams(
        test_fraction=0.3,
        validation_fraction=0.1,
        teacher={"labels_per_class": 4},
        transfer={"relation": "disjoint"},
    )
    splits = split_examples(examples, images.class_names, params)
    data, teacher = LabelledImages(images, examples, splits), [member(images, 0)]
    both = ArmParams(soft_weight=0.5, temperature=4.0)
    rows = rows_of(data, both)
    assert rows.has_soft_target is not None
    soft = rows.has_soft_target.nonzero().squeeze(1)
    assert 0 < len(soft) < len(rows)
    cached = cached_teacher(label(teacher, data, tmp_path, VIEWS[mixing]))
    positions, passes = soft[None], torch.zeros(1, len(soft), dtype=torch.int64)
    partners = transfer_partners(data, TRAINING, AMPLE).pixels
    pixels = ViewRenderer(VIEWS[mixing].policy, rows.pixels, partners).draw(positions, passes)
    ours, theirs = (
        source.open(rows, both, TRAINING, AMPLE)
        .chunk(positions, passes)(0, pixels.render(0))
        .logits
        for source in (cached, live_teacher(teacher))
    )
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_students_of_both_sources_are_alike(data: LabelledImages, tmp_path: Path) -> None:
    teacher = [member(data.images, 0)]
    views = VIEWS["mixup"]
    cache = label(teacher, data, tmp_path / "cache", views)
    settings = StudentParams(
        num_replicates=1,
        model={"name": "mlp", "arguments": {"hidden": [8]}},
        training=TRAINING,
    )

    def student(source: Teacher, name: str) -> ModelCheckpoint:
        states = StateFolder(tmp_path / name)
        checkpoints, _ = train_students(data, settings, SOFT, views, teacher=source, states=states)
        return checkpoints[0]

    cached = student(cached_teacher(cache), "cached")
    live = student(live_teacher(teacher), "live")
    assert cached.facts["teacher"] == live.facts["teacher"] == [teacher[0].fingerprint]
    assert cached.facts["shared"] == live.facts["shared"]
    for name, weights in cached.state.items():
        torch.testing.assert_close(weights, live.state[name], rtol=0.01, atol=0.01)


def test_a_live_teacher_labels_in_eval_mode_and_learns_nothing(data: LabelledImages) -> None:
    teacher = [member(data.images, 0)]
    rows = rows_of(data)
    source = live_teacher(teacher).open(rows, SOFT, TRAINING, AMPLE)
    before = {k: v.clone() for k, v in source.members[0].network.state_dict().items()}
    of_step = source.chunk(torch.arange(8)[None], torch.zeros(1, 8, dtype=torch.int64))
    pixels = rows.pixels(torch.arange(8))
    first, again = (of_step(0, pixels).logits for _ in range(2))
    assert not first.requires_grad
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # Dropout is off.
    after = source.members[0].network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_cache_above_the_budget_is_read_from_disk_and_gives_the_same(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache, top_k: int | None
) -> None:
    encoding = Encoding(top_k, None if top_k is None else 4.0)
    cache = make_cache(tmp_path, data.images, data.splits, encoding=encoding)
    rows = rows_of(data)
    teacher = cached_teacher(cache)
    inside, above = (
        all_at_once(teacher.open(rows, SOFT, TRAINING, budget), rows)
        for budget in (AMPLE, MemoryBudget(0))
    )
    assert (inside.class_ids is None) == (top_k is None)
    for name in ("logits", "class_ids", "tail_logits"):
        ours, theirs = getattr(inside, name), getattr(above, name)
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_a_top_k_cache_gives_one_bucket_or_a_spread_tail(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    count = len(ids_with_role(data.splits, "transfer"))
    logits = np.random.default_rng(0).normal(0, 3, (1, 1, count, 3)).astype(np.float32)
    cache = make_cache(tmp_path, data.images, data.splits, logits=logits, encoding=Encoding(1, 4.0))
    rows = rows_of(data)
    ghost, spread = (
        all_at_once(cached_teacher(cache, tail=tail).open(rows, SOFT, TRAINING, AMPLE), rows)
        for tail in ("ghost", "uniform")
    )
    dense = torch.from_numpy(logits[0, 0])
    best = (dense / 4).softmax(1).max(1)
    assert torch.equal(ghost.class_ids[:, 0], best.indices)
    _, buckets = gather_other_classes(dense, ghost, 4.0)
    tolerance = {"rtol": 2e-3, "atol": 1e-3}
    bucketed = torch.stack([best.values, 1 - best.values], dim=1)
    torch.testing.assert_close((buckets / 4).softmax(1), bucketed, **tolerance)
    assert spread.class_ids is None
    expected = ((1 - best.values) / 2)[:, None].expand(-1, 3).clone()
    expected = expected.scatter(1, best.indices[:, None], best.values[:, None])
    torch.testing.assert_close((spread.logits / 4).softmax(1), expected, **tolerance)


def test_class_40000_of_a_top_k_cache_keeps_its_number(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """Its 16 bits are those of a negative number where they are read as signed ones."""
    num_classes, count = 40_002, len(ids_with_role(data.splits, "transfer"))
    logits = np.zeros((1, 1, count, num_classes), dtype=np.float32)
    logits[..., 40_000], logits[..., 7] = 9, 5
    names = tuple(map(str, range(num_classes)))
    cache = make_cache(
        tmp_path,
        data.images,
        data.splits,
        logits=logits,
        class_names=names,
        encoding=Encoding(2, 4.0),
    )
    rows = rows_of(data)
    found = all_at_once(cached_teacher(cache).open(rows, SOFT, TRAINING, AMPLE), rows)
    assert found.class_ids.unique(dim=0).tolist() == [[7, 40_000]]
    assert found.logits.unique(dim=0).tolist() == [[5, 9]]
    student = torch.zeros(len(rows), num_classes).index_fill_(1, torch.tensor([40_000]), 9.0)
    ours, _ = gather_other_classes(student, found, 4.0)
    assert ours[:, :2].unique(dim=0).tolist() == [[0, 9]]


def test_a_row_without_a_soft_target_has_no_soft_term(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """Labelled rows beyond the transfer set: the position that they point to must not matter."""
    splits = data.splits
    outside = ids_with_role(splits, "teacher_train")[:2]
    kept = splits[~((splits["role"] == "transfer") & splits["example_id"].isin(outside))]
    data = LabelledImages(data.images, data.examples, kept)
    both = ArmParams(soft_weight=0.5, temperature=4.0)
    rows = rows_of(data, both)
    assert rows.has_soft_target is not None
    without = ~rows.has_soft_target
    assert rows.example_ids[without].tolist() == outside.tolist()
    cache = make_cache(tmp_path, data.images, kept)
    logits = all_at_once(cached_teacher(cache).open(rows, both, TRAINING, AMPLE), rows).logits
    labels = data.labels_of(rows.example_ids.numpy())
    assert torch.equal(logits.argmax(1)[~without], labels[~without])


FRESH = ViewsParams(num_views=None, transforms=[SHIFT])


def check(
    teacher: Teacher,
    data: LabelledImages,
    views: ViewsParams = VIEWS["clean"],
    **objective: Any,
) -> None:
    teacher.check(data, ArmParams(**objective) if objective else SOFT, views)


def test_fresh_views_are_only_for_a_live_teacher(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    check(live_teacher([member(data.images, 0)]), data, FRESH)
    cached = cached_teacher(make_cache(tmp_path, data.images, data.splits))
    with pytest.raises(ParameterError, match=r"`views\.num_views` must be a number"):
        check(cached, data, FRESH)


def test_a_top_k_cache_refuses_other_temperatures_and_all_logits(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    encoding = Encoding(2, 4.0)
    cached = cached_teacher(make_cache(tmp_path, data.images, data.splits, encoding=encoding))
    check(cached, data)
    with pytest.raises(ParameterError, match="`temperature` must be 4"):
        check(cached, data, temperature=2.0)
    with pytest.raises(ParameterError, match="`soft_loss` must not need every logit"):
        check(cached, data, soft_loss="logit_mse")


def test_a_cache_of_another_teacher_than_the_one_in_force_is_refused(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """The design's eighth mistake: a new teacher silently served the old teacher's cache."""
    cache = make_cache(tmp_path, data.images, data.splits)
    with pytest.raises(StaleArtefactError, match="do not match this run's teacher"):
        check(CachedTeacher(cache, SoftTargetsParams(), ["another"]), data)


def test_a_live_teacher_of_another_split_or_other_classes_is_refused(data: LabelledImages) -> None:
    with pytest.raises(
        StaleArtefactError, match=r"do not match this run's splits \(artefact other"
    ):
        check(live_teacher([member(data.images, 0, facts={"splits": "other"})]), data)
    with pytest.raises(CheckpointError, match="must have the images' classes"):
        check(live_teacher([member(data.images, 0, class_names=("a", "b", "c"))]), data)
    with pytest.raises(ParameterError, match=r"`teacher\.given` must be a model"):
        check(live_teacher([]), data)


def test_what_the_logits_depend_on_is_part_of_a_trainings_identity(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    """An interrupted training must not go on with another teacher, average or tail."""
    rows = rows_of(data)
    first = make_cache(tmp_path / "a", data.images, data.splits)
    other = make_cache(tmp_path / "b", data.images, data.splits, teacher_fingerprints=("u",))
    sources: list[Teacher] = [
        cached_teacher(first),
        cached_teacher(other),
        cached_teacher(first, ensemble_average="arithmetic"),
        cached_teacher(first, tail="uniform"),
        live_teacher([member(data.images, 0)]),
        live_teacher([member(data.images, 0)], precision="bfloat16"),
        live_teacher([member(data.images, 1)]),
    ]
    identities = [str(source.open(rows, SOFT, TRAINING, AMPLE).identity) for source in sources]
    assert len(set(identities)) == len(sources)
    again = cached_teacher(make_cache(tmp_path / "c", data.images, data.splits))
    assert str(again.open(rows, SOFT, TRAINING, AMPLE).identity) == identities[0]


FITTED = Calibration({"geometric": 2.0, "arithmetic": 1.6}, (0.75, 0.25), 9)


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_a_calibrated_teacher_is_averaged_at_temperature_one_and_divided(
    data: LabelledImages, tmp_path: Path, kind: str
) -> None:
    """From the cache and live alike, whatever the temperature of the student's loss."""
    teacher, views = [member(data.images, seed) for seed in (0, 1)], VIEWS["shift"]
    params = {"ensemble_average": kind, "member_weights": (3.0, 1.0)}
    calibrated = params | {"teacher_calibration": "temperature"}
    made = label_transfer_set(teacher, data, PartsFolder(tmp_path), CACHING, views, FITTED)
    rows, at_one = rows_of(data), SOFT.model_copy(update={"temperature": 1.0})
    plain = cached_teacher(made, **params).open(rows, at_one, TRAINING, AMPLE)
    cached = cached_teacher(made, **calibrated).open(rows, SOFT, TRAINING, AMPLE)
    live = replace(live_teacher(teacher, **calibrated), calibration=FITTED)
    expected, ours, theirs = (
        torch.cat(logits_of(source, data, rows, views))
        for source in (plain, cached, live.open(rows, SOFT, TRAINING, AMPLE))
    )
    divided = expected / FITTED.temperatures[kind]  # type: ignore[index]
    torch.testing.assert_close(ours, divided)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert cached.identity["fitted_temperature"] == FITTED.temperatures[kind]  # type: ignore[index]


def test_what_was_fitted_and_is_not_used_leaves_the_identity_as_it_was(
    data: LabelledImages, tmp_path: Path
) -> None:
    teacher, rows = [member(data.images, 0)], rows_of(data)
    one = Calibration({"geometric": 2.0, "arithmetic": 2.0}, (1.0,), 9)
    identities = [
        cached_teacher(
            label_transfer_set(
                teacher, data, PartsFolder(tmp_path / name), CACHING, VIEWS["clean"], fitted
            )
        )
        .open(rows, SOFT, TRAINING, AMPLE)
        .identity
        for name, fitted in (("without", None), ("with", one))
    ]
    assert identities[0] == identities[1]


def test_a_calibration_without_a_fitted_temperature_is_refused_before_anything_trains(
    data: LabelledImages, tmp_path: Path, make_cache: MakeCache
) -> None:
    asked = {"teacher_calibration": "temperature"}
    cached = cached_teacher(make_cache(tmp_path, data.images, data.splits), **asked)
    for teacher in (cached, live_teacher([member(data.images, 0)], **asked)):
        with pytest.raises(ParameterError, match="must be null for soft targets without a temper"):
            check(teacher, data)
