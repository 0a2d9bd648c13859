"""torchvision: every way its classes are built, on small files written here."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import EpsImagePlugin, Image

from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import DataIngestParams, TorchvisionSource
from kd_pipeline.data.sources_torchvision import CLASSIFICATION_DATA_SETS, list_torchvision
from kd_pipeline.errors import DataError, ParameterError

REAL_MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def source(name: str, root: Path, **more: Any) -> TorchvisionSource:
    return TorchvisionSource(kind="torchvision", name=name, root=str(root), **more)


def listed(name: str, root: Path, **more: Any) -> ImageListing:
    return list_torchvision(source(name, root, **more))


def ingested(name: str, root: Path, **changes: Any) -> IngestedImages:
    return ingest_images(DataIngestParams(source=source(name, root), **changes))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(head + array.tobytes())


def write_mnist(root: Path, name: str = "MNIST", stem: str = "", *, first_label: int = 0) -> None:
    for side, num, seed in (("train", 20, 1), ("t10k", 10, 2)):
        raw = root / name / "raw"
        prefix = f"{stem}{'test' if stem and side == 't10k' else side}"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", noise(num, 28, 28, seed=seed))
        labels = np.arange(num) % 10 + first_label
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def write_cifar(root: Path, name: str) -> None:
    builder = getattr(torchvision.datasets, name)
    folder = root / builder.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    num = 10 if name == "CIFAR10" else 100
    for seed, (file, _) in enumerate(builder.train_list + builder.test_list):
        batch = {"data": noise(num, 3072, seed=seed), key: list(range(num))}
        (folder / file).write_bytes(pickle.dumps(batch))
    meta = builder.meta
    names = {meta["key"]: [f"class {i}" for i in range(num)]}
    (folder / meta["filename"]).write_bytes(pickle.dumps(names))


def write_imagenette(root: Path) -> None:
    for at, split in enumerate(("train", "val")):
        for seed, wnid in enumerate(torchvision.datasets.Imagenette._WNID_TO_CLASS):
            folder = root / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            pixels = noise(12, 16 + seed, 3, seed=seed + 100 * at)
            Image.fromarray(pixels).save(folder / "x.JPEG".lower())


def write_caltech(root: Path) -> None:
    for label, name in enumerate(("001.ak47", "002.flag", "003.cup")):
        folder = root / "caltech256" / "256_ObjectCategories" / name
        folder.mkdir(parents=True)
        for number in (1, 2):
            pixels = noise(10, 10, 3, seed=10 * label + number)
            Image.fromarray(pixels).save(folder / f"{label + 1:03d}_{number:04d}.jpg")


def count(listing: ImageListing) -> dict[str, int]:
    return {str(part): int((listing.partitions == part).sum()) for part in set(listing.partitions)}


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_and_data_sets_like_it(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path, name)
    listing = listed(name, tmp_path)
    assert count(listing) == {"train": 20, "test": 10}
    assert listing.decoded is not None
    np.testing.assert_array_equal(listing.decoded[:20, 0], noise(20, 28, 28, seed=1))
    np.testing.assert_array_equal(listing.decoded[20:, 0], noise(10, 28, 28, seed=2))
    assert listing.labels.tolist() == [*range(10), *range(10), *range(10)]
    assert listing.example_ids.tolist() == list(range(30))
    assert len(listing.class_names) == 10


def test_emnist_takes_its_own_argument(tmp_path: Path) -> None:
    write_mnist(tmp_path, "EMNIST", "emnist-digits-")
    with pytest.raises(ParameterError, match=r"`data_ingest.source.arguments` must have \['split'"):
        listed("EMNIST", tmp_path)
    listing = listed("EMNIST", tmp_path, arguments={"split": "digits"})
    assert count(listing) == {"train": 20, "test": 10}


def test_letters_of_emnist_are_numbered_from_1(tmp_path: Path) -> None:
    write_mnist(tmp_path, "EMNIST", "emnist-letters-", first_label=1)
    listing = listed("EMNIST", tmp_path, arguments={"split": "letters"})
    assert listing.labels.tolist() == [*range(10), *range(10), *range(10)]
    assert listing.class_names == tuple("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, name)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    listing = listed(name, tmp_path)
    num_train = {"CIFAR10": 50, "CIFAR100": 100}[name]
    assert count(listing) == {"train": num_train, "test": 10 if name == "CIFAR10" else 100}
    assert listing.decoded is not None
    # Stored plane by plane: red, green, blue.
    first = noise(10 if name == "CIFAR10" else 100, 3072, seed=0)[0].reshape(3, 32, 32)
    np.testing.assert_array_equal(listing.decoded[0], first)
    assert listing.class_names[3] == "class 3"


def test_imagenette_is_decoded_and_its_synonyms_shortened(tmp_path: Path) -> None:
    write_imagenette(tmp_path)
    made = ingested("Imagenette", tmp_path, image_size=8)
    assert made.images.pixels.shape == (20, 3, 8, 8)
    assert made.images.class_names[:2] == ("tench", "English springer")
    assert made.examples["label"].tolist() == [*range(10), *range(10)]
    assert made.examples["partition"].tolist() == ["train"] * 10 + ["test"] * 10
    with pytest.raises(ParameterError, match=r"`data_ingest.source.arguments` must be values"):
        listed("Imagenette", tmp_path, arguments={"size": "tiny"})


def test_caltech_has_no_test_set(tmp_path: Path) -> None:
    write_caltech(tmp_path)
    broken = tmp_path / "caltech256" / "256_ObjectCategories" / "003.cup" / "003_0002.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    made = ingested("Caltech256", tmp_path, max_rejected_share=0.5)
    assert set(made.examples["partition"]) == {"pool"}
    assert made.examples["class_name"].tolist() == [
        "001.ak47", "001.ak47", "002.flag", "002.flag", "003.cup",
    ]  # fmt: skip
    assert made.rejected["source"].tolist() == ["Caltech256/pool/5"]


def test_a_postscript_file_named_jpg_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_caltech(tmp_path)
    evil = tmp_path / "caltech256" / "256_ObjectCategories" / "003.cup" / "003_0002.jpg"
    evil.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    made = ingested("Caltech256", tmp_path, max_rejected_share=0.5)
    assert made.rejected["source"].tolist() == ["Caltech256/pool/5"]
    assert not (tmp_path / "ran").exists()


def test_arrays_are_resized_and_recoloured_like_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    pixels = ingested("MNIST", tmp_path, image_size=14, colour="rgb").images.pixels
    assert pixels.shape == (30, 3, 14, 14)
    first = Image.fromarray(noise(20, 28, 28, seed=1)[0]).resize(
        (14, 14), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(pixels[0, 2], np.asarray(first))


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "Imagenette", "Caltech256", "Food101"])
def test_missing_files_say_how_to_fetch_them(tmp_path: Path, name: str) -> None:
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match=r"`data_ingest.source.root`.*set `download: true`"):
            listed(name, root)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", bytes(40)),
        ("train-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, 20) + bytes(20 * [99])),
        ("t10k-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, 10) + bytes(4)),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file: str, content: bytes) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw" / file).write_bytes(content)
    with pytest.raises(DataError, match=r"`data_ingest.source.root` must hold|labels must be"):
        ingested("MNIST", tmp_path)


@pytest.mark.parametrize(
    ("name", "suggested"), [("cifar10", "CIFAR10, CIFAR100"), ("Imagenete", "Imagenette")]
)
def test_an_unknown_name_gets_close_ones(tmp_path: Path, name: str, suggested: str) -> None:
    with pytest.raises(ParameterError, match=f"`data_ingest.source.name` must .*{suggested}"):
        listed(name, tmp_path)


@pytest.mark.parametrize("name", ["CocoDetection", "VisionDataset", "__name__"])
def test_what_is_no_classification_data_set_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match=r"`data_ingest.source.name` must"):
        listed(name, tmp_path)


@pytest.mark.parametrize("argument", ["trian", "train", "transform", "root", "download"])
def test_unknown_arguments_are_refused(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ParameterError, match=rf"`data_ingest.source.arguments`.*{argument}"):
        listed("MNIST", tmp_path, arguments={argument: 1})


def test_a_data_set_that_cannot_be_downloaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"`data_ingest.source.download` must be false"):
        listed("ImageNet", tmp_path, download=True)


@pytest.mark.parametrize("name", CLASSIFICATION_DATA_SETS)
def test_every_legal_name_is_a_class_with_a_root(tmp_path: Path, name: str) -> None:
    with pytest.raises((DataError, ParameterError), match=r"does not exist|must have \['split'"):
        listed(name, tmp_path / "gone")


class Cranes:
    """Three classes, two of one name; it gives other images than its array holds."""

    classes = (("crane",), ("crane", "hoist"), "heron")

    def __init__(self, root: str, train: bool = True) -> None:
        self.data = noise(4, 5, 5)
        self.targets = (0, 1, 0, 1)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[at].T.copy()), self.targets[at]


def test_a_class_of_odd_arrays_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are read one by one, and synonyms that are not unique are numbered."""
    monkeypatch.setattr(torchvision.datasets, "USPS", Cranes)
    listing = listed("USPS", tmp_path)
    assert listing.class_names == ("crane (0)", "crane (1)", "heron")
    assert listing.decoded is None
    np.testing.assert_array_equal(np.asarray(listing.reader(5)), noise(4, 5, 5)[1].T)
    assert listing.labels[5] == 1


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="shared/data/mnist is not here")
def test_real_mnist() -> None:
    listing = listed("MNIST", REAL_MNIST)
    assert count(listing) == {"train": 60_000, "test": 10_000}
    assert listing.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert listing.decoded is not None
