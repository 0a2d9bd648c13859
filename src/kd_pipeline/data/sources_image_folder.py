"""A tree of image files, one folder per class, or with a table of labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_pipeline.data.example_ids import example_ids_of_paths
from kd_pipeline.data.image_files import (
    EXTENSIONS,
    FileReader,
    FoundFile,
    visible_entries,
    walk_image_files,
)
from kd_pipeline.data.label_table import SPLITS, Entry, read_label_table
from kd_pipeline.data.listing import ImageListing, first_few, printable
from kd_pipeline.data.settings import ImageFolderSource
from kd_pipeline.errors import DataError

logger = logging.getLogger(__name__)

_SPLIT_WORDS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class _Folder:
    path: str  # relative to the root, POSIX
    class_name: str | None  # None: the table has the labels of its images
    tree: str  # train, val or test; empty where the root is the only tree


@dataclass(frozen=True)
class _File:
    path: str  # relative to the root, POSIX
    class_name: str  # empty: no label
    tree: str  # as above, or the split in the table


def list_image_folder(source: ImageFolderSource) -> ImageListing:
    """List the images of `root/train/<class>/` with `root/test/` or `root/val/`, or of one tree.

    Without `root/train/`, every folder in the root is a class and all images are `pool`: the
    split stage draws the test set. The same holds for `root/train/` alone. `val` is the test set
    where there is no `test`; where there are both, the images of `val` belong to `train`, because
    the split stage draws its own validation set. `test_set: val` leaves `test` out instead. The
    example id is a hash of the relative path, unchanged when files are added or removed.

    A tree in which the labels file names an image has all its labels from there, whatever its
    folders are called. A labels file with splits takes the place of all folders.

    Raises:
        DataError: If the folder is missing, holds no images, has an empty class folder, has
            classes that are not in `train`, or disagrees with the labels file.
    """
    root = source.root
    if not Path(root).is_dir():
        raise DataError(f"`data_ingest.source.root` must be a folder, got {root!r}")
    table = {} if source.labels_file is None else read_label_table(source.labels_file)
    splits = {entry.split for entry in table.values() if entry.split is not None}
    partitions = _partitions(root, splits or set(_folders(Path(root))), source.test_set)
    folders = [_Folder("", None, "train")] if splits else _class_folders(root, partitions, table)
    files = _label(_scan(root, folders), table)
    files = [file for file in files if file.tree in partitions]
    if not files:
        raise DataError(
            "`data_ingest.source.root` must hold a folder of images per class, got none in "
            f"{root!r} that ends in {', '.join(sorted(EXTENSIONS))}"
        )
    _check_same_classes(files, partitions)
    return _make_listing(root, files, partitions)


def _partitions(root: str, found: set[str], test_set: str | None) -> dict[str, str]:
    """Partition of each tree of images, by its name; of each split, where a table has splits."""
    test = test_set or ("test" if "test" in found else "val")
    if "train" not in found and not {test, test_set} & found:
        likely = [name for name in sorted(found) if name.casefold() in _SPLIT_WORDS]
        if others := [name for name in likely if _folders(Path(root, name))]:
            raise DataError(
                "`data_ingest.source.root` must hold folders of classes, or `train` with `test` or "
                f"`val`, spelt like this, got {first_few(others)} in {root!r}"
            )
        return {"": "pool"}
    if missing := {"train", test_set or "train"} - found:
        raise DataError(
            f"`data_ingest.source.root` must hold `train` beside `{test}`, got {root!r} without "
            f"`{min(missing)}`"
        )
    partitions = {"train": "train", test: "test"} if test in found else {"train": "pool"}
    if {"test", "val"} <= found and test == "test":
        logger.info("%s: val is part of train; the split draws its own validation set", root)
        partitions["val"] = "train"
    if extra := sorted(found - set(partitions)):
        logger.warning("%s: folders beside train are left out: %s", root, first_few(extra))
    return partitions


def _class_folders(
    root: str, partitions: Mapping[str, str], table: Mapping[str, Entry]
) -> list[_Folder]:
    """The folders of classes in each tree, or the tree itself where the table has its labels."""
    folders = []
    for tree in partitions:
        if any(path.startswith(f"{tree}/") or not tree for path in table):
            folders.append(_Folder(tree, None, tree))
        else:
            names = _folders(Path(root, tree))
            _check_loose(Path(root, tree), has_classes=bool(names or not tree))
            folders += [_Folder(Path(tree, name).as_posix(), name, tree) for name in names]
    return folders


def _check_loose(tree: Path, *, has_classes: bool) -> None:
    """Images beside the class folders have no label; a tree without such folders has no class."""
    if not has_classes:
        raise DataError(
            f"{tree} must hold a folder of images per class, got none; labels of images in one "
            "folder belong in a table, `data_ingest.source.labels_file`"
        )
    files = [entry.name for entry in visible_entries(str(tree))]
    if loose := sorted(name for name in files if Path(name).suffix.lower() in EXTENSIONS):
        logger.warning(
            "%s: %d images in no class folder are left out: %s", tree, len(loose), first_few(loose)
        )


def _scan(root: str, folders: Sequence[_Folder]) -> list[tuple[_Folder, FoundFile]]:
    found = list(walk_image_files(root, [folder.path for folder in folders]))
    filled = {file.folder for file in found}
    for position, folder in enumerate(folders):
        if position not in filled and folder.class_name is not None:
            raise DataError(
                "every class folder must have a readable image, got an empty class: "
                f"{folder.path} in {root!r}"
            )
    return [(folders[file.folder], file) for file in found]


def _label(found: Sequence[tuple[_Folder, FoundFile]], table: Mapping[str, Entry]) -> list[_File]:
    """Label files by their folder or by the table, which must have each of its trees' files."""
    class_names = {entry.label for entry in table.values()} - SPLITS
    files, problems = [], []
    for folder, file in found:
        if folder.class_name is not None:
            files.append(_File(file.path, folder.class_name, folder.tree))
            continue
        entry = table.get(file.path)
        if entry is None and not file.repeated:
            problems.append(f"{file.path} is not in the file")
        label, split = entry or ("", None)
        files.append(_File(file.path, label, split or folder.tree))
        inside = file.path.removeprefix(f"{folder.tree}/").partition("/")[0]
        if inside in class_names and entry is not None and inside != label:
            problems.append(f"{file.path} is {label!r} in the file and {inside!r} by its folder")
    paths = {file.path for _, file in found}
    problems += [f"{p} is in the file and not in the folders" for p in table.keys() - paths]
    if problems:
        raise DataError(
            f"`data_ingest.source.labels_file` must agree with the folders, got {len(problems)} "
            f"disagreements: {first_few(sorted(problems))}"
        )
    return files


