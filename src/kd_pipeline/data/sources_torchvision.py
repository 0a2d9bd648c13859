"""torchvision's classification data sets, by class name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from kd_pipeline.data.listing import ArrayReader, ImageListing, Reader
from kd_pipeline.data.settings import TorchvisionSource
from kd_pipeline.errors import DataError, ParameterError

CLASSIFICATION_DATA_SETS = (
    "CIFAR10", "CIFAR100", "Caltech101", "Caltech256", "Country211", "DTD",
    "EMNIST", "EuroSAT", "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101",
    "GTSRB", "ImageNet", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM", "Places365",
    "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
_SPLITS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val", "valid")}
_SET_HERE = frozenset({"root", "download", "transform", "target_transform", "transforms", "loader"})


def list_torchvision(source: TorchvisionSource) -> ImageListing:
    """List a data set of torchvision; example_id = position, training images first.

    Where its class takes `train` or `split`, both sides are read and are `train` and `test`;
    elsewhere all images are `pool`.

    Raises:
        ParameterError: If the name or an argument is unknown.
        DataError: If files are missing or damaged.
    """
    # torchvision opens files of any format, and Pillow would run Ghostscript on a PostScript file.
    EpsImagePlugin.gs_binary = False
    builder, accepted = _find_class(source.name)
    by = "train" if "train" in accepted else "split" if "split" in accepted else None
    _check_arguments(source, accepted, by)
    arguments = {"root": source.root, **source.arguments}
    can_download = "download" in accepted
    if can_download:
        arguments["download"] = source.download
    elif source.download:
        raise ParameterError("data_ingest.source.download", f"be false for {source.name}", True)
    try:
        if not source.download and not Path(source.root).is_dir():
            raise FileNotFoundError("the folder does not exist")
        return _make_listing(source.name, _build_parts(builder, by, arguments))
    except Exception as error:  # Damaged files lead torchvision's readers to errors of any kind.
        if source.arguments and isinstance(error, ValueError | TypeError):
            rule = f"be values that {source.name} takes ({error})"
            raise ParameterError("data_ingest.source.arguments", rule, source.arguments) from error
        can_help = can_download and not source.download
        advice = "; set `download: true` to fetch them" if can_help else ""
        raise DataError(
            f"`data_ingest.source.root` must hold the files of {source.name}, got {source.root!r}: "
            f"{str(error) or type(error).__name__}{advice}"
        ) from error


def _find_class(name: str) -> tuple[Callable[..., Any], dict[str, inspect.Parameter]]:
    if name not in CLASSIFICATION_DATA_SETS:
        by_lower = {known.lower(): known for known in CLASSIFICATION_DATA_SETS}
        close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        legal = [by_lower[c] for c in close] or CLASSIFICATION_DATA_SETS
        rule = "be a classification data set of torchvision"
        raise ParameterError("data_ingest.source.name", rule, name, legal=legal)
    import torchvision

    builder = getattr(torchvision.datasets, name)
    accepted: dict[str, inspect.Parameter] = {}
    for ancestor in inspect.getmro(builder):
        accepted = {**inspect.signature(ancestor).parameters, **accepted}
        # EMNIST, for one, passes further arguments on to MNIST.
        if accepted.pop("kwargs", None) is None:
            break
    return builder, accepted


def _check_arguments(
    source: TorchvisionSource, accepted: Mapping[str, inspect.Parameter], by: str | None
) -> None:
    block, given = "data_ingest.source.arguments", source.arguments
    legal = set(accepted) - _SET_HERE - {by}
    if unknown := sorted(set(given) - legal):
        raise ParameterError(block, f"be further arguments of {source.name}", unknown, legal=legal)
    required = {key for key in legal if accepted[key].default is inspect.Parameter.empty}
    if missing := sorted(required - set(given)):
        raise ParameterError(block, f"have {missing} for {source.name}", given)


def _build_parts(
    builder: Callable[..., Any], by: str | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Build the data set of each partition."""
    if by is None:
        return {"pool": builder(**arguments)}
    if by == "train":
        return {part: builder(**arguments, train=part == "train") for part in ("train", "test")}
    return {part: _build_split(builder, names, arguments) for part, names in _SPLITS.items()}


def _build_split(
    builder: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]
) -> Any:
    """Build the first of these splits that the class has: torchvision lists them in errors only."""
    name, *others = names
    try:
        return builder(**arguments, split=name)
    except ValueError as error:
        if not others or "for argument split" not in str(error):
            raise
    return _build_split(builder, tuple(others), arguments)


def _make_listing(name: str, parts: dict[str, Any]) -> ImageListing:
    from torch.utils.data import ConcatDataset

    sizes = [len(dataset) for dataset in parts.values()]
    num_images = sum(sizes)
    arrays = [found for dataset in parts.values() if (found := _in_memory(dataset)) is not None]
    decoded: NDArray[np.uint8] | None = None
    if len(arrays) == len(parts) and len({pixels.shape[1:] for pixels, _ in arrays}) == 1:
        decoded, labels = (np.concatenate(array) for array in zip(*arrays, strict=True))
        reader: Reader = ArrayReader(decoded)
    else:
        labels = np.full(num_images, -1, dtype=np.int64)
        reader = _DatasetReader(ConcatDataset(parts.values()), labels)
    class_names = _class_names(next(iter(parts.values())))
    if class_names[:1] == ("N/A",):  # EMNIST's letters are numbered from 1.
        class_names, labels = class_names[1:], labels - 1
    return ImageListing(
        example_ids=np.arange(num_images, dtype=np.int64),
        sources=[
            f"{name}/{partition}/{position}"
            for partition, dataset in parts.items()
            for position in range(len(dataset))
        ],
        labels=labels,
        partitions=np.repeat(list(parts), sizes),
        class_names=class_names,
        keys=range(num_images),
        reader=reader,
        decoded=decoded,
    )


@dataclass(frozen=True, eq=False)
class _DatasetReader:
    """Reader of a data set that gives labels with the images only: it fills in `labels`."""

    dataset: Any
    labels: NDArray[np.int64]

    def __call__(self, position: int) -> Image.Image:
        image, label = self.dataset[position]
        self.labels[position] = -1 if label is None else int(label)
        return image  # type: ignore[no-any-return]


def _in_memory(dataset: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """Pixels [n, channels, height, width] and labels [n] of a data set that keeps arrays."""
    pixels = np.asarray(getattr(dataset, "data", None))
    labels = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4} or labels.shape != pixels.shape[:1]:
        return None
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.shape[1] not in {1, 3}:
        return None
    # Checked against the images that the class gives.
    for position in (0, len(pixels) - 1):
        image, label = dataset[position]
        expected = np.asarray(image)
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        if label != labels[position] or not np.array_equal(expected, pixels[position]):
            return None
    return np.ascontiguousarray(pixels), labels.astype(np.int64)


def _class_names(dataset: Any) -> tuple[str, ...]:
    given = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    # Imagenette and ImageNet give every class a tuple of synonyms.
    names = [c if isinstance(c, str) else str(c[0]) for c in given]
    twice = {name for name in names if names.count(name) > 1}
    return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(names))
