"""torchvision's classification data sets, by class name."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.readers import ArrayReader
from kd_pipeline.errors import DataError, ParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

logger = logging.getLogger(__name__)

CLASSIFICATION_DATA_SETS = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD",
    "EMNIST", "EuroSAT", "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101",
    "GTSRB", "ImageNet", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM", "Places365",
    "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
_TRAIN_SPLITS = ("train", "trainval", "train-standard")
_TEST_SPLITS = ("test", "val", "valid")
_SET_HERE = frozenset({"root", "download", "transform", "target_transform", "transforms", "loader"})


@dataclass(frozen=True)
class _Part:
    partition: str
    dataset: Any


def list_torchvision(
    name: str, *, root: str, download: bool = False, arguments: Mapping[str, Any] | None = None
) -> ImageListing:
    """List a data set of torchvision; example_id = position, training images first.

    Where its class takes `train` or `split`, both sides are read and are `train` and `test`;
    elsewhere all images are `pool`.

    Args:
        name: A class of torchvision.datasets.
        root: Folder that holds or will hold its files.
        download: Whether to fetch missing files.
        arguments: Further arguments of the class.

    Raises:
        ParameterError: If the name or an argument is unknown.
        DataError: If files are missing.
    """
    arguments = dict(arguments or {})
    builder, accepted = _find_class(name)
    by = "train" if "train" in accepted else "split" if "split" in accepted else None
    _check_arguments(arguments, name=name, accepted=accepted, by=by)
    if "download" in accepted:
        arguments["download"] = download
    elif download:
        raise ParameterError("data_ingest.source.download", f"be false for {name}", download)
    if not download and not Path(root).is_dir():
        raise _missing(name, root, "the folder does not exist", can_download="download" in accepted)
    try:
        parts = _build_parts(builder, by, {"root": root, **arguments})
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        rule = f"be values that {name} takes ({error})"
        raise ParameterError("data_ingest.source.arguments", rule, arguments) from error
    except (RuntimeError, OSError) as error:
        raise _missing(
            name, root, str(error), can_download="download" in accepted and not download
        ) from error
    return _make_listing(name, parts)


def _find_class(name: str) -> tuple[Any, dict[str, inspect.Parameter]]:
    if name not in CLASSIFICATION_DATA_SETS:
        by_lower = {known.lower(): known for known in CLASSIFICATION_DATA_SETS}
        close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        raise ParameterError(
            "data_ingest.source.name",
            "be a classification data set of torchvision",
            name,
            legal=[by_lower[c] for c in close] or CLASSIFICATION_DATA_SETS,
        )
    import torchvision

    builder = getattr(torchvision.datasets, name)
    accepted: dict[str, inspect.Parameter] = {}
    for ancestor in inspect.getmro(builder):
        parameters = dict(inspect.signature(ancestor).parameters)
        accepted = {**parameters, **accepted}
        # EMNIST, for one, hands what it does not know to MNIST.
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return builder, {key: p for key, p in accepted.items() if p.kind not in variable}


def _check_arguments(
    arguments: Mapping[str, Any],
    *,
    name: str,
    accepted: Mapping[str, inspect.Parameter],
    by: str | None,
) -> None:
    legal = set(accepted) - _SET_HERE - {by}
    if unknown := sorted(set(arguments) - legal):
        raise ParameterError(
            "data_ingest.source.arguments", f"be further arguments of {name}", unknown, legal=legal
        )
    required = {key for key in legal if accepted[key].default is inspect.Parameter.empty}
    if missing := sorted(required - set(arguments)):
        raise ParameterError(
            "data_ingest.source.arguments", f"have {missing} for {name}", dict(arguments)
        )


def _build_parts(builder: Any, by: str | None, arguments: dict[str, Any]) -> list[_Part]:
    if by is None:
        return [_Part("pool", builder(**arguments))]
    if by == "train":
        return [
            _Part("train", builder(**arguments, train=True)),
            _Part("test", builder(**arguments, train=False)),
        ]
    return [
        _Part("train", _build_split(builder, _TRAIN_SPLITS, arguments)),
        _Part("test", _build_split(builder, _TEST_SPLITS, arguments)),
    ]


def _build_split(builder: Any, splits: tuple[str, ...], arguments: dict[str, Any]) -> Any:
    """Build the first of these splits that the class knows; it names its own only in errors."""
    for split in splits:
        try:
            return builder(**arguments, split=split)
        except ValueError as error:
            if "for argument split" not in str(error):
                raise
            refused = error
    raise DataError(f"{builder.__name__} has none of the splits {', '.join(splits)}: {refused}")


def _missing(name: str, root: str, reason: str, *, can_download: bool) -> DataError:
    advice = "; set `download: true` to fetch them" if can_download else ""
    return DataError(
        f"`data_ingest.source.root` must hold the files of {name}, got {root!r}: {reason}{advice}"
    )


def _make_listing(name: str, parts: list[_Part]) -> ImageListing:
    sizes = [len(part.dataset) for part in parts]
    num_images = sum(sizes)
    sources = [
        f"{name}/{part.partition}/{position}"
        for part, size in zip(parts, sizes, strict=True)
        for position in range(size)
    ]
    arrays = [_in_memory(part.dataset) for part in parts]
    known = [array for array in arrays if array is not None]
    decoded: NDArray[np.uint8] | None = None
    if len(known) == len(parts) and len({pixels.shape[1:] for pixels, _ in known}) == 1:
        decoded = known[0][0] if len(known) == 1 else np.concatenate([p for p, _ in known])
        labels = np.concatenate([part_labels for _, part_labels in known])
        reader: Any = ArrayReader(decoded)
    else:
        labels = np.full(num_images, -1, dtype=np.int64)
        reader = _DatasetReader(tuple(part.dataset for part in parts), labels)
    return ImageListing(
        example_ids=np.arange(num_images, dtype=np.int64),
        sources=sources,
        labels=labels,
        partitions=np.repeat([part.partition for part in parts], sizes),
        class_names=_class_names(parts[0].dataset, labels),
        keys=range(num_images),
        reader=reader,
        decoded=decoded,
    )


@dataclass(frozen=True, eq=False)
class _DatasetReader:
    """Reads image and label from torchvision's data sets, one after the other."""

    datasets: tuple[Any, ...]
    labels: NDArray[np.int64]  # [num_images], filled in while images are read

    def __call__(self, position: int) -> Image.Image:
        inside = position
        for dataset in self.datasets:
            if inside < len(dataset):
                break
            inside -= len(dataset)
        image, label = dataset[inside]
        self.labels[position] = int(label)
        return image  # type: ignore[no-any-return]


def _in_memory(dataset: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """Pixels [n, channels, height, width] and labels [n] of a data set that keeps arrays."""
    data = getattr(dataset, "data", None)
    found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if data is None or found is None or len(data) == 0:
        return None
    pixels, labels = np.asarray(data), np.asarray(found)
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4} or labels.shape != pixels.shape[:1]:
        return None
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.shape[1] not in {1, 3}:
        return None
    # What the class itself hands out decides whether its arrays were understood.
    for position in (0, len(pixels) - 1):
        image, label = dataset[position]
        expected = np.asarray(image)
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        if label != labels[position] or not np.array_equal(expected, pixels[position]):
            return None
    return np.ascontiguousarray(pixels), labels.astype(np.int64)


def _class_names(dataset: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    given = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not given:
        return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
    # Imagenette and ImageNet give every class a tuple of synonyms.
    names = [c if isinstance(c, str) else str(c[0]) for c in given]
    twice = {name for name in names if names.count(name) > 1}
    return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(names))
