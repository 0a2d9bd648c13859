"""A tree of image files, one folder per class."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_pipeline.data.image_files import EXTENSIONS, FileReader, walk_image_files
from kd_pipeline.data.listing import ImageListing, first_few
from kd_pipeline.data.settings import ImageFolderSource
from kd_pipeline.errors import DataError

logger = logging.getLogger(__name__)

ID_BITS = 36


@dataclass(frozen=True)
class _File:
    path: str  # relative to the root, POSIX
    class_name: str
    partition: str


def list_image_folder(source: ImageFolderSource) -> ImageListing:
    """List the images of `root/train/<class>/` with `root/test/` or `root/val/`, or of one tree.

    Without `root/train/`, every folder in the root is a class and all images are `pool`: the
    split stage draws the test set. The same holds for `root/train/` alone. `val` is the test set
    where there is no `test`; where there are both, the images of `val` belong to `train`, because
    the split stage draws its own validation set. The example id is a hash of the relative path,
    unchanged when files are added or removed.

    Raises:
        DataError: If the folder is missing, holds no images, has an empty class folder, or
            disagrees with the labels file, whose paths are relative to the root.
    """
    root = source.root
    if not Path(root).is_dir():
        raise DataError(f"`data_ingest.source.root` must be a folder, got {root!r}")
    files = _scan(root, _trees(Path(root)))
    if not files:
        raise DataError(
            "`data_ingest.source.root` must hold a folder of images per class, got none in "
            f"{root!r} that ends in {', '.join(sorted(EXTENSIONS))}"
        )
    if source.labels_file is not None:
        _check_labels(source.labels_file, {file.path: file.class_name for file in files})
    return _make_listing(root, files)


def example_id_of_path(path: str, *, attempt: int = 0) -> int:
    """Hash a relative POSIX path to an id in [0, 2**36), another one with each attempt.

    36 bits and not 63: sorted ids of n images cost about 39 - log2(n) bits each in every view of
    a soft-target cache, of 50,000 images 2.9 bytes instead of 6.3, beside 18 bytes of logits of
    ten classes (bench.cache_size).
    """
    text = os.fsencode(path) + (b"\0%d" % attempt if attempt else b"")  # No path holds a NUL.
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - ID_BITS)


def example_ids_of_paths(paths: Sequence[str]) -> NDArray[np.int64]:
    """Unique ids of paths, int64 [num_paths]: of paths with one hash, the first in order keeps it.

    Of 370,000 files one pair is expected to have one hash.
    """
    ids = np.array([example_id_of_path(path) for path in paths], dtype=np.int64)
    taken = set(ids.tolist())
    # In the paths' own order, so that the order in which a folder is walked does not matter.
    seen: set[int] = set()
    for position in sorted(range(len(paths)), key=paths.__getitem__):
        attempt = 0
        while ids[position] in seen or (attempt and ids[position] in taken):
            attempt += 1
            ids[position] = example_id_of_path(paths[position], attempt=attempt)
        seen.add(int(ids[position]))
    return ids


def _trees(root: Path) -> list[tuple[str, str]]:
    """Folders below the root that hold class folders, each with its partition."""
    inside = set(_folders(root))
    test = "test" if "test" in inside else "val" if "val" in inside else None
    if "train" not in inside:
        if test is not None:
            raise DataError(
                f"`data_ingest.source.root` must hold `train` beside `{test}`, got {str(root)!r}"
            )
        return [("", "pool")]
    if extra := sorted(inside - {"train", "test", "val"}):
        logger.warning("%s: folders beside train are left out: %s", root, first_few(extra))
    if test is None:
        return [("train", "pool")]
    trees = [("train", "train"), (test, "test")]
    if {"test", "val"} <= inside:
        logger.info("%s: val is part of train; the split draws its own validation set", root)
        trees.insert(1, ("val", "train"))
    return trees


def _scan(root: str, trees: Sequence[tuple[str, str]]) -> list[_File]:
    classes = [
        (Path(tree, name).as_posix(), name, partition)
        for tree, partition in trees
        for name in _folders(Path(root, tree))
    ]
    folders = [folder for folder, _, _ in classes]
    above = ["", *(tree for tree, _ in trees)]
    found = list(walk_image_files(root, folders, above=above))
    if empty := set(range(len(classes))) - {file.folder for file in found}:
        raise DataError(
            "every class folder must have a readable image, got an empty class: "
            f"{folders[min(empty)]} in {root!r}"
        )
    return [_File(file.path, *classes[file.folder][1:]) for file in found]


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _make_listing(root: str, files: list[_File]) -> ImageListing:
    ids = example_ids_of_paths([file.path for file in files])
    order = np.argsort(ids)
    in_order = [files[position] for position in order]
    class_names = sorted({file.class_name for file in files})
    label_of = {name: label for label, name in enumerate(class_names)}
    return ImageListing(
        example_ids=ids[order],
        sources=[_printable(file.path) for file in in_order],
        labels=np.array([label_of[file.class_name] for file in in_order], dtype=np.int64),
        partitions=np.array([file.partition for file in in_order]),
        class_names=tuple(map(_printable, class_names)),
        keys=[file.path for file in in_order],
        reader=FileReader(root),
        by_processes=True,
    )


def _printable(path: str) -> str:
    # A file name may hold bytes that are no text; parquet and CSV cannot.
    return path.encode("utf-8", "backslashreplace").decode()


def _check_labels(labels_file: str, folders: dict[str, str]) -> None:
    labels = _read_labels(labels_file)
    problems = [
        f"{path} is {labels[path]!r} in the file and {folders[path]!r} by its folder"
        for path in labels.keys() & folders
        if labels[path] != folders[path]
    ]
    problems += [f"{p} is in the file and not in the folders" for p in labels.keys() - folders]
    problems += [f"{p} is not in the file" for p in folders.keys() - labels]
    if problems:
        raise DataError(
            f"`data_ingest.source.labels_file` must agree with the folders, got {len(problems)} "
            f"disagreements: {first_few(sorted(problems))}"
        )


def _read_labels(labels_file: str) -> dict[str, str]:
    if not Path(labels_file).is_file():
        raise DataError(f"`data_ingest.source.labels_file` must be a CSV file, got {labels_file!r}")
    table = pd.read_csv(labels_file, dtype=str, keep_default_na=False)
    if missing := {"path", "label"} - set(table.columns):
        raise DataError(
            "`data_ingest.source.labels_file` must have the columns path and label, got "
            f"{list(table.columns)} without {sorted(missing)}"
        )
    if twice := table["path"][table["path"].duplicated()].tolist():
        raise DataError(
            f"`data_ingest.source.labels_file` must name every path once, got {first_few(twice)} "
            "more than once"
        )
    return dict(zip(table["path"], table["label"], strict=True))
