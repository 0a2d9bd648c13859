"""Decode many images with all cores into one uint8 array; what cannot be read is listed."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
import zlib
from collections import deque
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd_pipeline.data.conversion import CHANNELS, GREY_MODES, Colour, image_to_pixels, upright_size
from kd_pipeline.data.pixel_store import allocate_pixels
from kd_pipeline.errors import DataError
from kd_pipeline.events import Progress, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from kd_pipeline.data.listing import ImageListing, Reader

logger = logging.getLogger(__name__)

# Threads that decode small images spend their time waiting for Python's lock: two are slower
# than one (measured: 142 against 122 µs for a 32 by 32 JPEG). Processes cost 1 to 2 s to start.
_MIN_IMAGES_FOR_PROCESSES = 10_000
_CHUNK_BYTES = 8 * 2**20
_SECONDS_BETWEEN_EVENTS = 0.1
# Whatever broken bytes lead Pillow's parsers to.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class DecodedImages:
    """What decoding gave, in the order of the listing.

    Attributes:
        pixels: uint8 [num_images, channels, height, width]; rows of unreadable images hold
            nothing of use.
        content_hashes: Hash of the decoded pixels and their shape; "" where unreadable.
        reasons: Why an image could not be used, by position.
    """

    pixels: NDArray[np.uint8]
    content_hashes: list[str]
    reasons: dict[int, str]


@dataclass(frozen=True)
class _Target:
    colour: Colour
    image_size: int | None
    shape: tuple[int, int, int]
    max_pixels: int


@dataclass(frozen=True)
class _Chunk:
    pixels: NDArray[np.uint8]
    content_hashes: list[str]
    reasons: dict[int, str]
    wrong_sizes: dict[int, tuple[int, ...]]


def decode_images(
    listing: ImageListing,
    *,
    image_size: int | None,
    colour: str,
    max_pixels_per_image: int,
    memory_budget_mb: int,
) -> DecodedImages:
    """Decode all images of a listing to one size and colour.

    Args:
        listing: What to read.
        image_size: Side in pixels: the shortest side is resized to it and the rest cropped at
            the centre; None keeps the images' own size.
        colour: grey, rgb, or auto: grey only where all images are grey.
        max_pixels_per_image: Larger images are rejected by their header, before decoding.
        memory_budget_mb: More MiB of pixels than this go to a memory-mapped file.

    Returns:
        Pixels, content hashes and the reasons for what could not be read.

    Raises:
        DataError: If no image can be read, or `image_size` is None and sizes differ.
    """
    with _pillow_without_bound():
        target = _Target(
            *_plan(listing, image_size=image_size, colour=colour, max_pixels=max_pixels_per_image),
            max_pixels=max_pixels_per_image,
        )
        shape = (len(listing.sources), *target.shape)
        pixels = allocate_pixels(shape, memory_budget_mb=memory_budget_mb)
        return _decode_into(pixels, listing, target)


def hash_images(pixels: NDArray[np.uint8]) -> list[str]:
    """Hash every image's pixels and shape.

    Args:
        pixels: uint8 [num_images, channels, height, width].

    Returns:
        32 hexadecimal digits per image; equal for equal images, wherever they came from.
    """
    head = hashlib.blake2b(repr(tuple(pixels.shape[1:])).encode(), digest_size=16)
    hashes = []
    for image in pixels:
        digest = head.copy()
        digest.update(np.ascontiguousarray(image).data)
        hashes.append(digest.hexdigest())
    return hashes


def _plan(
    listing: ImageListing, *, image_size: int | None, colour: str, max_pixels: int
) -> tuple[Colour, int | None, tuple[int, int, int]]:
    """Settle colour and shape from as few headers as will do."""
    size = None if image_size is None else (image_size, image_size)
    found: Colour | None = None if colour == "auto" else "grey" if colour == "grey" else "rgb"
    num_readable = 0
    for position in range(len(listing.sources)):
        if size is not None and found is not None:
            break
        try:
            with listing.reader(listing.keys[position]) as image:
                if image.width * image.height > max_pixels:
                    continue
                num_readable += 1
                size = size or upright_size(image)
                if image.mode not in GREY_MODES:
                    found = found or "rgb"
        except _UNREADABLE:
            continue  # Decoding will say why, and count it.
    if size is None or (found is None and num_readable == 0):
        raise DataError(f"none of the {len(listing.sources)} images can be read")
    found = found or "grey"
    return found, image_size, (CHANNELS[found], size[1], size[0])


def _decode_into(
    pixels: NDArray[np.uint8], listing: ImageListing, target: _Target
) -> DecodedImages:
    num_images = len(pixels)
    decoded = DecodedImages(pixels, [""] * num_images, {})
    size = max(1, min(256, _CHUNK_BYTES // int(np.prod(target.shape))))
    chunks = [range(i, min(i + size, num_images)) for i in range(0, num_images, size)]
    report = _progress(num_images)
    report(0)
    for positions, chunk in zip(chunks, _map_chunks(listing, target, chunks), strict=True):
        if chunk.wrong_sizes:
            raise _sizes_differ(listing, target, chunk.wrong_sizes)
        pixels[positions.start : positions.stop] = chunk.pixels
        decoded.content_hashes[positions.start : positions.stop] = chunk.content_hashes
        decoded.reasons.update(chunk.reasons)
        report(positions.stop)
    return decoded


def _map_chunks(
    listing: ImageListing, target: _Target, chunks: Sequence[range]
) -> Iterator[_Chunk]:
    def submit(executor: Executor, chunk: range) -> Future[_Chunk]:
        keys = listing.keys[chunk.start : chunk.stop]
        return executor.submit(_decode_chunk, listing.reader, target, chunk, keys)

    num_done = 0
    if listing.by_processes and len(listing.sources) >= _MIN_IMAGES_FOR_PROCESSES:
        try:
            # Spawned, not forked: torch's threads may be running already.
            with ProcessPoolExecutor(
                _num_cores(), mp_context=get_context("spawn"), initializer=_lift_pillow_bound
            ) as processes:
                for chunk in _in_order(partial(submit, processes), chunks):
                    yield chunk
                    num_done += 1
        except (BrokenProcessPool, PermissionError) as error:
            # A main script without `if __name__ == "__main__"`, or a sandbox without semaphores.
            logger.warning("No worker processes (%s); decoding goes on in threads", error)
        else:
            return
    with ThreadPoolExecutor(_num_cores()) as threads:
        yield from _in_order(partial(submit, threads), chunks[num_done:])


def _in_order(
    submit: Callable[[range], Future[_Chunk]], chunks: Sequence[range]
) -> Iterator[_Chunk]:
    """Map with a bounded number of chunks under way, so that memory stays bounded too."""
    waiting: deque[Future[_Chunk]] = deque()
    to_come = iter(chunks)
    try:
        waiting.extend(submit(c) for c in islice(to_come, 2 * _num_cores()))
        while waiting:
            chunk = waiting.popleft().result()
            waiting.extend(submit(c) for c in islice(to_come, 1))
            yield chunk
    finally:
        for future in waiting:
            future.cancel()


def _decode_chunk(
    reader: Reader, target: _Target, positions: range, keys: Sequence[str | int]
) -> _Chunk:
    pixels = np.zeros((len(positions), *target.shape), dtype=np.uint8)
    reasons: dict[int, str] = {}
    wrong_sizes: dict[int, tuple[int, ...]] = {}
    for row, (position, key) in enumerate(zip(positions, keys, strict=True)):
        try:
            image = _read(reader, target, key)
        except _UNREADABLE as error:
            reasons[position] = _reason(error)
            continue
        if image.shape == target.shape:
            pixels[row] = image
        else:
            wrong_sizes[position] = image.shape
    hashes = hash_images(pixels)
    for position in reasons:
        hashes[position - positions.start] = ""
    return _Chunk(pixels, hashes, reasons, wrong_sizes)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify its format"  # Pillow's message names an address in memory.
    return f"{type(error).__name__}: {error}"


def _read(reader: Reader, target: _Target, key: str | int) -> NDArray[np.uint8]:
    with reader(key) as image:
        if image.width * image.height > target.max_pixels:
            raise ValueError(
                f"oversized: {image.width} x {image.height} pixels, more than "
                f"`data_ingest.max_pixels_per_image` = {target.max_pixels}"
            )
        return image_to_pixels(image, colour=target.colour, image_size=target.image_size)


def _sizes_differ(
    listing: ImageListing, target: _Target, wrong_sizes: dict[int, tuple[int, ...]]
) -> DataError:
    position, shape = next(iter(wrong_sizes.items()))
    _, height, width = target.shape
    return DataError(
        "`data_ingest.image_size` must be given where images differ in size, got null: the first "
        f"image is {width} x {height}, {listing.sources[position]} is {shape[2]} x {shape[1]}"
    )


def _progress(total: int) -> Callable[[int], None]:
    last = -_SECONDS_BETWEEN_EVENTS

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _SECONDS_BETWEEN_EVENTS:
            last = now
            emit(Progress("decode images", done, total, "images"))

    return report


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _pillow_without_bound() -> Iterator[None]:
    # `max_pixels_per_image` takes its place and, unlike it, may be raised by the user.
    bound = Image.MAX_IMAGE_PIXELS
    _lift_pillow_bound()
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = bound


def _lift_pillow_bound() -> None:
    Image.MAX_IMAGE_PIXELS = None
