"""Whole networks: the C file of a checkpoint against onnxruntime's run of its int8 graph."""

import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from kd_pipeline.errors import ExportError
from kd_pipeline.export import c_target
from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_graph import read_graph
from kd_pipeline.export.c_target import TARGET
from kd_pipeline.export.onnx_files import int8_graph
from kd_pipeline.export.target import ExportJob
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

NETWORKS = {
    "mlp": Model(name="mlp", arguments={"hidden": [12, 8]}),
    "small_cnn": Model(name="small_cnn", arguments={"channels": [4, 8]}),
    "padding": Model(name="cifar_resnet", arguments={"depth": 8}),
    "convolution": Model(name="cifar_resnet", arguments={"depth": 8, "shortcut": "convolution"}),
}


def checkpoint_of(model: Model, shape: tuple[int, int, int]) -> ModelCheckpoint:
    preprocessing = Preprocessing(shape, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    classifier = build_untrained(model, preprocessing, num_classes=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # Batch norm that has something to fold.
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return snapshot(classifier, model, class_names=("a", "b", "c", "d"), facts={})


def noise(num_images: int, shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_images)
    return torch.randint(0, 256, (num_images, *shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_int8_graph(name: str, tmp_path: Path) -> None:
    shape = (3, 9, 11)
    checkpoint = checkpoint_of(NETWORKS[name], shape)
    graph = int8_graph(ExportJob(checkpoint, shape, noise(32, shape), tmp_path))
    network, file, pixels = read_graph(graph), tmp_path / "model.c", noise(200, shape).numpy()
    write_model(network, file, class_names=checkpoint.class_names, metadata={})
    logits = TARGET.open(file, 1)(pixels)
    # Without optimisations, which change the order of rounding.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    expected = session.run(None, {"pixels": pixels})[0]
    steps = np.abs(logits - expected) / network.logits.scale
    assert steps.max() < 2.5
    assert np.mean(steps < 0.5) > 0.9
    assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) > 0.97
    assert len(np.unique(logits)) > 20


def test_an_export_is_a_source_and_its_header(tmp_path: Path) -> None:
    shape = (3, 4, 4)
    checkpoint = checkpoint_of(NETWORKS["mlp"], shape)
    job = ExportJob(checkpoint, shape, noise(8, shape), tmp_path, {"role": "student"})
    (file,) = TARGET.export(job)
    assert (file.target, file.precision) == ("c", "int8")
    assert file.path == tmp_path / TARGET.files["int8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.c", "model.h"]
    assert '"role", "student"' in (tmp_path / "model.h").read_text()
    weights = 12 * 48 + 8 * 12 + 4 * 8
    assert weights < file.sizes["flash_bytes"] < weights + 4096
    assert file.sizes["ram_bytes"] >= 48


def test_refuses_a_network_and_leaves_nothing(tmp_path: Path) -> None:
    shape = (3, 25, 25)
    model = Model(name="fast_cnn", arguments={"widths": [4, 4, 4]})
    job = ExportJob(checkpoint_of(model, shape), shape, noise(2, shape), tmp_path)
    with pytest.raises(ExportError, match=r"operators that the target `c` has, got .*Gelu"):
        TARGET.export(job)
    assert not list(tmp_path.iterdir())


def test_refuses_images_of_another_size(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(NETWORKS["small_cnn"], (3, 8, 8))
    job = ExportJob(checkpoint, (3, 16, 16), noise(2, (3, 16, 16)), tmp_path)
    with pytest.raises(ExportError, match=r"images of the network's size, got Resize"):
        TARGET.export(job)


def test_a_compiler_may_be_given_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -O1")
    assert runpy.run_path(c_target.__file__)["TARGET"].programs == ("cc", "size")
