"""ExecuTorch's programs: the checkpoint's logits, int8 near them, and what is refused.

An export takes seconds: one network is tested always, the others by `make test-long`.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_pipeline.errors import ExportError, ParameterError
from kd_pipeline.export.executorch_files import TARGET
from kd_pipeline.export.target import ExportedFile, ExportJob
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

CLASSES = tuple("abcde")
WHOLE = pytest.mark.long
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], int | None]] = {
    "resized": ("small_cnn", {"channels": [16, 32, 64], "dropout": 0.5}, (3, 12, 12), 8),
    "grey": ("small_cnn", {"channels": [16, 32]}, (1, 8, 8), None),
    "mlp": ("mlp", {"hidden": [64]}, (1, 8, 8), None),
    "convolution": ("cifar_resnet", {"depth": 8, "shortcut": "convolution"}, (3, 16, 16), None),
    "padding": ("cifar_resnet", {"depth": 8, "shortcut": "padding"}, (3, 16, 16), None),
    "fast": ("fast_cnn", {"widths": [16, 32, 32]}, (3, 32, 32), None),
}
NAMES = ["resized", *(pytest.param(name, marks=WHOLE) for name in NETWORKS if name != "resized")]


def draw(num_images: int, shape: tuple[int, int, int], *, seed: int) -> torch.Tensor:
    """uint8 images of their own brightness and contrast, so that logits differ between them."""
    generator = torch.Generator().manual_seed(seed)
    level, contrast = (torch.rand(num_images, shape[0], 1, 1, generator=generator) for _ in "lc")
    noise = torch.randn(num_images, *shape, generator=generator)
    return (255 * (level + contrast * noise / 2)).clamp(0, 255).to(torch.uint8)


def make_checkpoint(name: str) -> ModelCheckpoint:
    """Initial weights, and the statistics of batch norm of some images."""
    architecture, arguments, shape, input_size = NETWORKS[name]
    model = Model(name=architecture, arguments=arguments, input_size=input_size)
    given = Preprocessing(shape, (0.5,) * shape[0], (0.3,) * shape[0])
    classifier = build_untrained(model, given, num_classes=len(CLASSES), seed=0)
    with torch.no_grad():
        for seed in range(30):
            classifier.train()(draw(32, shape, seed=seed))
    return snapshot(classifier, model, class_names=CLASSES, facts={})


@dataclass(frozen=True)
class Exported:
    job: ExportJob
    files: dict[str, ExportedFile]
    kept_state: bool

    def images(self, num_images: int = 64) -> torch.Tensor:
        return draw(num_images, self.job.input_shape, seed=99)

    def expected(self) -> np.ndarray:
        with torch.no_grad():
            return build_classifier(self.job.checkpoint)(self.images()).numpy()


def global_state() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    ]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export a network by name, once."""
    made: dict[str, Exported] = {}

    def exported(name: str) -> Exported:
        if name not in made:
            shape = NETWORKS[name][2]
            job = ExportJob(
                make_checkpoint(name),
                shape,
                draw(32, shape, seed=7),
                tmp_path_factory.mktemp(name),
                {"class_names": '["a", "é"]', "created_by": "a test"},
            )
            before = global_state()
            files = {file.precision: file for file in TARGET.export(job)}
            made[name] = Exported(job, files, global_state() == before)
        return made[name]

    return exported


@pytest.mark.parametrize("name", NAMES)
def test_float_logits_are_the_checkpoints(export: Callable[[str], Exported], name: str) -> None:
    exported = export(name)
    run = TARGET.open(exported.files["float32"].path, 1)
    logits = run(exported.images().numpy())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, exported.expected(), atol=1e-5)
    np.testing.assert_array_equal(run(exported.images().numpy()[:1]), logits[:1])


