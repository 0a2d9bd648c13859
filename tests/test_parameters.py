"""Parameters: what Kedro refuses before any node runs, and that the message names the knob."""

import math
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.validation.type_extractor import TypeExtractor
from pydantic import ValidationError

from kd_pipeline import settings
from kd_pipeline.config import Params
from kd_pipeline.errors import SettingsError
from kd_pipeline.hooks.parameters import check_parameters
from kd_pipeline.models.checkpoint import build_untrained, count_macs
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.training.settings import StudentParams, TeacherParams
from kd_pipeline.training.threads import MAX_MACS_ON_ONE_THREAD

CONF = Path(__file__).parents[1] / "conf"
Kinds = dict[str, type[Params]]


@pytest.fixture(scope="module")
def kinds() -> Kinds:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain")
        return TypeExtractor(register_pipelines()).extract_types_from_pipelines()


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="register_new_resolver")
        loader = OmegaConfigLoader(str(CONF), env="base", **settings.CONFIG_LOADER_ARGS)
        loaded: dict[str, Any] = loader["parameters"]
    return loaded


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of the parameters in which one dotted name has another value."""
    copy = deepcopy(base)
    *blocks, last = path.split(".")
    block = copy
    for name in blocks:
        block = block[name]
    block[last] = value
    return copy


def refusal(kinds: Kinds, values: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        check_parameters(values, kinds)
    return str(caught.value)


BLOCKS = (
    "data_ingest",
    "data_ingest.source",
    "transfer_split",
    "transfer_split.teacher",
    "transfer_split.transfer",
    "views",
    "teacher",
    "teacher.model",
    "teacher.training",
    "teacher.training.optimiser",
    "teacher.training.schedule",
    "soft_target_caching",
    "student",
    "student.model",
    "student.training",
    "student.training.optimiser",
    "student_kd",
    "student_baseline",
    "student_smoothed",
    "student_pseudo",
    "student_live",
    "assistant",
    "assistant.model",
    "student_assisted",
    "generation_1",
    "soft_targets",
    "soft_target_verification",
    "evaluation",
    "sweep",
    "sweep.pruner",
)


@pytest.mark.parametrize("block", BLOCKS)
def test_an_unknown_key_is_refused_by_name(block: str, kinds: Kinds, base: dict[str, Any]) -> None:
    message = refusal(kinds, changed(base, f"{block}.learning_rat", 0.1))
    assert message.startswith(f"`{block}.learning_rat` is not a setting")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data_ingest.source.kind", "digit"),
        ("data_ingest.source", {"kind": "image_folder"}),
        ("data_ingest.source", {"kind": "torchvision", "root": "data"}),
        ("data_ingest.image_size", 0),
        ("data_ingest.image_size", 1_000_000),
        ("data_ingest.image_size", "large"),
        ("data_ingest.colour", "gray"),
        ("data_ingest.max_rejected_share", 1.5),
        ("data_ingest.max_rejected_share", -0.1),
        ("data_ingest.max_pixels_per_image", 0),
        ("transfer_split.seed", -1),
        ("transfer_split.seed", 0.5),
        ("transfer_split.test_fraction", 0.0),
        ("transfer_split.test_fraction", 1.0),
        ("transfer_split.validation_fraction", 0.0),
        ("transfer_split.teacher", {}),
        ("transfer_split.teacher", {"labels_per_class": 10, "fraction": 0.5}),
        ("transfer_split.teacher.labels_per_class", 0),
        ("transfer_split.teacher.labels_per_class", "few"),
        ("transfer_split.teacher", {"fraction": 1.1}),
        ("transfer_split.transfer.relation", "same"),
        ("transfer_split.transfer.fraction", 0.0),
        ("transfer_split.transfer.labelled", "perhaps"),
        ("transfer_split.transfer.excluded_classes", "cat"),
        ("views.num_views", 0),
        ("views.num_views", 2),
        ("views.num_views", 40_000),
        ("views.transforms", [{"name": "twirl"}]),
        ("views.transforms", [{"name": "mixup"}, {"name": "cutmix"}]),
        ("views.transforms", [{"name": "shift", "max_pixels": 0}]),
        ("views.transforms", [{"name": "horizontal_flip", "probability": 1.5}]),
        ("views.transforms", [{"name": "affine", "max_scale": 0.5}]),
        ("teacher.num_members", 0),
        ("teacher.num_members", 2**15),
        ("teacher.given", [{"kind": "checkpoint", "folder": f} for f in "ab"]),
        ("teacher.given", [{"kind": "pickle", "file": "a.pkl"}]),
        ("teacher.given", [{"kind": "checkpoint"}]),
        ("teacher.given", [{"kind": "torchvision", "name": "resnet18"}]),
        ("teacher.given", [{"kind": "torchvision", "name": "resnet18", "file": "a.pth"}]),
        (
            "teacher.given",
            [{"kind": "timm", "name": "x", "weights": True, "file": "a.pth"}],
        ),
        (
            "teacher.given",
            [{"kind": "module", "import_path": "a:b", "file": "a.pth"}],
        ),
        (
            "teacher.given",
            [
                {
                    "kind": "module",
                    "import_path": "a.b",
                    "file": "a.pth",
                    "preprocessing": {"mean": [0.5], "std": [0.5]},
                }
            ],
        ),
        (
            "teacher.given",
            [{"kind": "onnx", "file": "a", "preprocessing": {"mean": [0.5, 0.5], "std": [0.5]}}],
        ),
        (
            "teacher.given",
            [{"kind": "onnx", "file": "a", "preprocessing": {"mean": [0.5], "std": [0.0]}}],
        ),
        (
            "teacher.given",
            [{"kind": "onnx", "file": "a", "class_names": "images", "class_names_file": "b"}],
        ),
        ("teacher.given", [{"kind": "mlflow", "uri": "s3://bucket"}]),
        ("teacher.given", [{"kind": "logits", "file": "a.pkl"}]),
        ("teacher.model.input_size", 0),
        ("teacher.model", None),
        ("teacher.training", None),
        ("teacher.label_smoothing", 1.0),
        ("teacher.transforms", [{"name": "mixup"}, {"name": "cutmix"}]),
        ("teacher.pretrained", {}),
        ("teacher.pretrained", {"weights": "DEFAULT", "file": "weights.pth"}),
        ("teacher.pretrained", {"file": "weights.pth", "trainable_layers": 0}),
        ("teacher.training.num_epochs", 0),
        ("teacher.training.batch_size", 0),
        ("teacher.training.max_gradient_norm", 0.0),
        ("teacher.training.device", "gpu"),
        ("soft_target_caching.batch_size", -1),
        ("soft_target_caching.precision", "float16"),
        ("soft_target_caching.top_k", 3),
        ("soft_target_caching.temperature", 2.0),
        ("soft_targets.ensemble_average", "median"),
        ("soft_targets.member_weights", [0.0, 0.0]),
        ("soft_targets.tail", "none"),
        ("student.num_replicates", 0),
        ("student.num_replicates", -1),
        ("student.num_replicates", 2.5),
        ("student.model", "mlp"),
        ("student.training.num_epochs", "many"),
        ("student.training.checkpoint_every", 0),
        ("student.training.evaluate_every", 0),
        ("student.training.early_stopping", {"metric": "test/accuracy"}),
        ("student.training.early_stopping", {"patience": 0}),
        ("student.training.schedule", {"name": "cosine", "warmup_fraction": 1.0}),
        ("student.training.optimiser.arguments", [0.1]),
        ("student_kd.temperature", 0),
        ("student_kd.temperature", -4.0),
        ("student_kd.temperature", math.inf),
        ("student_kd.temperature", math.nan),
        ("student_kd.temperature", 1e-9),
        ("student_kd.temperature", 1e9),
        ("soft_target_caching", {"top_k": 3, "temperature": 1e9}),
        ("student_kd.soft_weight", 1.5),
        ("student_kd.soft_weight", -0.1),
        ("student_kd.soft_loss", "kld"),
        ("student_kd.soft_loss", {"name": "kl", "gamma": 2.0}),
        ("assistant.num_replicates", 0),
        ("generation_1.training", {"batch_size": 8}),
        ("student_smoothed.label_smoothing", 1.0),
        ("student_pseudo.soft_loss", "student"),
        ("student.num_replicates", 10**9),
        ("assistant.num_replicates", 10**9),
        ("student.training.batch_size", 10**11),
        ("student.model.input_size", 10**6),
        ("soft_target_caching.batch_size", 10**11),
        ("views.transforms", [{"name": "shift", "max_pixels": 10**6}]),
        ("views.transforms", [{"name": "rand_augment", "num_ops": 10**9}]),
        ("model_export.latency", {"batch_sizes": [10**9]}),
        ("model_export.latency", {"num_repeats": 10**9}),
        ("evaluation.num_bootstrap_samples", 10**11),
        ("evaluation.num_calibration_bins", 10**11),
        ("evaluation.num_bootstrap_samples", 10),
        ("evaluation.confidence_level", 1.0),
        ("evaluation.confidence_level", 95),
        ("evaluation.num_calibration_bins", 0),
        ("evaluation.device", None),
        ("sweep.num_trials", 0),
        ("sweep.num_trials", 10**9),
        ("sweep.num_processes", 10**9),
        ("sweep.metric", "test/accuracy"),
        ("sweep.sampler", "grid"),
        ("sweep.pruner", "best"),
        ("sweep.parameters", {"student_kd.temperature": {"low": 4.0, "high": 1.0}}),
        ("sweep.parameters", {"student_kd.temperature": {"low": 1.0}}),
        ("sweep.shared_from", "student_pseudo"),
        ("sweep.preset", "base"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    path: str, value: object, kinds: Kinds, base: dict[str, Any]
) -> None:
    message = refusal(kinds, changed(base, path, value))
    assert "Input should" not in message
    # A rule over several settings names their block, and them in its words.
    for line in message.splitlines():
        assert line.startswith((f"`{path}", f"`{path.rpartition('.')[0]}"))
    assert path.rpartition(".")[2] in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("student_kd.temperature", 1e-9, "must lie in [0.05, 100]: below, the rounding of float16"),
        ("student_kd.temperature", 1e9, "`soft_loss: logit_mse` is the limit, got 1e+09"),
        (
            "evaluation.num_bootstrap_samples",
            10**11,
            "must be at most 1,000,000: all are in memory",
        ),
    ],
)
def test_a_bound_is_given_with_its_reason(
    path: str, value: float, message: str, kinds: Kinds, base: dict[str, Any]
) -> None:
    found = refusal(kinds, changed(base, path, value))
    assert found.startswith(f"`{path}` must ")
    assert message in found


def test_a_temperature_that_the_loss_would_ignore_is_refused_before_the_teacher_is_trained(
    kinds: Kinds, base: dict[str, Any]
) -> None:
    arm = {"soft_loss": "logit_mse", "temperature": 4.0, "soft_weight": 1.0}
    message = refusal(kinds, {**base, "student_kd": arm})
    assert message.startswith("`student_kd.temperature` must be 1 for logit_mse")


@pytest.mark.parametrize("env", ["base", "local", "smoke", "mnist", "cifar10"])
@pytest.mark.parametrize(
    ("block", "name", "value"),
    [
        ("student_kd", "label_smoothing", 0.1),
        ("evaluation", "seed", 5),
        ("transfer_split", "seed", 1),
    ],
)
def test_a_parameter_given_on_the_command_line_leaves_its_neighbours_alone(
    env: str, block: str, name: str, value: float
) -> None:
    """Kedro's loader replaces the block, as a preset would, wherever the preset lacks it.

    `--env=smoke --params=student_kd.temperature=4` would then distil with `soft_weight: 0`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="register_new_resolver")
        kind = getattr(settings, "CONFIG_LOADER_CLASS", OmegaConfigLoader)
        plain = kind(str(CONF), env=env, **settings.CONFIG_LOADER_ARGS)["parameters"]
        given = {block: {name: value}}
        typed = kind(str(CONF), env=env, runtime_params=given, **settings.CONFIG_LOADER_ARGS)
        assert typed["parameters"] == plain | {block: plain[block] | {name: value}}