def _check_same_classes(files: Sequence[_File], partitions: Mapping[str, str]) -> None:
    """Refuse classes beside `train` that it does not have: those folders are no classes."""
    classes = {
        tree: {file.class_name for file in files if file.tree == tree} for tree in partitions
    }
    for tree, names in classes.items():
        if extra := sorted(names - classes.get("train", names) - {""}):
            taken = "the test set" if partitions[tree] == "test" else "images to train on"
            raise DataError(
                f"every class must be in train, got more classes in {tree} than in train: "
                f"{first_few(extra)}; `{tree}` was taken for {taken}. Labels in a table belong "
                "under `data_ingest.source.labels_file`, another test set under `test_set`"
            )


def _folders(folder: Path) -> list[str]:
    # Not `entry.is_dir()`, which raises for a link to itself.
    return [entry.name for entry in visible_entries(str(folder)) if Path(entry.path).is_dir()]


def _make_listing(root: str, files: Sequence[_File], partitions: Mapping[str, str]) -> ImageListing:
    ids = example_ids_of_paths([file.path for file in files])
    order = np.argsort(ids)
    in_order = [files[position] for position in order]
    class_names = sorted({file.class_name for file in files} - {""})
    label_of = {"": -1} | {name: label for label, name in enumerate(class_names)}
    return ImageListing(
        example_ids=ids[order],
        sources=[printable(file.path) for file in in_order],
        labels=np.array([label_of[file.class_name] for file in in_order], dtype=np.int64),
        partitions=np.array([partitions[file.tree] for file in in_order]),
        class_names=tuple(map(printable, class_names)),
        keys=[file.path for file in in_order],
        reader=FileReader(root),
        by_processes=True,
    )