@pytest.mark.parametrize("name", NAMES)
def test_int8_logits_are_near_and_their_order_too(
    export: Callable[[str], Exported], name: str
) -> None:
    exported = export(name)
    logits = TARGET.open(exported.files["int8"].path, 1)(exported.images().numpy())
    expected = exported.expected()
    errors = np.abs(logits - expected)
    assert 0 < errors.mean() < 0.1 * expected.std(axis=0).mean()
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_the_weights_and_little_else(
    export: Callable[[str], Exported], name: str
) -> None:
    exported = export(name)
    assert [file.name for file in sorted(exported.job.folder.iterdir())] == [
        "model.int8.pte",
        "model.pte",
    ]
    learnt = build_classifier(exported.job.checkpoint).network.parameters()
    num_weights = sum(parameter.numel() for parameter in learnt)
    sizes = {p: file.sizes["size_bytes"] for p, file in exported.files.items()}
    assert 4 * num_weights < sizes["float32"] < 4 * num_weights + 20_000
    assert num_weights < sizes["int8"] < num_weights + 30_000
    for file in exported.files.values():
        content = file.path.read_bytes()
        assert len(content) == file.sizes["size_bytes"]
        rows = exported.job.calibration.flatten(start_dim=1)
        assert not any(row.numpy().tobytes()[:32] in content for row in rows)


def test_int8_takes_less_than_half_of_float32(export: Callable[[str], Exported]) -> None:
    files = export("resized").files
    assert files["int8"].sizes["size_bytes"] < 0.5 * files["float32"].sizes["size_bytes"]


def test_metadata_are_methods_of_the_program(export: Callable[[str], Exported]) -> None:
    from executorch.runtime import Runtime

    for file in export("resized").files.values():
        program = Runtime.get().load_program(file.path)
        assert program.method_names == {"forward", "class_names", "created_by"}
        assert program.load_method("class_names").execute(()) == ['["a", "é"]']


def test_export_leaves_no_trace_in_global_state(export: Callable[[str], Exported]) -> None:
    assert export("resized").kept_state


def test_programs_of_other_numbers_of_threads_do_not_disturb_each_other(
    export: Callable[[str], Exported], capfd: pytest.CaptureFixture[str]
) -> None:
    exported = export("resized")
    pixels, path = exported.images(3).numpy(), exported.files["float32"].path
    runners = [TARGET.open(path, num_threads) for num_threads in (1, 2, 3, 2)]
    expected = runners[0](pixels)
    for _ in range(10):
        for runner in runners:
            np.testing.assert_allclose(runner(pixels), expected, atol=1e-6)
    assert capfd.readouterr() == ("", "")


USERS_NETS = """
import torch

class Cumulated(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1).cumprod(dim=1)[:, :5]

class Sorted(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1).sort(dim=1).values[:, :5]

class Branching(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :5] if images.sum() > 0 else images.flatten(1)[:, 5:10]
"""


@pytest.mark.parametrize(
    ("network", "named"),
    [
        pytest.param("Cumulated", "aten.cumprod", marks=WHOLE),
        ("Sorted", "aten::sort"),
        ("Branching", "data-dependent"),
    ],
)
def test_what_executorch_cannot_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, named: str
) -> None:
    (tmp_path / "users_own_nets.py").write_text(USERS_NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_nets", raising=False)
    shape = (1, 4, 4)
    checkpoint = ModelCheckpoint(
        f"module:users_own_nets:{network}", {}, CLASSES, Preprocessing(shape, (0.5,), (0.3,)), {}
    )
    job = ExportJob(checkpoint, shape, draw(4, shape, seed=0), tmp_path)
    with pytest.raises(ExportError, match=f"cannot take module:users_own_nets.*{named}"):
        TARGET.export(job)
    assert not list(tmp_path.glob("*.pte"))


@pytest.mark.parametrize("package", TARGET.packages)
def test_a_missing_package_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    shape = NETWORKS["mlp"][2]
    job = ExportJob(make_checkpoint("mlp"), shape, draw(4, shape, seed=0), tmp_path)
    needs = rf"have {package} installed: pip install 'kd_pipeline\[{TARGET.extra}\]'"
    with pytest.raises(ParameterError, match=needs):
        TARGET.export(job)
    with pytest.raises(ParameterError, match=needs):
        TARGET.open(tmp_path / "model.pte", 1)
