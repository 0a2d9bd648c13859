"""Decoding: the pixels of every file, the reason for every bad one, in any executor."""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_pipeline.data import decoding
from kd_pipeline.data.decoding import DecodedImages, decode_images, hash_images
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import DataIngestParams, ImageFolderSource
from kd_pipeline.data.sources_image_folder import list_image_folder
from kd_pipeline.errors import DataError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.memory import MemoryBudget

PLENTY = MemoryBudget(2**30)


def listed(root: Path) -> ImageListing:
    return list_image_folder(ImageFolderSource(kind="image_folder", root=str(root)))


def decode(root: Path, budget: MemoryBudget = PLENTY, **changes: Any) -> DecodedImages:
    source = ImageFolderSource(kind="image_folder", root=str(root))
    params = DataIngestParams(source=source, **{"max_pixels_per_image": 10_000, **changes})
    return decode_images(listed(root), params, budget)


def reasons_by_source(root: Path, decoded: DecodedImages) -> dict[str, str]:
    sources = listed(root).sources
    return {sources[at]: reason for at, reason in decoded.reasons.items()}


def test_every_file_is_found_at_its_own_position(
    tmp_path: Path, make_tree: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree("", num_each=20)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 3 * 192)  # several chunks, the last one short
    decoded = decode(tmp_path)
    for path, pixels in zip(listed(tmp_path).sources, decoded.pixels, strict=True):
        expected = np.asarray(Image.open(tmp_path / path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, expected)
    assert decoded.content_hashes == hash_images(decoded.pixels)
    assert decoded.reasons == {}


def test_processes_and_threads_give_the_same(
    tmp_path: Path, make_tree: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree("", num_each=6)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    in_threads = decode(tmp_path)
    monkeypatch.setattr(decoding, "MIN_IMAGES_FOR_PROCESSES", 1)
    in_processes = decode(tmp_path)
    np.testing.assert_array_equal(in_threads.pixels, in_processes.pixels)
    assert in_threads.content_hashes == in_processes.content_hashes
    assert in_threads.reasons == in_processes.reasons


def test_threads_take_over_where_processes_break(
    tmp_path: Path, make_tree: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree("", num_each=4)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("no semaphores here")

    monkeypatch.setattr(decoding, "MIN_IMAGES_FOR_PROCESSES", 1)
    monkeypatch.setattr(decoding, "ProcessPoolExecutor", refuse)
    assert len(decode(tmp_path).pixels) == 8


def test_above_the_budget_pixels_go_to_disk(
    tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        write_image(f"images/{'ab'[seed % 2]}/{seed}.png", seed=seed, size=(300, 300))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    on_disk = decode(tmp_path / "images", budget=MemoryBudget(2**20), max_pixels_per_image=10**6)
    assert isinstance(on_disk.pixels, np.memmap)
    in_memory = decode(tmp_path / "images", max_pixels_per_image=10**6)
    np.testing.assert_array_equal(on_disk.pixels, in_memory.pixels)


def test_bad_files_are_listed_with_their_reason(
    tmp_path: Path, make_tree: Callable[..., None], write_image: Callable[..., Path]
) -> None:
    make_tree("")
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    (tmp_path / "cat" / "text.jpg").write_text("this is no image")
    whole = write_image("dog/truncated.jpg", seed=1, size=(64, 64), quality=95)
    whole.write_bytes(whole.read_bytes()[:-500])
    broken = write_image("dog/broken.png", seed=1)
    broken.write_bytes(broken.read_bytes()[:60])
    write_image("dog/oversized.png", seed=1, size=(101, 100))
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "dog" / "odd.tif")
    reasons = reasons_by_source(tmp_path, decode(tmp_path, image_size=8, colour="rgb"))
    assert set(reasons) == {
        "cat/empty.jpg",
        "cat/text.jpg",
        "dog/truncated.jpg",
        "dog/broken.png",
        "dog/oversized.png",
        "dog/odd.tif",
    }
    assert "the file is empty" in reasons["cat/empty.jpg"]
    assert "cannot identify" in reasons["cat/text.jpg"]
    assert "truncated" in reasons["dog/truncated.jpg"]
    assert "oversized: 101 x 100" in reasons["dog/oversized.png"]
    assert "odd mode F" in reasons["dog/odd.tif"]


@pytest.mark.parametrize(
    "error",
    [
        Image.DecompressionBombError("a bomb"),
        struct.error("unpack requires"),
        SyntaxError("not a TIFF file"),
        MemoryError(),
        RecursionError("too deep"),
    ],
)
def test_an_error_of_any_kind_rejects_its_file_alone(
    tmp_path: Path, make_tree: Callable[..., None], error: Exception
) -> None:
    make_tree("")
    listing = listed(tmp_path)

    def reader(key: str) -> Image.Image:
        if key == "cat/1.png":
            raise error
        return listing.reader(key)

    source = ImageFolderSource(kind="image_folder", root=str(tmp_path))
    broken = dataclasses.replace(listing, reader=reader, by_processes=False)
    decoded = decode_images(broken, DataIngestParams(source=source), PLENTY)
    (position,) = decoded.reasons
    assert listing.sources[position] == "cat/1.png"
    assert type(error).__name__ in decoded.reasons[position]


def test_an_oversized_image_is_never_decoded(
    tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image("a/small.png", seed=0)
    write_image("b/large.png", seed=1, size=(101, 100))
    loaded: list[tuple[int, int]] = []
    convert = decoding.image_to_pixels

    def spy(image: Image.Image, **settings: Any) -> np.ndarray:
        loaded.append(image.size)
        return convert(image, **settings)

    monkeypatch.setattr(decoding, "image_to_pixels", spy)
    assert len(decode(tmp_path).reasons) == 1
    assert loaded == [(8, 8)]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3)])
def test_auto_is_grey_only_where_all_images_are(
    tmp_path: Path, write_image: Callable[..., Path], mode: str, channels: int
) -> None:
    for seed in range(8):
        write_image(f"{'ab'[seed % 2]}/{seed}.png", seed=seed, mode="L")
    write_image("a/last.png", seed=9, mode=mode)
    assert decode(tmp_path).pixels.shape[1] == channels


def test_sizes_that_differ_need_image_size(
    tmp_path: Path, make_tree: Callable[..., None], write_image: Callable[..., Path]
) -> None:
    make_tree("", num_each=1)
    write_image("cat/wide.png", seed=7, size=(20, 8))
    with pytest.raises(DataError, match=r"`data_ingest.image_size` must be given .* got null"):
        decode(tmp_path)
    assert decode(tmp_path, image_size=8).pixels.shape == (3, 3, 8, 8)


def test_grey_images_of_more_than_8_bits_are_grey(tmp_path: Path) -> None:
    for name, kind in (("a", np.uint16), ("b", np.int32)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 32896, kind)).save(tmp_path / name / "x.tif")
    decoded = decode(tmp_path)
    assert decoded.pixels.shape[1] == 1
    assert set(decoded.pixels.flatten()) == {128}


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        decode(tmp_path)


def test_equal_hashes_mean_equal_pixels_and_shape() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    assert hash_images(pixels) == hash_images(pixels.copy(order="F"))
    assert hash_images(pixels) != hash_images(pixels.reshape(1, 3, 1, 4))
    assert hash_images(pixels) != hash_images(pixels + 1)


def test_progress_rises_to_the_total(tmp_path: Path, make_tree: Callable[..., None]) -> None:
    make_tree("", num_each=4)
    emitted: list[Event] = []
    with listening(emitted.append):
        decode(tmp_path)
    assert all(isinstance(event, Progress) and event.total == 8 for event in emitted)
    done = [event.done for event in emitted if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == 8


def test_pillows_own_bound_is_given_back(tmp_path: Path, make_tree: Callable[..., None]) -> None:
    make_tree("")
    before = Image.MAX_IMAGE_PIXELS
    decode(tmp_path)
    assert before == Image.MAX_IMAGE_PIXELS is not None
