"""ONNX files compute what their checkpoint computes, from raw pixels, and hold nothing else."""

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import ExportError
from kd_pipeline.export.jobs import ExportedModel
from kd_pipeline.export.onnx_files import (
    TARGET,
    float_graph,
    quantise,
)
from kd_pipeline.export.target import ExportJob
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

COLOUR = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def checkpoint_of(model: Model, preprocessing: Preprocessing = COLOUR) -> ModelCheckpoint:
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=0)
    with torch.no_grad():  # Batch norm that has something to fold.
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
                module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return snapshot(classifier, model, class_names=("a", "b", "c"), facts={})


def expected(checkpoint: ModelCheckpoint, pixels: Tensor) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = build_classifier(checkpoint)(pixels).numpy()
    return logits


@pytest.fixture(scope="module")
def resnet() -> ModelCheckpoint:
    arguments = {"depth": 8, "shortcut": "convolution"}
    return checkpoint_of(Model(name="cifar_resnet", arguments=arguments))


@pytest.fixture(scope="module")
def job(resnet: ModelCheckpoint, tmp_path_factory: Any) -> ExportJob:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (150, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ExportJob(resnet, (3, 8, 8), pixels, tmp_path_factory.mktemp("job"), {"a": "b"})


@pytest.fixture(scope="module")
def graph(job: ExportJob) -> Any:
    return float_graph(job)


def run(graph: Any, pixels: Tensor, folder: Path) -> np.ndarray:
    file = folder / "graph.onnx"
    onnx.save(graph, file)
    logits: np.ndarray = TARGET.open(file, 1)(pixels.numpy())
    return logits


def test_float32_takes_raw_pixels_in_any_batch(job: ExportJob, graph: Any, tmp_path: Path) -> None:
    for size in (1, 2, 7):
        pixels = job.calibration[:size]
        np.testing.assert_allclose(
            run(graph, pixels, tmp_path), expected(job.checkpoint, pixels), atol=1e-5
        )


def test_batch_norm_is_folded_into_convolutions(graph: Any) -> None:
    operators = [node.op_type for node in graph.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 9


def test_int8_weights_are_a_byte_each_with_a_scale_per_channel(job: ExportJob, graph: Any) -> None:
    quantised = quantise(graph, job.calibration).graph
    tensors = {tensor.name: tensor for tensor in quantised.initializer}
    scales = {
        node.input[0]: tensors[node.input[1]]
        for node in quantised.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors
    }
    weights = [tensors[name] for name in scales if len(tensors[name].dims) > 1]
    assert len(weights) == 10  # Nine convolutions and the head.
    for weight in weights:
        assert weight.data_type == onnx.TensorProto.INT8
        is_head = len(weight.dims) == 2
        assert list(scales[weight.name].dims) == [3 if is_head else weight.dims[0]]


def test_tensors_inside_an_int8_file_are_numbered(job: ExportJob) -> None:
    (file,) = (one.path for one in TARGET.export(job) if one.precision == "int8")
    written = onnx.load(file).graph
    made = [name for node in written.node for name in node.output]
    names = [*made, *(tensor.name for tensor in written.initializer)]
    assert len(set(names)) == len(names)
    assert {name for name in names if not name.isdecimal()} == {"logits"}
    assert {name for node in written.node for name in node.input} <= {*names, "pixels", ""}


def test_int8_is_near_float32(job: ExportJob, graph: Any, tmp_path: Path) -> None:
    pixels = job.calibration[:100]
    logits = run(quantise(graph, job.calibration), pixels, tmp_path)
    reference = expected(job.checkpoint, pixels)
    assert (logits.argmax(1) == reference.argmax(1)).mean() > 0.95
    assert 0 < np.abs(logits - reference).max() < 0.1 * np.abs(reference).max()


def test_pixels_are_normalised_in_float32(job: ExportJob, graph: Any) -> None:
    """In 8 bits, the two constants of normalisation would round the pixels twice."""
    quantised = quantise(graph, job.calibration)
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    add = next(node for node in quantised.graph.node if node.op_type == "Add")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {
        made_by[name].op_type for name in add.input if name in made_by
    }


def test_quantisation_depends_on_the_calibration_images(job: ExportJob, graph: Any) -> None:
    dark = quantise(graph, job.calibration // 8).SerializeToString()
    assert dark != quantise(graph, job.calibration).SerializeToString()


def test_equal_jobs_give_equal_files(job: ExportJob, graph: Any, tmp_path: Path) -> None:
    again = quantise(float_graph(job), job.calibration)
    assert again.SerializeToString() == quantise(graph, job.calibration).SerializeToString()


@pytest.mark.parametrize(
    "model",
    [
        Model(name="mlp", arguments={"hidden": [8]}),
        Model(name="small_cnn", arguments={"channels": [4, 8]}, input_size=16),  # Resizes.
    ],
    ids=lambda model: model.name,
)
def test_other_networks(model: Model, job: ExportJob, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(model)
    made = float_graph(replace(job, checkpoint=checkpoint))
    pixels = job.calibration[:9]
    np.testing.assert_allclose(run(made, pixels, tmp_path), expected(checkpoint, pixels), atol=1e-5)


def test_grey_pixels_of_a_network_that_takes_three_channels(job: ExportJob, tmp_path: Path) -> None:
    made = float_graph(replace(job, input_shape=(1, 8, 8)))
    pixels = job.calibration[:4, :1]
    np.testing.assert_allclose(
        run(made, pixels, tmp_path), expected(job.checkpoint, pixels), atol=1e-5
    )


class DependsOnData(nn.Module):
    """A network whose path depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits if images.sum() > 0 else -logits


def test_a_network_that_cannot_be_exported_is_named(
    job: ExportJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kd_pipeline.models.architectures.ARCHITECTURES",
        {"depends": lambda **_: DependsOnData()},
    )
    checkpoint = checkpoint_of(Model(name="depends"))
    with pytest.raises(ExportError, match="depends cannot be exported to ONNX: "):
        float_graph(replace(job, checkpoint=checkpoint))


def test_a_file_states_its_classes_input_and_origin(exported: list[ExportedModel]) -> None:
    model = exported[0]
    for file in model.files.values():
        stated = {entry.key: entry.value for entry in onnx.load(file.path).metadata_props}
        assert json.loads(stated["class_names"]) == ["low", "middle", "high"]
        assert json.loads(stated["input_shape"]) == [1, 8, 8]
        assert stated["checkpoint"] == model.checkpoint.fingerprint
        assert json.loads(stated["teacher"]) == ["t"]


def test_a_file_holds_weights_and_no_images_paths_or_teacher(
    exported: list[ExportedModel], data: LabelledImages
) -> None:
    """By size: a few hundred bytes per node beside the weights. By content: no image, no path."""
    model = exported[0]
    folded = sum(t.numel() for t in model.checkpoint.state.values())
    for (_, precision), file in model.files.items():
        content = file.path.read_bytes()
        nodes = len(onnx.load(file.path).graph.node)
        assert len(content) < 4 * folded + 400 * nodes + 2000, precision
        assert not any(image.tobytes() in content for image in data.images.pixels)
        assert b"site-packages" not in content
        assert b".py" not in content


def test_exporting_leaves_no_trace(
    job: ExportJob, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = logging.getLogger().level
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantise(float_graph(job), job.calibration[:8])
    assert torch.equal(torch.random.get_rng_state(), before)
    shown = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert (caught, shown, capsys.readouterr().out) == ([], [], "")
    assert logging.getLogger().level == levels


def test_the_runner_takes_its_number_of_threads(
    exported: list[ExportedModel], noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked: list[int] = []
    session: Callable[..., Any] = onnxruntime.InferenceSession

    def noted(path: Path, options: Any, **more: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return session(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    file = exported[0].files["onnx", "float32"].path
    one, two = (TARGET.open(file, threads)(noise.numpy()) for threads in (1, 2))
    assert asked == [1, 2]
    np.testing.assert_allclose(one, two, atol=1e-6)
