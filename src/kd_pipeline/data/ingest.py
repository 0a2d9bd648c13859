"""Ingest: a source's images, decoded, hashed and checked, with a table of their labels."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kd_pipeline.data.decoding import DecodedImages, decode_images, hash_images
from kd_pipeline.data.examples import contradictions, make_examples, make_rejected
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.listing import ImageListing, check_classes, first_few
from kd_pipeline.data.pixel_store import keep_rows
from kd_pipeline.data.settings import DataIngestParams
from kd_pipeline.data.sources_digits import list_digits
from kd_pipeline.data.sources_image_folder import list_image_folder
from kd_pipeline.data.sources_parquet import list_parquet
from kd_pipeline.data.sources_torchvision import list_torchvision
from kd_pipeline.data.sources_webdataset import list_webdataset
from kd_pipeline.errors import DataError
from kd_pipeline.memory import MemoryBudget, open_budget

logger = logging.getLogger(__name__)

SOURCES: Mapping[str, Callable[[Any], ImageListing]] = {
    "digits": list_digits,
    "torchvision": list_torchvision,
    "image_folder": list_image_folder,
    "webdataset": list_webdataset,
    "parquet": list_parquet,
}
"""By `kind` of the source's settings, its only argument."""


@dataclass(frozen=True)
class IngestedImages:
    """The usable images and their tables."""

    images: ImageSet
    examples: pd.DataFrame
    """One row per usable image; see `make_examples`."""
    rejected: pd.DataFrame
    """`source`, `example_id` and `reason` of every image left out."""


def ingest_images(params: DataIngestParams, budget: MemoryBudget | None = None) -> IngestedImages:
    """Read all images of a source.

    Unreadable images are listed and left out. So are copies of test images outside the test set,
    which do not count towards `max_rejected_share`. Pixels beyond the `budget` are decoded into a
    memory-mapped file; None is `auto`.

    Raises:
        ParameterError: If the settings do not fit the source.
        DataError: If the images cannot be used.
    """
    listing = SOURCES[params.source.kind](params.source)
    # As early as possible: _assemble checks those that are known only after decoding.
    if listing.class_names and (listing.labels >= 0).all():
        check_classes(listing.labels, listing.partitions, listing.class_names)
    logger.info("%s: %d images listed", params.source.kind, len(listing.sources))
    decoded = _decoded_already(listing, params) or decode_images(
        listing, params, budget or open_budget()
    )
    _check_rejected_share(listing, decoded, params.max_rejected_share)
    reasons = decoded.reasons | _copies_of_test_images(listing, decoded)
    _check_classes_left(listing, reasons)
    ingested = _assemble(listing, decoded, reasons)
    if found := contradictions(ingested.examples):
        shown = first_few([f"{names}: {count}" for names, count in found.items()])
        logger.warning("the same image under several labels, which all stay: %s images", shown)
    return ingested


def _decoded_already(listing: ImageListing, params: DataIngestParams) -> DecodedImages | None:
    """The source's own arrays, where they need no change."""
    pixels, size = listing.decoded, params.image_size
    if pixels is None or (size is not None and pixels.shape[2:] != (size, size)):
        return None
    if params.colour not in {"auto", "grey" if pixels.shape[1] == 1 else "rgb"}:
        return None
    return DecodedImages(pixels, hash_images(pixels), {})


def _check_rejected_share(
    listing: ImageListing, decoded: DecodedImages, max_rejected_share: float
) -> None:
    if not decoded.reasons:
        return
    share = len(decoded.reasons) / len(listing.sources)
    found = f"{len(decoded.reasons)} of {len(listing.sources)} images cannot be used"
    shown = _with_sources(listing, decoded.reasons)
    if share > max_rejected_share:
        raise DataError(
            f"{found}, a share of {share:.4f}, more than `data_ingest.max_rejected_share` = "
            f"{max_rejected_share}: {shown}"
        )
    logger.warning("%s and are left out: %s", found, shown)


def _copies_of_test_images(listing: ImageListing, decoded: DecodedImages) -> dict[int, str]:
    """Reasons, by position, to leave out images with the pixels of a test image."""
    readable = pd.Series(decoded.content_hashes).drop(list(decoded.reasons))
    in_test = listing.partitions[readable.index] == "test"
    test, others = readable[in_test], readable[~in_test]
    test_id_of = dict(zip(test, listing.example_ids[test.index].tolist(), strict=True))
    is_copy = others.isin(test)
    copies = {
        at: f"same image as test example {test_id_of[content_hash]}"
        for at, content_hash in others[is_copy].items()
    }
    if copies:
        shown = _with_sources(listing, copies)
        logger.warning(
            "%d images are in the test set too and are kept out of training: %s", len(copies), shown
        )
    _log_repeats("the test set", test)
    _log_repeats("the images to train on", others[~is_copy])
    return copies


def _check_classes_left(listing: ImageListing, reasons: Mapping[int, str]) -> None:
    """Refuse a class of which every image to train on is left out."""
    left_out = np.isin(np.arange(len(listing.labels)), list(reasons))
    trained = (listing.partitions != "test") & (listing.labels >= 0)
    lost = set(listing.labels[trained]) - set(listing.labels[trained & ~left_out])
    if lost and listing.class_names:
        gone = [np.flatnonzero(trained & (listing.labels == label)) for label in sorted(lost)]
        shown = [
            f"{listing.class_names[listing.labels[rows[0]]]} (all {len(rows)} are left out, "
            f"{_with_sources(listing, {rows[0]: reasons[rows[0]]})})"
            for rows in gone
        ]
        raise DataError(
            f"every class must have a readable image to train on, got none for {first_few(shown)}"
        )


def _with_sources(listing: ImageListing, reasons: Mapping[int, str]) -> str:
    return first_few([f"{listing.sources[at]}: {reason}" for at, reason in sorted(reasons.items())])


def _log_repeats(where: str, hashes: pd.Series) -> None:
    if num_repeats := int(hashes.duplicated().sum()):
        logger.warning("%s: %d images repeat another one exactly; they stay", where, num_repeats)


def _assemble(
    listing: ImageListing, decoded: DecodedImages, reasons: Mapping[int, str]
) -> IngestedImages:
    kept = np.ones(len(listing.sources), dtype=bool)
    kept[list(reasons)] = False
    labels = listing.labels[kept]
    class_names = listing.class_names or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    check_classes(labels, listing.partitions[kept], class_names)
    ingested = IngestedImages(
        ImageSet(listing.example_ids[kept], keep_rows(decoded.pixels, kept), class_names),
        make_examples(listing, kept, class_names, decoded.content_hashes),
        make_rejected(listing, reasons),
    )
    num_images, channels, height, width = ingested.images.pixels.shape
    about = f"{len(class_names)} classes, {height} x {width} {'grey' if channels == 1 else 'rgb'}"
    logger.info("%d images of %s; %d left out", num_images, about, len(reasons))
    return ingested
