"""WebDataset shards: tar files with an image and its label under one key."""

import json
import logging
import os
import re
import tarfile
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from kd_pipeline.data.image_files import EXTENSIONS, MAX_FILE_BYTES, open_image
from kd_pipeline.data.listing import ImageListing, first_few, printable
from kd_pipeline.data.settings import WebDatasetSource
from kd_pipeline.data.shards import Label, Shard, ShardContents, list_shards

logger = logging.getLogger(__name__)

MAX_LABEL_BYTES = 2**20


class TarKey(NamedTuple):
    """Where an image lies; images are read in place, and nothing is extracted."""

    shard: str
    """Relative to the root."""
    offset: int
    size: int
    problem: str
    """Why the image is rejected; empty for one that may be read."""


@dataclass(frozen=True)
class TarReader:
    """Reader of images in uncompressed tar files below `root`."""

    root: str

    def __call__(self, key: TarKey) -> Image.Image:
        """Read one member and parse its header.

        Raises:
            OSError: If the member was found unfit when it was listed, or is no raster image.
        """
        if key.problem:
            raise OSError(key.problem)
        with open(os.path.join(self.root, key.shard), "rb") as file:  # noqa: PTH118, PTH123
            file.seek(key.offset)
            return open_image(file.read(key.size))


def list_webdataset(source: WebDatasetSource) -> ImageListing:
    """List the members that are images, with the label of the same key.

    A member's key is its path up to the first dot of its name, and its kind is the rest: of
    `a/7.seg.png` they are `a/7` and `seg.png`, which is no image to classify. Labels are class
    numbers or names; an image without one, or with null, -1 or empty text, is unlabelled.

    Raises:
        ParameterError: If a pattern matches nothing, or classes and labels do not fit together.
        DataError: If a shard is damaged or compressed, or there are no images.
    """
    others: list[str] = []

    def read(shard: Shard) -> ShardContents:
        with shard.must_be("whole, uncompressed tar files (images are read in place)"):
            path = os.path.join(source.root, shard.path)  # noqa: PTH118
            with tarfile.open(path, "r:") as tar:
                members = _find_members(tar, "cls" if source.label_field is None else "json")
                _check_end(tar)
                others.extend(f"{shard.path}/{name}" for name in members.others)
                return _label(tar, members, shard.path, source.label_field)

    reader = TarReader(source.root)
    listing = list_shards(source, read, reader, label_setting="label_field", by_processes=True)
    if others:
        shown = printable(first_few(others))
        logger.warning(
            "%d images with a further dot in their names are left out: %s", len(others), shown
        )
    return listing


@dataclass(frozen=True)
class _Members:
    images: list[tuple[str, tarfile.TarInfo]]
    """With their keys, in the order of the shard."""
    labels: dict[str, list[tarfile.TarInfo]]
    """By key."""
    others: list[str]
    """Names of images that are further parts of their keys, such as masks."""


def _find_members(tar: tarfile.TarFile, label_kind: str) -> _Members:
    found = _Members([], {}, [])
    for member in tar:
        if member.size < 0:  # Python 3.11.7 would go back, and read for ever.
            raise tarfile.ReadError("a member of negative size")
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if member.isdir() or not stem:  # A name that begins with a dot is hidden.
            continue
        key, kind = f"{folder}/{stem}", kind.lower()
        if f".{kind}" in EXTENSIONS:
            found.images.append((key, member))
        elif kind == label_kind:
            found.labels.setdefault(key, []).append(member)
        elif f".{kind.rpartition('.')[2]}" in EXTENSIONS:
            found.others.append(member.name)
    return found


def _label(
    tar: tarfile.TarFile, members: _Members, shard: str, label_field: str | None
) -> ShardContents:
    """Put images and labels of one key together."""
    found = ShardContents([], [], [])
    seen: set[str] = set()
    for key, member in members.images:
        labels = members.labels.get(key, [])
        label, unread = _read_label(tar, labels[0], label_field) if labels else (None, "")
        problem = (
            _problem(member, MAX_FILE_BYTES)
            or ("another image has its key" if key in seen else "")
            or ("two labels have its key" if len(labels) > 1 else unread)
        )
        found.names.append(member.name)
        found.keys.append(TarKey(shard, member.offset_data, member.size, problem))
        found.labels.append(label)
        seen.add(key)
    return found


def _problem(member: tarfile.TarInfo, max_bytes: int) -> str:
    """Why a member is not read; empty where it is."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "not a regular member"
    if not 0 < member.size <= max_bytes:
        return f"above {max_bytes:,} bytes" if member.size else "the file is empty"
    return ""


def _read_label(
    tar: tarfile.TarFile, member: tarfile.TarInfo, field: str | None
) -> tuple[Label, str]:
    """A label, or why it cannot be read."""
    if member.isreg() and not member.size:
        return None, ""
    if problem := _problem(member, MAX_LABEL_BYTES):
        return None, f"its label {member.name}: {problem}"
    file = tar.fileobj
    if file is None:
        raise tarfile.ReadError("closed")
    file.seek(member.offset_data)
    try:
        return _parse_label(file.read(member.size).decode(), field), ""
    except (ValueError, RecursionError) as error:
        return None, f"its label {member.name}: {error}"


def _parse_label(text: str, field: str | None) -> Label:
    if field is None:
        text = text.strip()
        return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text or None
    values = json.loads(text)
    label = values.get(field) if isinstance(values, dict) else values
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return label if label != "" else None
    raise ValueError(f"{field} must be a number or a name, got {label!r}"[:200])


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse what tarfile takes for an end: a damaged header, or no block of zeros."""
    if tar.fileobj is None:
        raise tarfile.ReadError("closed")
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(MAX_LABEL_BYTES)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError(f"no end of archive at byte {tar.offset}, cut or damaged there")
