"""What one of a run's nodes would refuse later is refused before the first."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import (
    CheckpointError,
    ExportError,
    ParameterError,
    StaleArtefactError,
)
from kd_pipeline.hooks.guards import (
    check_caches,
    check_checkpoints,
    check_settings,
    check_trainings,
    training_nodes,
)
from kd_pipeline.labelling.members import identity_card
from kd_pipeline.losses.distillation import SOFT_LOSSES
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.pipeline_registry import COMPARE_LOSSES, register_pipelines

TRAINING = {"num_epochs": 1, "device": "cpu"}
BLOCKS: dict[str, dict[str, Any]] = {
    **{one.name: {"soft_weight": float(one.learns_from == "teacher")} for one in COMPARE_LOSSES},
    "views": {},
    "model_export": {},
    "soft_targets": {},
    "soft_target_caching": {},
    "teacher": {"model": {"name": "mlp"}, "training": TRAINING},
    "student": {"model": {"name": "mlp"}, "training": TRAINING},
    "student_kd": {"soft_weight": 1.0},
    "student_baseline": {"soft_weight": 0.0},
    "student_smoothed": {"soft_weight": 0.0, "label_smoothing": 0.1},
    "student_pseudo": {"soft_weight": 1.0, "soft_loss": "pseudo_label"},
    "student_longer": {"soft_weight": 0.0},
    "student_live": {"soft_weight": 1.0},
    "assistant": {"soft_weight": 1.0, "num_replicates": 1},
    "student_assisted": {"soft_weight": 1.0},
    "generation_1": {"soft_weight": 1.0, "num_replicates": 1},
    "generation_2": {"soft_weight": 1.0, "num_replicates": 1},
    "generation_3": {"soft_weight": 1.0},
}
FRESH = {"views": {"num_views": None, "transforms": [{"name": "horizontal_flip"}]}}
TOP_K = {"soft_target_caching": {"top_k": 3, "temperature": 4.0}}
LOGITS = {"num_members": 1, "given": [{"kind": "logits", "file": "logits.npz"}]}


def catalog_of(data: dict[str, Any], **changes: dict[str, Any]) -> DataCatalog:
    blocks = {name: block | changes.get(name, {}) for name, block in BLOCKS.items()}
    entries = data | {f"params:{name}": block for name, block in blocks.items()}
    return DataCatalog({name: MemoryDataset(value) for name, value in entries.items()})


def check(pipeline: str, **changes: dict[str, Any]) -> None:
    check_settings(register_pipelines()[pipeline], catalog_of({}, **changes))


@pytest.mark.parametrize("pipeline", register_pipelines())
def test_what_fits_is_let_through(pipeline: str) -> None:
    check(pipeline)


@pytest.mark.parametrize("name", ["student_baseline", "student_smoothed"])
def test_a_student_without_a_teacher_has_no_soft_term(name: str) -> None:
    with pytest.raises(ParameterError, match=rf"`{name}\.soft_weight` must be 0"):
        check("distill", **{name: {"soft_weight": 0.5}})


@pytest.mark.parametrize(
    "setting",
    [{"num_replicates": 1}, {"model": {"name": "mlp"}}, {"pretrained": {"file": "a.pth"}}],
)
def test_students_that_are_compared_have_no_size_of_their_own(setting: dict[str, Any]) -> None:
    name = next(iter(setting))
    for pipeline, student in (("distill", "student_kd"), ("born_again", "generation_3")):
        with pytest.raises(ParameterError, match=rf"`{student}\.{name}` must be null"):
            check(pipeline, **{student: setting})
    check("teacher_assistant", assistant=setting)


def test_an_export_is_of_models_that_the_run_trains() -> None:
    check("distill", model_export={"enabled": True, "models": ["teacher", "student_pseudo"]})
    check("distill", model_export={"enabled": False, "models": ["student_live"]})
    with pytest.raises(ParameterError, match=r"`model_export\.models` must .* got 'student_live'"):
        check("distill", model_export={"enabled": True, "models": ["student_live"]})
    source = {"kind": "checkpoint", "folder": "x"}
    with pytest.raises(ParameterError, match=r"`model_export\.source` must be null in a whole run"):
        check("distill", model_export={"enabled": True, "source": source})


def test_a_resumed_run_exports_models_that_it_does_not_train_again() -> None:
    settings = {"enabled": True, "models": ["student_kd", "student_baseline", "teacher"]}
    catalog = catalog_of({}, model_export=settings)
    whole = register_pipelines()["distill_pair"]
    for start in ("student_kd.train_student", "evaluate_models", "export_models"):
        check_settings(whole.from_nodes(start), catalog)


def test_a_teacher_without_a_network_is_not_exported() -> None:
    settings = {"enabled": True, "models": ["student_kd", "teacher"]}
    given = [{"kind": "onnx", "file": "net.onnx"}]
    with pytest.raises(ParameterError, match=r"`model_export\.models` must leave out a teacher"):
        check("distill", model_export=settings, teacher={"given": given})


def test_an_export_without_what_it_needs_is_refused_before_the_first_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"pip install 'kd_pipeline\[onnx\]'"):
        check("distill", model_export={"enabled": True})
    check("distill")


def test_fresh_views_are_refused_where_a_cache_is_made_or_read() -> None:
    for pipeline in ("distill", "soft_target_caching", "student_distillation", "born_again"):
        with pytest.raises(ParameterError, match=r"`views\.num_views` must"):
            check(pipeline, **FRESH)
    check("distill_live", **FRESH)


def test_a_student_that_a_top_k_cache_cannot_serve_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match=r"`student_kd\.temperature` must be 4"):
        check("distill", **TOP_K)
    mse = {"student_kd": {"soft_loss": "logit_mse"}}
    with pytest.raises(ParameterError, match=r"`student_kd\.soft_loss` must not need every logit"):
        check("distill", **TOP_K, **mse)
    warm: dict[str, dict[str, Any]] = {"student_kd": {"temperature": 4.0}}
    check("distill", **TOP_K, **warm)
    check("soft_target_caching", **TOP_K)  # No student is trained in this run.
    warm["assistant"] = {"temperature": 4.0}
    with pytest.raises(ParameterError, match=r"`student_assisted\.temperature` must be 4"):
        check("teacher_assistant", **TOP_K, **warm)
    check("teacher_assistant", **TOP_K, **warm, student_assisted={"temperature": 4.0})


def test_members_that_cannot_be_averaged_are_refused() -> None:
    several = {"teacher": {"num_members": 2}}
    with pytest.raises(ParameterError, match=r"`soft_target_caching\.top_k` must be null"):
        check("soft_target_caching", **TOP_K, **several)
    with pytest.raises(ParameterError, match=r"`soft_targets\.member_weights` must have one"):
        check("distill", **several, soft_targets={"member_weights": [1.0]})
    check("distill", **several, soft_targets={"member_weights": [1.0, 2.0]})
    with pytest.raises(ParameterError, match=r"`soft_targets\.member_weights` must be null"):
        check("teacher_assistant", **several, soft_targets={"member_weights": [1.0, 2.0]})
    students = ("student_kd", "assistant", "student_assisted")
    warm: dict[str, dict[str, Any]] = {name: {"temperature": 4.0} for name in students}
    warm["assistant"]["num_replicates"] = 2
    resumed = register_pipelines()["teacher_assistant"].from_nodes("assistant.cache_soft_targets")
    for pipeline in (register_pipelines()["teacher_assistant"], resumed):
        with pytest.raises(ParameterError, match=r"`assistant\.num_replicates` must be 1"):
            check_settings(pipeline, catalog_of({}, **TOP_K, **warm))
    check_settings(resumed, catalog_of({}))


def test_a_loss_that_needs_labels_is_refused_where_views_mix_two_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = replace(SOFT_LOSSES["cross_entropy"], needs_labels=True)
    monkeypatch.setitem(SOFT_LOSSES, "cross_entropy", record)
    needing = {"student_kd": {"soft_loss": "cross_entropy"}}
    check("distill", **needing)
    with pytest.raises(ParameterError, match=r"`student_kd\.soft_loss` must be one that needs no"):
        check("distill", **needing, views={"transforms": [{"name": "mixup"}]})


def test_a_calibration_is_refused_where_a_top_k_cache_is_made_or_nothing_was_fitted(
    images: ImageSet, splits: pd.DataFrame, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    asked = {"teacher_calibration": "temperature"}
    check("distill", soft_targets=asked)
    with pytest.raises(ParameterError, match=r"`soft_targets\.teacher_calibration` must be null"):
        check("soft_target_caching", **TOP_K, soft_targets=asked)
    data = {
        "images": images,
        "splits": splits,
        "soft_targets": make_cache(tmp_path, images, splits),
    }
    pipeline = register_pipelines()["student_distillation"]
    check_caches(pipeline, catalog_of(data))
    with pytest.raises(ParameterError, match=r"`soft_targets\.teacher_calibration` must be null"):
        check_caches(pipeline, catalog_of(data, soft_targets=asked))


def test_imported_logits_are_of_clean_images_and_cannot_teach_live() -> None:
    with pytest.raises(ParameterError, match=r"`teacher\.given\.kind` must be a model"):
        check("distill_live", teacher=LOGITS)
    students = register_pipelines()["distill_live"].from_nodes("student_live.train_student")
    with pytest.raises(ParameterError, match=r"`teacher\.given\.kind` must be a model"):
        check_settings(students, catalog_of({}, teacher=LOGITS))
    flip = {"transforms": [{"name": "horizontal_flip"}]}
    with pytest.raises(ParameterError, match=r"`views\.transforms` must be empty"):
        check("distill", teacher=LOGITS, views=flip)
    check("distill", teacher=LOGITS)


@pytest.mark.parametrize("given", [*LOGITS["given"], {"kind": "onnx", "file": "net.onnx"}])
def test_a_teacher_whose_cost_cannot_be_counted_gives_no_student_its_epochs(
    given: dict[str, Any],
) -> None:
    teacher = {"given": [given]}
    with pytest.raises(ParameterError, match=r"`teacher\.given\.kind` must be .* student_longer"):
        check("distill_controls", teacher=teacher)
    check("distill", teacher=teacher)


def test_models_that_are_not_there_are_missed_before_anything_is_trained() -> None:
    pipelines = register_pipelines()
    both = pipelines["student_distillation"] + pipelines["evaluation"]
    with pytest.raises(CheckpointError, match=r"`teacher\.checkpoints` must be there for this run"):
        check_checkpoints(both, catalog_of({}))
    check_checkpoints(both, catalog_of({"teacher.checkpoints": []}))
    check_checkpoints(pipelines["distill"], catalog_of({}))


def test_the_cache_of_a_kept_teacher_whose_code_has_changed_is_refused(
    images: ImageSet,
    splits: pd.DataFrame,
    untrained: Callable[..., ModelCheckpoint],
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Students would not run it. Where its files are away it cannot have changed."""
    teacher = replace(untrained(), logits_digest="of older code")
    prints = (teacher.fingerprint,)
    cache = make_cache(tmp_path / "cache", images, splits, teacher_fingerprints=prints)
    card = identity_card([teacher], images.class_names) | {"architectures": ["module:nets:Net"]}
    data = {"images": images, "splits": splits, "soft_targets": cache, "teacher.card": card}
    pipeline = register_pipelines()["student_distillation"]
    check_caches(pipeline, catalog_of(data))
    with pytest.raises(CheckpointError, match="the code of small_cnn has changed since this model"):
        check_caches(pipeline, catalog_of(data | {"teacher.checkpoints": [teacher]}))


