"""Ingest: a source's images, decoded, hashed and checked, with a table of what they are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_pipeline.data.decoding import DecodedImages, decode_images, hash_images
from kd_pipeline.data.examples import make_examples, make_rejected
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.listing import ImageListing, check_classes, first_few
from kd_pipeline.data.pixel_store import keep_rows
from kd_pipeline.data.sources_digits import list_digits
from kd_pipeline.data.sources_image_folder import list_image_folder
from kd_pipeline.data.sources_torchvision import list_torchvision
from kd_pipeline.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SOURCES = {
    "digits": list_digits,
    "torchvision": list_torchvision,
    "image_folder": list_image_folder,
}


@dataclass(frozen=True)
class IngestedImages:
    """What ingest hands on.

    Attributes:
        images: The usable images.
        examples: One row per usable image; see `make_examples`.
        rejected: `source`, `example_id` and `reason` of every image left out.
    """

    images: ImageSet
    examples: pd.DataFrame
    rejected: pd.DataFrame


def ingest_images(
    source: Mapping[str, Any],
    *,
    image_size: int | None,
    colour: str,
    max_rejected_share: float,
    max_pixels_per_image: int,
    memory_budget_mb: int,
) -> IngestedImages:
    """Read all images of a source.

    Unreadable images are listed and left out. So is every image outside the test set whose
    pixels are also in the test set; those do not count towards `max_rejected_share`.

    Args:
        source: `kind` (digits, torchvision or image_folder) and what that source takes.
        image_size: Side in pixels; None keeps the images' own size, the same for all.
        colour: auto, grey or rgb.
        max_rejected_share: The run stops above this share of unreadable images.
        max_pixels_per_image: Larger images are rejected before they are decoded.
        memory_budget_mb: More MiB of pixels than this go to a memory-mapped file.

    Raises:
        ParameterError: If the source is unknown or does not take what it is given.
        DataError: If the images cannot be used; the message says why.
    """
    listing = _list(source)
    if (listing.labels >= 0).all():
        # Where only reading gives the labels, this waits for _assemble.
        check_classes(listing.labels, listing.partitions, listing.class_names)
    logger.info("%s: %d images listed", source["kind"], len(listing.sources))
    decoded = _decoded_already(listing, image_size, colour) or decode_images(
        listing,
        image_size=image_size,
        colour=colour,
        max_pixels_per_image=max_pixels_per_image,
        memory_budget_mb=memory_budget_mb,
    )
    _check_rejected_share(listing, decoded, max_rejected_share)
    return _assemble(listing, decoded, _with_copies_of_test_images(listing, decoded))


def _list(source: Mapping[str, Any]) -> ImageListing:
    kind = source["kind"]
    if kind not in SOURCES:
        raise ParameterError("data_ingest.source.kind", "be a known source", kind, legal=SOURCES)
    arguments = {key: value for key, value in source.items() if key != "kind"}
    lister: Any = SOURCES[kind]
    listing: ImageListing = lister(**arguments)
    return listing


def _decoded_already(
    listing: ImageListing, image_size: int | None, colour: str
) -> DecodedImages | None:
    """The source's own arrays, where they need no change."""
    pixels = listing.decoded
    if pixels is None:
        return None
    own_colour = "grey" if pixels.shape[1] == 1 else "rgb"
    if colour not in {"auto", own_colour} or pixels.shape[2:] not in {
        pixels.shape[2:] if image_size is None else (image_size, image_size)
    }:
        return None
    return DecodedImages(pixels, hash_images(pixels), {})


def _check_rejected_share(
    listing: ImageListing, decoded: DecodedImages, max_rejected_share: float
) -> None:
    num_images, num_rejected = len(listing.sources), len(decoded.reasons)
    if num_rejected == 0:
        return
    share = num_rejected / num_images
    lines = [f"{listing.sources[at]}: {reason}" for at, reason in sorted(decoded.reasons.items())]
    if share > max_rejected_share:
        raise DataError(
            f"{num_rejected} of {num_images} images cannot be used, a share of {share:.4f}, more "
            f"than `data_ingest.max_rejected_share` = {max_rejected_share}: {first_few(lines)}"
        )
    logger.warning(
        "%d of %d images cannot be used and are left out: %s",
        num_rejected,
        num_images,
        first_few(lines),
    )


def _with_copies_of_test_images(listing: ImageListing, decoded: DecodedImages) -> dict[int, str]:
    """All reasons to leave an image out: unreadable, or the same pixels as a test image."""
    hashes = np.array(decoded.content_hashes)
    readable = hashes != ""
    in_test = (listing.partitions == "test") & readable
    test_id_of = dict(
        zip(hashes[in_test].tolist(), listing.example_ids[in_test].tolist(), strict=True)
    )
    copies = {
        int(at): f"same image as test example {test_id_of[hashes[at]]}"
        for at in np.flatnonzero(readable & ~in_test)
        if hashes[at] in test_id_of
    }
    if copies:
        lines = [f"{listing.sources[at]}: {reason}" for at, reason in copies.items()]
        logger.warning(
            "%d images are in the test set too and are kept out of training: %s",
            len(copies),
            first_few(lines),
        )
    _log_repeats("the test set", hashes[in_test])
    elsewhere = readable & ~in_test
    elsewhere[list(copies)] = False
    _log_repeats("the images to train on", hashes[elsewhere])
    return {**decoded.reasons, **copies}


def _log_repeats(where: str, hashes: NDArray[np.str_]) -> None:
    num_repeats = sum(count - 1 for count in Counter(hashes.tolist()).values())
    if num_repeats:
        logger.warning("%s: %d images repeat another one exactly; they stay", where, num_repeats)


def _assemble(
    listing: ImageListing, decoded: DecodedImages, reasons: dict[int, str]
) -> IngestedImages:
    kept = np.ones(len(listing.sources), dtype=bool)
    kept[list(reasons)] = False
    rows = np.flatnonzero(kept)
    labels, partitions = listing.labels[rows], listing.partitions[rows]
    class_names = listing.class_names or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    check_classes(labels, partitions, class_names)
    examples = make_examples(
        example_ids=listing.example_ids[rows],
        labels=labels,
        class_names=class_names,
        sources=[listing.sources[at] for at in rows],
        partitions=partitions,
        content_hashes=[decoded.content_hashes[at] for at in rows],
    )
    rejected = make_rejected(
        [(listing.sources[at], int(listing.example_ids[at]), reasons[at]) for at in sorted(reasons)]
    )
    images = ImageSet(listing.example_ids[rows], keep_rows(decoded.pixels, kept), class_names)
    logger.info(
        "%d images of %d classes, %s %s; %d left out",
        len(images.pixels),
        len(class_names),
        " x ".join(map(str, images.pixels.shape[2:])),
        "grey" if images.pixels.shape[1] == 1 else "rgb",
        len(rejected),
    )
    return IngestedImages(images, examples, rejected)
