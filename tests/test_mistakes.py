"""The design's section 5: the mistakes of the field, and the test that guards each.

Its last two are conclusions, which no code can prevent; the report's controls are for them.

Each was put back by hand once, and each time the test named here failed.

 1. Teacher in train mode while it labels:
    models/test_predict.py::test_a_teacher_left_in_train_mode_still_labels_in_eval_mode
 2. Student left in eval mode after the first epoch:
    training/test_engine.py::test_the_student_is_back_in_train_mode_after_every_validation
 3. temperature² dropped on some path:
    losses/test_distillation.py::test_kl_at_temperature_two_matches_a_value_worked_by_hand,
    losses/test_objective.py::test_soft_weight_weighs_the_soft_term_and_its_rest_the_hard_one,
    here: test_the_loss_does_not_jump_where_the_hard_term_vanishes
 4. KL averaged over elements:
    losses/test_distillation.py::test_kl_matches_a_value_worked_by_hand
 5. Losses given probabilities:
    losses/test_hard.py::test_expects_logits_not_probabilities,
    here: test_models_give_logits_not_probabilities, test_the_cache_holds_logits_not_probabilities
 6. A weight that means the hard term in one place and the soft one in another:
    losses/test_objective.py::test_soft_weight_weighs_the_soft_term_and_its_rest_the_hard_one,
    here: test_the_weight_of_the_soft_term_has_one_name
 7. Targets of one crop served for another, or found by batch number:
    training/test_engine.py::test_the_cached_logits_of_a_view_meet_the_pixels_of_that_view,
    soft_targets/test_gathering.py::test_rows_are_found_by_example_and_view_whatever_the_order,
    training/test_teacher_sources.py::test_cached_and_live_logits_of_replayed_views_are_the_same
 8. The old teacher's cache for a new teacher:
    end_to_end/test_refusals.py::test_stale_soft_targets_are_refused_before_any_arm_trains,
    end_to_end/test_students_in_a_row.py::test_the_cache_of_a_student_that_has_changed_is_refused,
    pipelines/student_distillation/test_nodes.py::test_a_cache_of_something_else_is_refused...
 9. Best epoch chosen on the test set; no validation split; arms trained differently:
    training/test_students.py::test_held_out_examples_reach_no_training,
    training/test_students.py::test_arms_share_weights_steps_seeds_and_views_by_construction,
    test_parameters.py::test_a_wrong_value_is_refused_by_name[...early_stopping...],
    test_wiring.py::test_all_arms_share_all_but_their_own_block
10. A pretrained head re-initialised in silence:
    models/test_checkpoint.py::test_weights_of_another_head_are_refused_not_reinitialised,
    models/test_checkpoint.py::test_classes_are_matched_by_name_and_order,
    end_to_end/test_refusals.py::test_a_given_teacher_of_other_classes_is_refused...
11. Teacher and student normalised differently without anyone noticing:
    models/test_preprocessing.py::test_two_models_each_normalise_the_same_pixels_in_their_own_way,
    here: test_normalisation_travels_with_the_weights_and_is_part_of_their_identity
12. Teacher weights inside the student's checkpoint:
    training/test_students.py::test_a_checkpoint_names_what_it_was_made_from_and_holds_no_teacher,
    here: test_a_students_file_is_as_large_as_the_student
13. drop_last on evaluation:
    models/test_predict.py::test_a_teacher_left_in_train_mode_still_labels_in_eval_mode (7 of 7),
    evaluation/test_test_set.py::test_every_test_row_is_read_once_by_every_model
14. Class ids cast to float16:
    here: test_class_ids_above_2048_survive
15. NaN from a batch without labels:
    losses/test_hard.py::test_a_batch_without_labels_costs_nothing_and_is_not_nan,
    losses/test_objective.py::test_a_batch_without_any_label_is_finite,
    training/test_engine.py::test_rows_without_any_label_train_on_soft_targets_alone
16. A label-smoothed teacher above temperature 1:
    training/test_students.py::test_a_smoothed_teacher_above_temperature_one_is_warned_of,
    pipelines/soft_target_caching/test_nodes.py::test_label_smoothing_of_the_teacher_is_on_record
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import kd_pipeline
from kd_pipeline.config import Params
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.objective import Objective
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.rows import arm_rows
from kd_pipeline.training.settings import ArmParams, StudentParams, Training
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.views.settings import ViewsParams

TESTS = Path(__file__).parent
MODELS = [
    ("mlp", {"hidden": [8]}),
    ("small_cnn", {"channels": [4, 8]}),
    ("cifar_resnet", {}),
    ("squeezenet1_1", {}),
    ("mobilenet_v3_small", {}),
]


def checkpoint(seed: int, *, mean: float = 0.5) -> ModelCheckpoint:
    model = Model(name="mlp", arguments={"hidden": []})
    preprocessing = Preprocessing((1, 8, 8), (mean,), (0.3,))
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=seed)
    return snapshot(classifier, model, class_names=("low", "middle", "high"), facts={})


def all_params(base: type[Params] = Params) -> set[type[Params]]:
    """Every block of settings, those of blocks within others too."""
    return {base}.union(*(all_params(kind) for kind in base.__subclasses__()))


def named_guards() -> list[tuple[str, str]]:
    assert __doc__ is not None
    return re.findall(r"([\w/]+\.py)::(\w+)", __doc__)


@pytest.mark.parametrize(("file", "name"), named_guards())
def test_the_guards_named_above_exist(file: str, name: str) -> None:
    assert re.search(rf"^def {name}", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_mistake_has_a_guard() -> None:
    assert __doc__ is not None
    here = re.findall(r"here: ((?:test_\w+(?:, )?)+)", __doc__)
    for name in ", ".join(here).split(", "):
        assert callable(globals()[name]), name
    parts = re.split(r"^ ?(\d+)\. ", __doc__, flags=re.MULTILINE)[1:]
    assert [int(number) for number in parts[::2]] == list(range(1, 17))
    assert all("test_" in part for part in parts[1::2])


@pytest.mark.parametrize("temperature", [2.0, 4.0, 20.0])
@pytest.mark.parametrize("soft_loss", ["kl", "cross_entropy"])
def test_the_loss_does_not_jump_where_the_hard_term_vanishes(
    temperature: float, soft_loss: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])

    def loss(soft_weight: float) -> torch.Tensor:
        params = ObjectiveParams(
            soft_weight=soft_weight, soft_loss=soft_loss, temperature=temperature
        )
        return Objective(params)(student, labels, TeacherLogits(teacher)).loss

    nearly, whole = loss(1 - 1e-6), loss(1.0)
    torch.testing.assert_close(nearly, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "arguments"), MODELS)
def test_models_give_logits_not_probabilities(name: str, arguments: dict[str, object]) -> None:
    """Outputs that add up to 1, or log-probabilities, would mean a softmax in the network."""
    classifier = build_untrained(
        Model(name=name, arguments=arguments),
        Preprocessing((3, 32, 32), (0.5,) * 3, (0.3,) * 3),
        num_classes=5,
        seed=0,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        logits = classifier(pixels).double()
    ones = torch.ones(4, dtype=torch.float64)
    assert not torch.allclose(logits.sum(dim=1), ones, atol=1e-3)
    assert not torch.allclose(logits.exp().sum(dim=1), ones, atol=1e-3)


def test_the_cache_holds_logits_not_probabilities(
    images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame, tmp_path: Path
) -> None:
    """A linear model worked by hand: weights times normalised pixels, plus bias."""
    teacher = checkpoint(0)
    data = LabelledImages(images, examples, splits)
    parts = PartsFolder(tmp_path / "parts", tmp_path / "finished")
    caching = SoftTargetCachingParams(batch_size=2, device="cpu")
    made = label_transfer_set([teacher], data, parts, caching, ViewsParams())
    (part,) = made.parts()
    weight, bias = (teacher.state[k].double() for k in sorted(teacher.state, reverse=True))
    pixels = (images.take(made.example_ids).double().flatten(1) / 255 - 0.5) / 0.3
    expected = pixels @ weight.T + bias
    np.testing.assert_allclose(part.rows.logits, expected, rtol=2e-3, atol=2e-3)


def test_the_weight_of_the_soft_term_has_one_name() -> None:
    blocks = all_params()
    weights = {name for block in blocks for name in block.model_fields if "weight" in name}
    of_parts = {"target_weight", "non_target_weight", "between_weight", "within_weight"}
    others = {"max_weight_norm", "weights", "member_weights"}
    assert weights == {"soft_weight", "soft_weight_schedule"} | of_parts | others
    forbidden = re.compile(r"\b(alpha|hard_weight|kd_weight|distill_weight|ce_weight|tau)\b")
    source = Path(str(kd_pipeline.__file__)).parent
    found = [
        f"{file.name}: {match[0]}"
        for file in source.rglob("*.py")
        for match in forbidden.finditer(file.read_text(encoding="utf-8"))
        # Matplotlib's word for transparency, torchvision's for the Beta law, ONNX's for Gemm.
        if file.parent.name not in ("views", "evaluation", "export")
    ]
    assert found == []


def test_normalisation_travels_with_the_weights_and_is_part_of_their_identity(
    tmp_path: Path, images: ImageSet
) -> None:
    first, other = checkpoint(0), checkpoint(0, mean=0.1)
    assert all(torch.equal(first.state[k], v) for k, v in other.state.items())
    assert first.fingerprint != other.fingerprint
    write_checkpoint(other, tmp_path / "model")
    read = read_checkpoint(tmp_path / "model")
    assert read.preprocessing == other.preprocessing
    pixels = images.take(images.example_ids[:4])
    with torch.inference_mode():
        assert torch.equal(build_classifier(read)(pixels), build_classifier(other)(pixels))
        assert not torch.equal(build_classifier(read)(pixels), build_classifier(first)(pixels))


def test_a_students_file_is_as_large_as_the_student(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    make_cache: Callable[..., SoftTargets],
    tmp_path: Path,
) -> None:
    cached = make_cache(tmp_path / "cache", images, splits)
    settings = StudentParams(
        num_replicates=1,
        model=Model(name="mlp", arguments={"hidden": [8]}),
        training=Training(num_epochs=1, batch_size=16, device="cpu", precision="float32"),
    )
    (student,), _ = train_students(
        LabelledImages(images, examples, splits),
        settings,
        ArmParams(soft_weight=1.0),
        ViewsParams(),
        teacher=CachedTeacher(cached, SoftTargetsParams(), ["t"]),
        states=StateFolder(tmp_path / "states"),
    )
    write_checkpoint(student, tmp_path / "student")
    num_parameters = 64 * 8 + 8 + 8 * 3 + 3
    assert student.facts["costs"]["model/parameters"] == num_parameters
    size = (tmp_path / "student/model.safetensors").stat().st_size
    assert 4 * num_parameters <= size < 4 * num_parameters + 1024


def test_class_ids_above_2048_survive(tmp_path: Path) -> None:
    """float16 holds 2049 as 2048: labels, pseudo-labels and example ids stay integers."""
    num_classes, ids = 2051, np.array([2**53 + 1, 2**53 + 3])
    labels = pd.array([2049, 2050], dtype="Int64")
    images = ImageSet(
        ids, np.zeros((2, 1, 2, 2), dtype=np.uint8), tuple(f"c{i}" for i in range(num_classes))
    )
    names = ["c2049", "c2050"]
    examples = pd.DataFrame({"example_id": ids, "label": labels, "class_name": names})
    splits = pd.DataFrame(
        {"example_id": ids, "role": "transfer", "use_label": True, "for_student": True}
    )
    data = LabelledImages(images, examples, splits)
    assert data.labels_of(ids).tolist() == [2049, 2050]
    logits = np.zeros((2, num_classes), dtype=np.float32)
    logits[[0, 1], [2049, 2047]] = 5
    provenance = Provenance(images.class_names, ("t",), "i", "s", {}, 1)
    made = write_soft_targets(tmp_path, [[logits]], ids, provenance=provenance)
    assert made.example_ids.tolist() == ids.tolist()
    params = ObjectiveParams(soft_weight=1.0, soft_loss="pseudo_label")
    training = Training(num_epochs=1, device="cpu")
    rows = arm_rows(data, params, training, MemoryBudget(2**30), has_teacher=True)
    assert rows.labels.dtype == torch.int64
    assert rows.labels.tolist() == [2049, 2050]
    source = CachedTeacher(made, SoftTargetsParams(), ["t"]).open(
        rows, params, training, MemoryBudget(2**30)
    )
    first_step = source.chunk(torch.arange(2)[None], torch.zeros(1, 2, dtype=torch.int64))
    right = torch.zeros(2, num_classes)
    right[[0, 1], [2049, 2047]] = 50
    loss = Objective(params)(right, rows.labels, first_step(0, right)).loss
    assert loss < 1e-6  # The class next to it would cost 50.
