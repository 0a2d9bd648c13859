"""Arms: paired by construction, each learning from just the rows it may."""

import gc
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import TransferSplitParams
from kd_pipeline.data.splits import ids_with_role, split_examples, student_rows
from kd_pipeline.errors import DataError, ParameterError, StaleArtefactError
from kd_pipeline.evaluation.freshness import check_paired
from kd_pipeline.events import EpochEnded, Event, TrainingEnded, TrainingStarted, listening
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Pretrained
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.seconds import add_seconds
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training import trainer
from kd_pipeline.training.engine import TrainingPlan
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.views.settings import ViewsParams

PSEUDO = {"soft_weight": 1.0, "soft_loss": "pseudo_label"}


@pytest.fixture
def cache(make_cache: Callable[..., SoftTargets], tmp_path: Path) -> Callable[..., SoftTargets]:
    """Write another cache in a folder of its own every time it is called."""
    numbers = itertools.count()

    def make(images: ImageSet, splits: pd.DataFrame, **changes: Any) -> SoftTargets:
        return make_cache(tmp_path / f"cache-{next(numbers)}", images, splits, **changes)

    return make


Cache = Callable[..., SoftTargets]


def taught_by(soft_targets: SoftTargets, **params: Any) -> CachedTeacher:
    fingerprints = soft_targets.manifest.provenance.teacher_fingerprints
    return CachedTeacher(soft_targets, SoftTargetsParams(**params), fingerprints)


def run(
    data: LabelledImages,
    folder: Path,
    soft_targets: SoftTargets | None = None,
    *,
    arm: dict[str, Any] | None = None,
    num_replicates: int = 2,
    teacher: CachedTeacher | None = None,
    quantisation: dict[str, Any] | None = None,
    extra_epochs: int = 0,
    views: ViewsParams | None = None,
    budget: MemoryBudget | None = None,
    **changes: Any,
) -> tuple[list[ModelCheckpoint], pd.DataFrame]:
    student = StudentParams(
        num_replicates=num_replicates,
        model={"name": "mlp", "arguments": {"hidden": [8]}},
        training={"num_epochs": 2, "batch_size": 16, "device": "cpu", "precision": "float32"},
        quantisation=quantisation,
        **changes,
    )
    usual = {"soft_weight": 0.0 if soft_targets is None else 1.0}
    return train_students(
        data,
        student,
        ArmParams(**(arm or usual)),
        views or ViewsParams(),
        teacher=teacher or (None if soft_targets is None else taught_by(soft_targets)),
        states=StateFolder(folder),
        extra_epochs=extra_epochs,
        budget=budget,
    )


@pytest.mark.parametrize("transforms", [[], [{"name": "mixup"}]])
def test_results_do_not_depend_on_the_memory_budget(
    data: LabelledImages, tmp_path: Path, cache: Cache, plans: Any, transforms: list[Any]
) -> None:
    views = ViewsParams(transforms=transforms, num_views=2 if transforms else 1)
    made_with = {"view_policy": views.policy.description, "num_views": views.num_cached_views()}
    soft = cache(data.images, data.splits, **made_with)
    pixels = len(student_rows(data.splits)) * int(np.prod(data.images.pixels.shape[1:]))
    trained = []
    for name, num_bytes in {"all": 2**30, "pixels": pixels, "nothing": 0}.items():
        budget = MemoryBudget(num_bytes)
        checkpoints, history = run(data, tmp_path / name, soft, views=views, budget=budget)
        gc.collect()
        trained.append((checkpoints, history.drop(columns="train/examples_per_second")))
    for checkpoints, history in trained[1:]:
        pd.testing.assert_frame_equal(history, trained[0][1])
        for ours, theirs in zip(checkpoints, trained[0][0], strict=True):
            assert ours.fingerprint == theirs.fingerprint
    loaded = [plan.rows.pixels.loaded is not None for plan, _ in plans[::2]]
    assert loaded == [True, True, False]
    in_validation = [plan.validation.pixels.loaded is not None for plan, _ in plans[::2]]
    assert in_validation == [True, False, False]


