"""Decode many images with all cores into one uint8 array, and list those that cannot be read."""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kd_pipeline.data.conversion import CHANNELS, GREY_MODES, Colour, image_to_pixels, upright_size
from kd_pipeline.data.listing import ImageListing, Reader
from kd_pipeline.data.pixel_store import allocate_pixels
from kd_pipeline.data.settings import DataIngestParams
from kd_pipeline.errors import DataError
from kd_pipeline.events import Progress, emit
from kd_pipeline.memory import MemoryBudget, available_cores

logger = logging.getLogger(__name__)

MIN_IMAGES_FOR_PROCESSES = 10_000
"""Threads that decode small images wait for Python's lock: two are slower than one (measured: 142
against 122 µs for a 32 by 32 JPEG). Processes cost 1 to 2 s to start."""
CHUNK_BYTES = 8 * 2**20
"""The most pixels that one task decodes."""


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images in the order of their listing.

    Attributes:
        pixels: uint8 [num_images, channels, height, width], zeros where unreadable.
        content_hashes: Hash of the decoded pixels and their shape; "" where unreadable.
        reasons: Why an image is unreadable, by position in the listing.
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


def decode_images(
    listing: ImageListing, params: DataIngestParams, budget: MemoryBudget
) -> DecodedImages:
    """Decode all images of a listing to one size and colour.

    Colour `auto` is grey only where all images are grey. Oversized images are rejected by their
    header.

    Raises:
        DataError: If no image can be read, or `image_size` is None and sizes differ.
    """
    # `max_pixels_per_image` takes the place of Pillow's bound and, unlike it, may be raised.
    pillows_bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return _decode(listing, _plan(listing, params), budget)
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_bound


def hash_images(pixels: NDArray[np.uint8]) -> list[str]:
    """32 hex digits over each image's pixels and shape, of uint8 [num_images, c, h, w]."""
    head = hashlib.blake2b(repr(tuple(pixels.shape[1:])).encode(), digest_size=16)
    hashes = []
    for image in pixels:
        digest = head.copy()
        digest.update(np.ascontiguousarray(image).data)
        hashes.append(digest.hexdigest())
    return hashes


def _plan(listing: ImageListing, params: DataIngestParams) -> _Target:
    """Settle colour and shape from as few headers as possible."""
    side, max_pixels = params.image_size, params.max_pixels_per_image
    size = None if side is None else (side, side)
    colour: Colour | None = None if params.colour == "auto" else params.colour
    any_grey = False
    for key in listing.keys:
        if size is not None and colour is not None:
            break
        # An unreadable image is counted, with its reason, when it is decoded.
        with suppress(Exception), listing.reader(key) as image:
            if image.width * image.height <= max_pixels:
                size = size or upright_size(image)
                if image.mode in GREY_MODES:
                    any_grey = True
                else:
                    colour = colour or "rgb"
    colour = colour or ("grey" if any_grey else None)
    if size is None or colour is None:
        raise DataError(f"none of the {len(listing.sources)} images can be read")
    return _Target(colour, side, (CHANNELS[colour], size[1], size[0]), max_pixels)


def _decode(listing: ImageListing, target: _Target, budget: MemoryBudget) -> DecodedImages:
    num_images, stop = len(listing.sources), 0
    pixels = allocate_pixels((num_images, *target.shape), budget)
    decoded = DecodedImages(pixels, [], {})
    emit(Progress("decode images", 0, num_images, "images"))
    for chunk in _decode_chunks(listing, target):
        start, stop = stop, stop + len(chunk.pixels)
        pixels[start:stop] = chunk.pixels
        decoded.content_hashes.extend(chunk.content_hashes)
        decoded.reasons.update(chunk.reasons)
        emit(Progress("decode images", stop, num_images, "images"))
    return decoded


def _decode_chunks(listing: ImageListing, target: _Target) -> Iterator[DecodedImages]:
    size = max(1, min(256, CHUNK_BYTES // int(np.prod(target.shape))))
    starts = range(0, len(listing.sources), size)
    num_done = 0
    if listing.by_processes and len(listing.sources) >= MIN_IMAGES_FOR_PROCESSES:
        try:
            # Spawned, not forked: torch's threads may be running already.
            with ProcessPoolExecutor(available_cores(), get_context("spawn")) as processes:
                for chunk in _in_order(processes, listing, target, starts):
                    yield chunk
                    num_done += 1
        except (BrokenProcessPool, PermissionError) as error:
            # A main script without `if __name__ == "__main__"`, or a sandbox without semaphores.
            logger.warning("no worker processes (%s): decoding continues in threads", error)
    with ThreadPoolExecutor(available_cores()) as threads:
        yield from _in_order(threads, listing, target, starts[num_done:])


def _in_order(
    executor: Executor, listing: ImageListing, target: _Target, starts: range
) -> Iterator[DecodedImages]:
    """Decode with a bounded number of chunks in memory."""
    waiting: deque[Future[DecodedImages]] = deque()
    for start in starts:
        if len(waiting) >= 2 * available_cores():
            yield waiting.popleft().result()
        rows = slice(start, start + starts.step)
        keys, sources = listing.keys[rows], listing.sources[rows]
        task = executor.submit(_decode_chunk, listing.reader, target, start, keys, sources)
        waiting.append(task)
    while waiting:
        yield waiting.popleft().result()


def _decode_chunk(
    reader: Reader, target: _Target, start: int, keys: Sequence[Any], sources: Sequence[str]
) -> DecodedImages:
    Image.MAX_IMAGE_PIXELS = None  # As in `decode_images`: this may be another process.
    pixels = np.zeros((len(keys), *target.shape), dtype=np.uint8)
    reasons: dict[int, str] = {}
    for row, key in enumerate(keys):
        try:
            image = _read(reader, target, key)
        except UnidentifiedImageError:  # Its message names an address in memory.
            reasons[start + row] = "cannot identify its format"
        except Exception as error:  # Broken bytes lead Pillow's parsers to errors of any kind.
            reasons[start + row] = f"{type(error).__name__}: {error}"
        else:
            if image.shape != target.shape:
                raise DataError(
                    "`data_ingest.image_size` must be given where images differ in size, got null: "
                    f"the first image is {target.shape[2]} x {target.shape[1]}, {sources[row]} is "
                    f"{image.shape[2]} x {image.shape[1]}"
                )
            pixels[row] = image
    hashes = hash_images(pixels)
    for position in reasons:
        hashes[position - start] = ""
    return DecodedImages(pixels, hashes, reasons)


def _read(reader: Reader, target: _Target, key: Any) -> NDArray[np.uint8]:
    with reader(key) as image:
        if image.width * image.height > target.max_pixels:
            raise ValueError(
                f"oversized: {image.width} x {image.height} pixels, more than "
                f"`data_ingest.max_pixels_per_image` = {target.max_pixels}"
            )
        return image_to_pixels(image, colour=target.colour, image_size=target.image_size)