def test_the_cache_of_a_teacher_of_other_labels_is_refused_before_students_train(
    data: LabelledImages,
    untrained: Callable[..., ModelCheckpoint],
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Evaluation would refuse the teacher. A test image's label changes: images and splits do not.

    A teacher of unknown labels, as of an earlier version, is let through as evaluation does.
    """
    teacher = untrained(**data.labelled_provenance)
    prints = (teacher.fingerprint,)
    images, examples, splits = data.images, data.examples, data.splits
    cache = make_cache(tmp_path / "cache", images, splits, teacher_fingerprints=prints)
    card = identity_card([teacher], images.class_names)
    held = {"images": images, "splits": splits, "soft_targets": cache, "teacher.card": card}
    pipeline = register_pipelines()["student_distillation"]
    check_caches(pipeline, catalog_of(held | {"examples": examples}))
    changed = examples.copy()
    row = changed["example_id"] == data.ids("test")[0]
    label = (int(changed.loc[row, "label"].item()) + 1) % 3
    changed.loc[row, ["label", "class_name"]] = [label, images.class_names[label]]
    with pytest.raises(StaleArtefactError, match=r"`teacher\.card` do not match this run's labels"):
        check_caches(pipeline, catalog_of(held | {"examples": changed}))
    unknown = {key: value for key, value in card.items() if key != "labels"}
    check_caches(pipeline, catalog_of(held | {"examples": changed, "teacher.card": unknown}))


@pytest.mark.parametrize(
    ("block", "settings", "name"),
    [
        ("student", {"model": {"name": "mlpp"}}, "student.model.name"),
        (
            "student",
            {"training": TRAINING | {"optimiser": {"name": "AdamWW"}}},
            "student.training.optimiser.name",
        ),
        ("student", {"pretrained": {"file": "no.pth"}}, "student.pretrained.file"),
        ("student", {"pretrained": {"weights": "DEFAULT"}}, "student.pretrained.weights"),
        (
            "student",
            {"model": {"name": "resnet18", "arguments": {"weights": "DEFAULT"}}},
            "student.model.arguments.weights",
        ),
        ("assistant", {"pretrained": {"file": "no.pth"}}, "assistant.pretrained.file"),
        ("assistant", {"model": {"name": "mlpp"}}, "assistant.model.name"),
        (
            "assistant",
            {"model": {"name": "mlp", "arguments": {"hiden": [8]}}},
            "assistant.model.arguments",
        ),
        (
            "assistant",
            {"training": TRAINING | {"schedule": {"name": "cosin"}}},
            "assistant.training.schedule.name",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_trains(
    block: str,
    settings: dict[str, Any],
    name: str,
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
) -> None:
    data = {"images": images, "examples": examples, "splits": splits, "tracking_store": None}
    nodes = training_nodes(register_pipelines()["teacher_assistant"])
    check_trainings(nodes, catalog_of(data))
    with pytest.raises(ParameterError, match=f"`{name}`"):
        check_trainings(nodes, catalog_of(data, **{block: settings}))
