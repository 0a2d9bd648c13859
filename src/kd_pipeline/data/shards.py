"""Files that each hold many images with their labels, and what they have in common."""

import glob
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.example_ids import example_ids_of_shards
from kd_pipeline.data.listing import ImageListing, Reader, first_few, printable
from kd_pipeline.data.settings import ShardedSource
from kd_pipeline.errors import DataError, KdPipelineError, ParameterError

Label = int | str | None
BLOCK = "data_ingest.source"


@dataclass(frozen=True)
class Shard:
    """A file found by a pattern."""

    path: str
    """Relative to the root, POSIX."""
    setting: str
    """`train` or `test`."""

    @contextmanager
    def must_be(self, what: str) -> Iterator[None]:
        """Name the file in any error of a library: damaged files lead to errors of any kind.

        Raises:
            DataError: For such an error.
        """
        try:
            yield
        except KdPipelineError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise DataError(
                f"`{BLOCK}.{self.setting}` must be {what}, got {self.path!r}: {reason}"
            ) from error


@dataclass(frozen=True)
class ShardContents:
    """The images of one shard, in the order in which they are stored."""

    names: list[str]
    keys: list[Any]
    labels: list[Label]
    class_names: tuple[str, ...] | None = None
    """Position = label, where the file has them."""


def list_shards(
    source: ShardedSource,
    read: Callable[[Shard], ShardContents],
    reader: Reader,
    *,
    label_setting: str,
    by_processes: bool,
) -> ImageListing:
    """List the images of all shards: `train` and `test`, or a `pool` where `test` has no pattern.

    Args:
        source: Settings that name the shards and, where labels are numbers, the classes.
        read: Lists one shard.
        reader: Opens the image of a key.
        label_setting: The setting that names where labels are, for errors.
        by_processes: Whether other processes may use the reader.

    Raises:
        ParameterError: If a pattern matches nothing, or classes and labels do not fit together.
        DataError: If a shard is damaged, or there are no images.
    """
    shards = _find(source)
    contents = [read(shard) for shard in shards]
    if not any(found.keys for found in contents):
        raise DataError(f"`{BLOCK}.train` must be files with images, got none in {source.train}")
    ids = example_ids_of_shards([s.path for s in shards], [len(c.keys) for c in contents])
    order = sorted((i for i in range(len(shards)) if len(ids[i])), key=lambda i: int(ids[i][0]))
    class_names = _class_names(source.class_names) or _class_names_of(shards, contents)
    labels, class_names = number_labels(
        [label for at in order for label in contents[at].labels], class_names, label_setting
    )
    partitions = {"train": "train" if source.test else "pool", "test": "test"}
    return ImageListing(
        example_ids=np.concatenate([ids[at] for at in order]),
        sources=[
            printable(f"{shards[at].path}/{name}") for at in order for name in contents[at].names
        ],
        labels=labels,
        partitions=np.concatenate(
            [np.repeat(partitions[shards[at].setting], len(ids[at])) for at in order]
        ),
        class_names=tuple(map(printable, class_names)),
        keys=[key for at in order for key in contents[at].keys],
        reader=reader,
        by_processes=by_processes,
    )


def number_labels(
    labels: Sequence[Label], class_names: Sequence[str] | None, setting: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as positions of class names, and these.

    Args:
        labels: Class numbers, or class names; None or -1 = none.
        class_names: Position = number; None: the names in order, or the numbers from 0.
        setting: Where labels are, for errors.

    Returns:
        int64 [num_labels] with -1 where there is none; the class names.

    Raises:
        ParameterError: If there are numbers and names, none at all, or classes without a name.
    """
    present = {label for label in labels if label is not None and label != -1}
    names = sorted(label for label in present if isinstance(label, str))
    numbers = sorted(label for label in present if isinstance(label, int))
    if not present or (names and numbers):
        found = [names[0], numbers[0]] if present else None
        raise ParameterError(
            f"{BLOCK}.{setting}", "name labels that are all numbers or all names", found
        )
    if class_names is None and numbers != list(range(len(numbers))):
        rule = f"be given where classes are not numbered from 0 without gaps, as {numbers[:5]}"
        raise ParameterError(f"{BLOCK}.class_names", rule, None)
    chosen = tuple(class_names or names or map(str, numbers))
    legal: Sequence[Label] = chosen if names else range(len(chosen))
    if unknown := sorted(map(str, present - set(legal))):
        rule = f"have a name for every label, which {first_few(unknown)} have not"
        raise ParameterError(f"{BLOCK}.class_names", rule, list(chosen[:10]))
    number_of = {label: number for number, label in enumerate(legal)} | {None: -1, -1: -1}
    return np.array([number_of[label] for label in labels], dtype=np.int64), chosen


def _find(source: ShardedSource) -> list[Shard]:
    """The files of all patterns, in order; each must be there once."""
    setting_of: dict[str, str] = {}
    for setting, patterns in (("train", source.train), ("test", source.test)):
        for pattern in patterns:
            name = f"{BLOCK}.{setting}"
            found = glob.glob(pattern, root_dir=source.root, recursive=True)  # noqa: PTH207
            paths = sorted({posixpath.normpath(Path(path).as_posix()) for path in found})
            files = [path for path in paths if Path(source.root, path).is_file()]
            if not files:
                raise ParameterError(name, f"match files below the root {source.root!r}", pattern)
            if twice := [path for path in files if path in setting_of]:
                rule = f"match files that `{setting_of[twice[0]]}` does not have already"
                raise ParameterError(name, rule, first_few(twice))
            setting_of |= dict.fromkeys(files, setting)
    return [Shard(path, setting) for path, setting in setting_of.items()]


def _class_names(given: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """The names given, or the lines of the file given."""
    if given is None:
        return None
    setting = f"{BLOCK}.class_names"
    names: Sequence[str] = given
    if isinstance(given, str):
        if not Path(given).is_file():
            raise ParameterError(setting, "be a list, or a text file of one name a line", given)
        try:
            lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ParameterError(setting, f"be a file of UTF-8 ({error})", given) from error
        names = [line.strip() for line in lines]
    if len(set(names)) < len(names) or not all(names) or len(names) < 2:
        raise ParameterError(setting, "be at least 2 different names, none empty", given)
    return tuple(names)


def _class_names_of(
    shards: Sequence[Shard], contents: Sequence[ShardContents]
) -> tuple[str, ...] | None:
    """The class names in the files, which must be the same in all of them."""
    for shard, found in zip(shards, contents, strict=True):
        if found.class_names != contents[0].class_names:
            raise DataError(
                f"`{BLOCK}.{shard.setting}` must be files of the same class names, got others in "
                f"{shard.path} than in {shards[0].path}; `class_names` takes the place of both"
            )
    return contents[0].class_names