def test_the_budget_is_one_for_all_that_a_training_holds(
    data: LabelledImages, tmp_path: Path, cache: Cache
) -> None:
    soft = cache(data.images, data.splits)
    rows, image = len(student_rows(data.splits)), int(np.prod(data.images.pixels.shape[1:]))
    needed = rows * image + len(data.ids("transfer")) * 2 * len(data.images.class_names)
    needed += len(data.ids("validation")) * image
    held = []
    budget = MemoryBudget(2**30)
    with listening(lambda event: held.append(2**30 - budget.left)):
        run(data, tmp_path, soft, budget=budget)
    assert set(held) == {needed}
    gc.collect()
    assert budget.left == 2**30


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingPlan, dict[str, torch.Tensor]]]:
    """Every plan that is trained, with the initial weights it starts from."""
    found: list[tuple[TrainingPlan, dict[str, torch.Tensor]]] = []
    real = trainer.train_together

    def spy(classifiers: Any, plans: Sequence[TrainingPlan], **rest: Any) -> Any:
        for classifier, plan in zip(classifiers, plans, strict=True):
            found.append((plan, {k: v.clone() for k, v in classifier.network.state_dict().items()}))
        return real(classifiers, plans, **rest)

    monkeypatch.setattr(trainer, "train_together", spy)
    return found