def test_a_missing_block_part_is_refused(kinds: Kinds, base: dict[str, Any]) -> None:
    student = {key: value for key, value in base["student"].items() if key != "model"}
    message = refusal(kinds, {**base, "student": student})
    assert message == "`student.model` must be given"


def test_all_mistakes_are_named_at_once(kinds: Kinds, base: dict[str, Any]) -> None:
    values = changed(changed(base, "student_kd.temperature", 0), "student.num_replicates", 0)
    message = refusal(kinds, values)
    assert message == (
        "`student.num_replicates` must be greater than or equal to 1, got 0\n"
        "`student_kd.temperature` must lie in [0.05, 100]: below, the rounding of float16 logits "
        "outweighs what they hold; above, all classes are nearly alike, and `soft_loss: logit_mse` "
        "is the limit, got 0"
    )


def test_a_list_of_nothing_is_no_teacher() -> None:
    with pytest.raises(ValidationError, match="give `model` and `training`, or `given`"):
        TeacherParams()


def test_every_block_is_frozen_and_has_no_other_key(kinds: Kinds) -> None:
    def below(base: type[Params]) -> set[type[Params]]:
        return {base}.union(*(below(kind) for kind in base.__subclasses__()))

    classes = below(Params)
    assert len(classes) > 30
    for kind in classes:
        assert kind.model_config["frozen"]
        assert kind.model_config["extra"] == "forbid"


def test_the_default_run_trains_on_one_thread(base: dict[str, Any]) -> None:
    """So that README's table holds for any number of threads."""
    teacher, student = TeacherParams(**base["teacher"]), StudentParams(**base["student"])
    digits = Preprocessing((1, 8, 8), (0.5,), (0.5,))
    for params, count in ((teacher, 1), (student, student.num_replicates)):
        network = build_untrained(params.model, digits, num_classes=10, seed=0)
        macs = count * params.training.batch_size * count_macs(network)
        assert macs <= MAX_MACS_ON_ONE_THREAD
