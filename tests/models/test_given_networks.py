"""Torchvision's and timm's models: what the weights declare is what is used."""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.models.given import ImagesAtHand, read_given
from kd_pipeline.models.settings import Given

PIXELS = torch.randint(
    0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
IMAGES = ImagesAtHand(("cat", "dog", "fox"), (3, 40, 40), PIXELS)
NAME = "teacher.given[0]"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_MODEL = "resnet10t"


def entry(**settings: Any) -> Any:
    """As in YAML, validated."""
    return TypeAdapter(Given).validate_python(settings)


def images_of(class_names: tuple[str, ...]) -> ImagesAtHand:
    return ImagesAtHand(class_names, IMAGES.shape, PIXELS)


def logits_of(checkpoint: ModelCheckpoint) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = build_classifier(checkpoint)(PIXELS)
    return logits


@pytest.fixture(scope="module")
def squeezenet() -> torch.nn.Module:
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: torch.nn.Module = torchvision.models.get_model("squeezenet1_1", num_classes=3)
    return network.eval()


def test_a_torchvision_file_with_declared_preprocessing(
    squeezenet: torch.nn.Module, tmp_path: Path
) -> None:
    save_file(squeezenet.state_dict(), tmp_path / "net.safetensors")
    setting = entry(
        kind="torchvision",
        name="squeezenet1_1",
        file=str(tmp_path / "net.safetensors"),
        class_names=["fox", "cat", "dog"],
        preprocessing="declared",
    )
    given = read_given(setting, IMAGES, name=NAME)
    assert given.preprocessing.shape == (3, 224, 224)
    assert (given.preprocessing.mean, given.preprocessing.std) == IMAGENET
    resized = torch.nn.functional.interpolate(
        PIXELS.float() / 255, (224, 224), mode="bilinear", antialias=True
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.inference_mode():
        expected = squeezenet((resized - mean) / std)[:, [1, 2, 0]]
    torch.testing.assert_close(logits_of(given), expected, rtol=1e-3, atol=1e-4)


def test_torchvision_weights_by_name_declare_classes_before_the_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real enum; only the download is replaced."""
    import torchvision

    enum = torchvision.models.get_model_weights("squeezenet1_1")

    def download(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(enum, "get_state_dict", download)
    setting = entry(kind="torchvision", name="squeezenet1_1", weights="DEFAULT")
    with pytest.raises(
        CheckpointError, match="1000 classes where the images have 3; only in the teacher: "
    ):
        read_given(setting, IMAGES, name=NAME)
    trusting = setting.model_copy(update={"class_names": "images"})
    with pytest.raises(CheckpointError, match=r"could not be downloaded .* name the file under"):
        read_given(trusting, IMAGES, name=NAME)
    state = torchvision.models.get_model("squeezenet1_1").state_dict()
    monkeypatch.setattr(enum, "get_state_dict", lambda *a, **k: state)
    with pytest.raises(
        CheckpointError,
        match=r"given\[0\]` cannot be built: .* do not fit squeezenet1_1 (?s:.*)size mismatch",
    ):
        read_given(trusting, IMAGES, name=NAME)
    names = tuple(f"class {i}" for i in range(1000))
    given = read_given(trusting, images_of(names), name=NAME)
    assert given.preprocessing.shape == (3, 224, 224)


def test_unknown_names_are_refused_with_those_nearest() -> None:
    for kind, message in (("torchvision", "be torchvision's"), ("timm", "be a model of timm's")):
        setting = entry(kind=kind, name="resnet19", weights="DEFAULT", class_names="images")
        with pytest.raises(ParameterError, match=rf"given\[0\]\.name` must {message}.*resnet18"):
            read_given(setting, IMAGES, name=NAME)
    setting = entry(kind="timm", name="resnet18", weights="best", class_names="images")
    with pytest.raises(ParameterError, match=r"weights of resnet18, got 'best'; legal: .*a1_in1k"):
        read_given(setting, IMAGES, name=NAME)
    setting = entry(kind="timm", name="resnet18.best", weights=True, class_names="images")
    with pytest.raises(ParameterError, match=r"weights of resnet18, got 'best'; legal: .*a1_in1k"):
        read_given(setting, IMAGES, name=NAME)


def test_arguments_are_named_as_in_their_entry(squeezenet: torch.nn.Module, tmp_path: Path) -> None:
    save_file(squeezenet.state_dict(), tmp_path / "net.safetensors")
    setting = entry(
        kind="torchvision",
        name="squeezenet1_1",
        file=str(tmp_path / "net.safetensors"),
        class_names="images",
        preprocessing="declared",
        arguments={"colour": 1},
    )
    with pytest.raises(ParameterError, match=r"`teacher\.given\[0\]\.arguments` must suit"):
        read_given(setting, IMAGES, name=NAME)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(TIMM_MODEL, num_classes=3)
    file = tmp_path_factory.mktemp("timm") / "net.safetensors"
    save_file(network.state_dict(), file)
    return file


def test_a_timm_file(timm_file: Path) -> None:
    setting = entry(
        kind="timm",
        name=TIMM_MODEL,
        file=str(timm_file),
        class_names="images",
        preprocessing={"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 32},
    )
    given = read_given(setting, IMAGES, name=NAME)
    assert given.architecture == f"timm:{TIMM_MODEL}"
    assert given.preprocessing.shape == (3, 32, 32)
    assert logits_of(given).shape == (3, 3)


def test_timm_weights_by_name_with_all_that_they_declare(timm_file: Path) -> None:
    """Timm's own loading: only where the weights lie is overlaid."""
    overlay = {
        "file": str(timm_file),
        "num_classes": 3,
        "mean": (0.1, 0.2, 0.3),
        "input_size": (3, 48, 48),
        "label_names": ["fox", "dog", "cat"],
    }
    setting = entry(
        kind="timm",
        name=TIMM_MODEL,
        weights=True,
        arguments={"pretrained_cfg_overlay": overlay},
    )
    given = read_given(setting, IMAGES, name=NAME)
    assert given.preprocessing.shape == (3, 48, 48)
    assert given.preprocessing.mean == (0.1, 0.2, 0.3)
    assert given.class_order == (2, 1, 0)
    reference = timm.create_model(TIMM_MODEL, num_classes=3)
    from safetensors.torch import load_file

    reference.load_state_dict(load_file(timm_file))
    assert all(torch.equal(given.state[k], v) for k, v in reference.state_dict().items())


def test_timm_knows_the_classes_of_imagenet_by_id_and_by_word() -> None:
    """They are matched before anything is downloaded."""
    setting = entry(kind="timm", name=TIMM_MODEL, weights=True)
    with pytest.raises(CheckpointError, match=r"1000 classes .* n01440764"):
        read_given(setting, IMAGES, name=NAME)


def test_a_head_that_timm_would_start_afresh_is_refused() -> None:
    setting = entry(kind="timm", name=TIMM_MODEL, weights=True, arguments={"num_classes": 3})
    with pytest.raises(ParameterError, match=r"num_classes` must be left out"):
        read_given(setting, IMAGES, name=NAME)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    setting = entry(kind="timm", name=TIMM_MODEL, weights=True)
    message = r"`teacher\.given\[0\]\.kind` must have timm .*pip install 'kd_pipeline\[timm\]'"
    with pytest.raises(ParameterError, match=message):
        read_given(setting, IMAGES, name=NAME)