def test_arms_share_weights_steps_seeds_and_views_by_construction(
    data: LabelledImages, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    soft = cache(data.images, data.splits)
    run(data, tmp_path)
    run(data, tmp_path, soft)
    run(data, tmp_path, soft, arm=PSEUDO)
    for replicate in range(2):
        arms = plans[replicate::2]
        for plan, weights in arms[1:]:
            first, initial = arms[0]
            assert all(torch.equal(weights[k], initial[k]) for k in initial)
            for name in ("seed", "steps_per_epoch", "training", "policy", "num_views"):
                assert getattr(plan, name) == getattr(first, name)
    assert plans[0][0].seed != plans[1][0].seed


def test_a_longer_control_differs_in_its_epochs_alone_and_is_compared(
    data: LabelledImages, tmp_path: Path, plans: Any
) -> None:
    (usual, longer), histories = zip(
        *(run(data, tmp_path, num_replicates=1, extra_epochs=extra) for extra in (0, 3)),
        strict=True,
    )
    assert [len(history) for history in histories] == [2, 5]
    (first, weights), (second, same_weights) = plans
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    assert first.training.model_copy(update={"num_epochs": 5}) == second.training
    assert (first.seed, first.steps_per_epoch) == (second.seed, second.steps_per_epoch)
    check_paired({"student_baseline": usual, "student_longer": longer})
    assert longer[0].facts["extra_epochs"] == 3
    assert longer[0].facts["parameters"]["training"]["num_epochs"] == 5


def test_each_arm_learns_from_the_rows_it_may(
    data: LabelledImages, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    teacher = ids_with_role(data.splits, "teacher_train").tolist()
    transfer = ids_with_role(data.splits, "transfer").tolist()
    soft = cache(data.images, data.splits)
    run(data, tmp_path, num_replicates=1)
    run(data, tmp_path, soft, num_replicates=1)
    run(data, tmp_path, soft, num_replicates=1, arm={"soft_weight": 0.5})
    run(data, tmp_path, soft, num_replicates=1, arm=PSEUDO)
    baseline, distilled, mixed, pseudo = (plan.rows for plan, _ in plans)
    assert baseline.example_ids.tolist() == teacher
    assert distilled.example_ids.tolist() == transfer == pseudo.example_ids.tolist()
    assert mixed.example_ids.tolist() == sorted({*teacher, *transfer})
    assert int((mixed.labels >= 0).sum()) == len(teacher)


def test_a_schedule_stops_the_soft_term_and_labels_beyond_the_transfer_set_teach_too(
    data: LabelledImages, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    """Two epochs of five steps: the weight is 0 in the last four."""
    arm = {"soft_weight": 1.0, "soft_weight_schedule": {"stop_fraction": 0.6}}
    soft = cache(data.images, data.splits)
    _, history = run(data, tmp_path, soft, num_replicates=1, arm=arm)
    teacher, transfer = (ids_with_role(data.splits, r) for r in ("teacher_train", "transfer"))
    assert plans[0][0].rows.example_ids.tolist() == sorted({*teacher, *transfer})
    first, second = history["train/soft_loss"]
    assert 0 < second < 0.5 * first  # One step of five.
    last = {"soft_weight": 1.0, "soft_weight_schedule": {"stop_fraction": 0.5}}
    _, stopped = run(data, tmp_path, soft, num_replicates=1, arm=last)
    assert stopped["train/soft_loss"][0] == first
    assert stopped["train/soft_loss"][1] == 0


def test_held_out_examples_reach_no_training(
    data: LabelledImages, tmp_path: Path, plans: Any
) -> None:
    run(data, tmp_path, num_replicates=1)
    held_out = {
        *ids_with_role(data.splits, "test").tolist(),
        *ids_with_role(data.splits, "validation").tolist(),
    }
    assert not held_out & set(plans[0][0].rows.example_ids.tolist())
    watched = plans[0][0].validation
    assert len(watched.labels) == len(ids_with_role(data.splits, "validation"))


def test_arms_on_the_same_rows_see_the_same_batches(
    images: ImageSet, examples: pd.DataFrame, tmp_path: Path, plans: Any, cache: Cache
) -> None:
    params = TransferSplitParams(
        test_fraction=0.3,
        validation_fraction=0.1,
        teacher={"fraction": 1.0},
        transfer={"relation": "equal"},
    )
    splits = split_examples(examples, images.class_names, params)
    data = LabelledImages(images, examples, splits)
    run(data, tmp_path, num_replicates=1)
    run(data, tmp_path, cache(images, splits), num_replicates=1)
    (first, _), (second, _) = plans
    assert torch.equal(first.rows.example_ids, second.rows.example_ids)


def test_a_checkpoint_names_what_it_was_made_from_and_holds_no_teacher(
    data: LabelledImages, tmp_path: Path, cache: Cache
) -> None:
    checkpoints, history = run(data, tmp_path, cache(data.images, data.splits))
    facts = checkpoints[1].facts
    assert facts["teacher"] == ["t"]
    assert (facts["images"], facts["splits"]) == (
        data.provenance["images"],
        data.provenance["splits"],
    )
    assert (facts["replicate"], facts["epochs"], facts["steps"]) == (1, 2, 2 * 5)
    assert facts["costs"]["model/parameters"] == sum(
        v.numel() for v in checkpoints[1].state.values()
    )
    assert set(checkpoints[1].state) == {
        "layers.1.weight",
        "layers.1.bias",
        "layers.3.weight",
        "layers.3.bias",
    }
    assert list(history["replicate"]) == [0, 0, 1, 1]


def test_what_the_cache_took_is_among_the_costs_and_nowhere_else(
    data: LabelledImages, cache: Cache, tmp_path: Path
) -> None:
    soft_targets = cache(data.images, data.splits)
    (before, *_), _ = run(data, tmp_path / "before", soft_targets)
    for part in soft_targets.manifest.parts:
        add_seconds(soft_targets.folder, part, 2.0)
    (after, *_), _ = run(data, tmp_path / "after", soft_targets)
    (untaught, *_), _ = run(data, tmp_path / "untaught")
    costs = [one.facts["costs"].get("cost/caching_seconds") for one in (before, after, untaught)]
    assert costs == [None, 2.0 * len(soft_targets.manifest.parts), 0.0]
    of_training = [
        {name: fact for name, fact in one.facts.items() if name != "costs"}
        for one in (before, after)
    ]
    assert of_training[0] == of_training[1]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images_fingerprint": "other"}, "images"),
        ({"splits_fingerprint": "other"}, "splits"),
        ({"view_policy": {"seed": 1, "transforms": []}}, "view policy"),
        ({"class_names": ("low", "high", "middle")}, "class names"),
    ],
)
def test_a_stale_cache_is_refused_before_training(
    data: LabelledImages,
    tmp_path: Path,
    plans: Any,
    changes: dict[str, Any],
    what: str,
    cache: Cache,
) -> None:
    with pytest.raises(StaleArtefactError, match=f"do not match this run's .*{what}"):
        run(data, tmp_path, cache(data.images, data.splits, **changes))
    assert plans == []


def test_a_smoothed_teacher_above_temperature_one_is_warned_of(
    data: LabelledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Cache
) -> None:
    soft = cache(data.images, data.splits, facts={"teacher_label_smoothing": 0.1})
    run(data, tmp_path, soft, num_replicates=1)
    assert "label smoothing" not in caplog.text
    run(data, tmp_path, soft, num_replicates=1, arm={"soft_weight": 1.0, "temperature": 4.0})
    assert "trained with label smoothing 0.1 and `temperature` is 4" in caplog.text


def test_an_arm_without_anything_to_learn_from_is_refused(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, tmp_path: Path
) -> None:
    nothing = splits.assign(use_label=splits["use_label"] & ~splits["for_student"])
    with pytest.raises(DataError, match="no example is left to learn from"):
        run(LabelledImages(images, examples, nothing), tmp_path)


def test_a_soft_weight_without_a_teacher_is_refused(data: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="`soft_weight` must be 0 for an arm without"):
        run(data, tmp_path, arm={"soft_weight": 0.5})


def test_how_the_members_of_a_teacher_were_averaged_is_on_record(
    data: LabelledImages, tmp_path: Path, cache: Cache
) -> None:
    rng = np.random.default_rng(0)
    count = len(ids_with_role(data.splits, "transfer"))
    logits = rng.normal(size=(2, 1, count, 3)).astype(np.float32)
    two = cache(data.images, data.splits, logits=logits, teacher_fingerprints=("t", "u"))
    teacher = taught_by(two, ensemble_average="arithmetic", member_weights=(3.0, 1.0))
    (averaged, *_), _ = run(data, tmp_path / "a", teacher=teacher, arm={"soft_weight": 1.0})
    shares = {"kind": "arithmetic", "shares": [0.75, 0.25]}
    assert averaged.facts["teacher_ensemble"] == shares
    (alone, *_), _ = run(data, tmp_path / "b", cache(data.images, data.splits))
    assert alone.facts["teacher_ensemble"] is None  # One member is not averaged.


def test_a_student_that_teaches_may_be_of_another_size(
    data: LabelledImages, tmp_path: Path
) -> None:
    own = {"model": {"name": "mlp", "arguments": {"hidden": [4]}}, "num_replicates": 1}
    (assistant,), _ = run(data, tmp_path, arm=own)
    assert assistant.arguments == {"hidden": [4]}
    assert assistant.facts["parameters"]["model"]["arguments"] == {"hidden": [4]}


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_after(epoch: int) -> AbstractContextManager[None]:
    def listener(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            raise KilledError

    return listening(listener)


def test_an_arm_keeps_its_float_model_and_goes_on_from_its_cache_after_a_kill(
    data: LabelledImages, tmp_path: Path, cache: Cache
) -> None:
    states, soft = tmp_path / "states", cache(data.images, data.splits)
    block = {"name": "int8", "num_epochs": 2}
    (plain,), _ = run(data, states, soft, num_replicates=1)
    assert len(list(states.iterdir())) == 1
    with kill_after(3), pytest.raises(KilledError):
        run(data, states, soft, num_replicates=1, quantisation=block)
    assert len(list(states.iterdir())) == 1  # The training in float has the same key.
    events: list[Event] = []
    with listening(events.append):
        (tuned,), history = run(data, states, soft, num_replicates=1, quantisation=block)
    assert len(list(states.iterdir())) == 2

    assert plain.quantised_state is None
    assert replace(tuned, quantised_state=None).fingerprint == plain.fingerprint
    assert tuned.fingerprint != plain.fingerprint
    assert tuned.quantised_state is not None
    assert set(tuned.quantised_state) == set(plain.state)
    fine_tuned = replace(tuned, state=tuned.quantised_state, quantised_state=None)
    assert fine_tuned.fingerprint not in {plain.fingerprint, tuned.fingerprint}

    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert list(history["step"]) == [5, 10, 15, 20]
    assert (history["quantisation/train_soft_loss"][2:] > 0).all()  # From the cache.
    assert history["quantisation/train_loss"].isna().tolist() == [True, True, False, False]
    assert history["train/loss"].isna().tolist() == [False, False, True, True]

    started, *epochs, ended = events
    assert isinstance(started, TrainingStarted)
    assert started.num_epochs == 4
    assert [getattr(event, "epoch", 0) for event in epochs] == [1, 2, 3, 4]
    assert isinstance(ended, TrainingEnded)
    assert ended.fingerprint == tuned.fingerprint
    assert ended.metrics["cost/quantisation_seconds"] > 0

    assert (tuned.facts["epochs"], tuned.facts["steps"]) == (2, 10)
    assert tuned.facts["quantisation"] == {"epochs": 2, "best_epoch": 2, "steps": 10}
    chosen = {"name": "int8", "num_epochs": 2, "lr_factor": 0.1}
    for facts in (tuned.facts["shared"], tuned.facts["parameters"], started.parameters):
        assert facts["quantisation"] == chosen
    for facts in (plain.facts["shared"], plain.facts["parameters"], plain.facts):
        assert "quantisation" not in facts


@pytest.fixture
def pretrained(tmp_path: Path) -> dict[str, Any]:
    """Weights of the students' architecture with a head of other classes; the body is frozen."""
    given = build_network("mlp", shape=(1, 8, 8), num_classes=7, arguments={"hidden": [8]})
    torch.save(given.state_dict(), tmp_path / "weights.pth")
    return {"file": str(tmp_path / "weights.pth"), "trainable_layers": 1}


def test_every_arm_starts_from_the_same_pretrained_weights(
    data: LabelledImages, tmp_path: Path, plans: Any, cache: Cache, pretrained: dict[str, Any]
) -> None:
    baseline, _ = run(data, tmp_path / "a", pretrained=pretrained)
    distilled, _ = run(data, tmp_path / "b", cache(data.images, data.splits), pretrained=pretrained)
    given = torch.load(pretrained["file"], weights_only=True)
    head = {"layers.3.weight", "layers.3.bias"}
    initial = [weights for _, weights in plans]
    for weights in initial:
        assert all(torch.equal(weights[name], given[name]) for name in given if name not in head)
    for one, other in ((0, 2), (1, 3)):  # Replicates in pairs; heads differ between replicates.
        assert all(torch.equal(initial[one][name], initial[other][name]) for name in given)
    assert not torch.equal(initial[0]["layers.3.weight"], initial[1]["layers.3.weight"])
    for made in (*baseline, *distilled):  # Frozen: the body is what it was.
        changed = {name for name in given if not torch.equal(made.state[name], given[name])}
        assert changed == head
        assert made.facts["shared"]["pretrained"]["file"] == pretrained["file"]


def test_pretrained_weights_are_part_of_the_key_and_of_the_provenance(
    data: LabelledImages, tmp_path: Path, plans: Any, pretrained: dict[str, Any]
) -> None:
    states = tmp_path / "states"
    (one,), _ = run(data, states, num_replicates=1, pretrained=pretrained)
    (again,), _ = run(data, states, num_replicates=1, pretrained=pretrained)
    assert again.fingerprint == one.fingerprint
    assert len(list(states.iterdir())) == 1  # The second went on from the state of the first.
    state = torch.load(pretrained["file"], weights_only=True)
    torch.save({name: value + 0.1 for name, value in state.items()}, pretrained["file"])
    (other,), _ = run(data, states, num_replicates=1, pretrained=pretrained)
    all_layers = {"file": pretrained["file"]}
    (tuned,), _ = run(data, states, num_replicates=1, pretrained=all_layers)
    run(data, states, num_replicates=1)
    assert len(list(states.iterdir())) == 4
    digests = [made.facts["shared"]["pretrained"]["digest"] for made in (one, other, tuned)]
    assert digests[0] != digests[1] == digests[2]
    assert len({one.fingerprint, other.fingerprint, tuned.fingerprint}) == 3


def test_a_teaching_student_of_another_size_does_not_take_the_students_weights() -> None:
    small, weights = {"name": "mlp"}, {"file": "a.pth"}
    student = StudentParams(model=small, pretrained=weights, training={"num_epochs": 1})
    larger = ArmParams(model={"name": "small_cnn"})
    assert student.for_arm(ArmParams()).pretrained == student.pretrained
    assert student.for_arm(larger).pretrained is None
    own = larger.model_copy(update={"pretrained": Pretrained(file="b.pth")})
    assert student.for_arm(own).pretrained == Pretrained(file="b.pth")


def test_further_replicates_leave_those_that_are_trained_as_they_are(
    data: LabelledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a run with the same settings train anything; one with others does."""
    caplog.set_level("INFO")
    alone = {"num_epochs": 2, "device": "cpu", "max_gradient_norm": 1.0}
    student = StudentParams(model={"name": "mlp"}, training=alone, num_replicates=2)
    states = StateFolder(tmp_path)

    def replicates(student: StudentParams) -> tuple[list[str], int]:
        """Fingerprints, and how many were trained before."""
        caplog.clear()
        arm = ArmParams()
        found, history = train_students(
            data, student, arm, ViewsParams(), teacher=None, states=states
        )
        assert len(history) == 2 * student.num_replicates
        return [one.fingerprint for one in found], caplog.text.count("trained before")

    two = replicates(student)
    states.keep_used(0.0)
    weights = [path / "state.safetensors" for path in tmp_path.iterdir()]
    assert all(set(load_file(path)) == {"0", "1", "2", "3"} for path in weights)  # No moments.
    five = replicates(student.model_copy(update={"num_replicates": 5}))
    assert (two[1], five[1]) == (0, 2)
    assert five[0][:2] == two[0]
    assert replicates(student) == (two[0], 2)
    assert replicates(student.model_copy(update={"seed": 1}))[1] == 0
