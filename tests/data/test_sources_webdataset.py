"""webdataset: keys, labels, members that are rejected, damaged and compressed tar files."""

import io
import logging
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.data.ingest import IngestedImages, ingest_images
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import DataIngestParams, WebDatasetSource
from kd_pipeline.data.sources_webdataset import list_webdataset
from kd_pipeline.errors import DataError

Encoded = Callable[[int], bytes]
Write = Callable[..., Path]


def source(root: Path, **settings: Any) -> WebDatasetSource:
    block = {"kind": "webdataset", "root": str(root), "train": "*.tar", **settings}
    return WebDatasetSource.model_validate(block)


def labels(listing: ImageListing) -> dict[str, str]:
    names = [*listing.class_names, ""]
    return {
        name: names[at] for name, at in zip(listing.sources, listing.labels.tolist(), strict=True)
    }


def ingested(root: Path, **settings: Any) -> IngestedImages:
    params = {"source": source(root, **settings), "max_rejected_share": 1.0}
    return ingest_images(DataIngestParams.model_validate(params))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_keys_group_members_in_any_order_and_unlabelled_images_stay(
    tmp_path: Path, write_tar: Write, encoded: Encoded, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(
        "a.tar",
        special("x", tarfile.DIRTYPE),
        ("x/1.cls", b" owl\n"),
        ("x/1.JPG", encoded(0)),
        ("x/1.seg.png", encoded(1)),
        ("y/1.webp", encoded(2)),
        ("y/1.cls", b"emu"),
        ("y/._1.png", b"left by macOS"),
        ("2.png", encoded(3)),
        ("3.png", encoded(4)),
        ("3.cls", b""),
        ("4.txt", b"no image"),
    )
    with caplog.at_level(logging.WARNING):
        listing = list_webdataset(source(tmp_path))
    assert "1 images with a further dot in their names are left out: a.tar/x/1.seg" in caplog.text
    assert labels(listing) == {
        "a.tar/x/1.JPG": "owl",
        "a.tar/y/1.webp": "emu",
        "a.tar/2.png": "",
        "a.tar/3.png": "",
    }
    assert set(listing.partitions) == {"pool"}
    reader = pickle.loads(pickle.dumps(listing.reader))
    assert reader(listing.keys[0]).size == (8, 8)
    assert ingested(tmp_path).examples["label"].isna().sum() == 2


def test_labels_from_a_field_of_json(tmp_path: Path, write_tar: Write, encoded: Encoded) -> None:
    texts = ('{"y": 1, "x": 7}', '{"y": 0}', '{"y": null}', "{}", '{"y": 1.5}', '{"y": true}', "{")
    members = [
        member
        for at, text in enumerate(texts)
        for member in ((f"{at}.png", encoded(at)), (f"{at}.json", text.encode()))
    ]
    write_tar("a.tar", *members)
    settings = {"label_field": "y", "class_names": ["owl", "emu"]}
    listing = list_webdataset(source(tmp_path, **settings))
    assert list(labels(listing).values())[:4] == ["emu", "owl", "", ""]
    reasons = ingested(tmp_path, **settings).rejected.set_index("source")["reason"]
    assert list(reasons.index) == ["a.tar/4.png", "a.tar/5.png", "a.tar/6.png"]
    assert "label 4.json: y must be a number or a name, got 1.5" in reasons.iloc[0]


def test_members_that_are_no_plain_files_are_listed_as_rejected(
    tmp_path: Path, write_tar: Write, encoded: Encoded
) -> None:
    """A link, a device or a name that leads out of the archive opens nothing and writes nothing."""
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(50))
    good = [m for at in (0, 1) for m in ((f"{at}.png", encoded(at)), (f"{at}.cls", b"%d" % at))]
    write_tar(
        "a.tar",
        *good,
        special("link.png", tarfile.SYMTYPE, str(outside)),
        special("hard.png", tarfile.LNKTYPE, "0.png"),
        special("fifo.png", tarfile.FIFOTYPE),
        special("disk.png", tarfile.BLKTYPE),
        ("/etc/absolute.png", encoded(2)),
        ("../up.png", encoded(3)),
        ("empty.png", b""),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"),
        ("0.jpg", encoded(4)),
        ("linked.png", encoded(5)),
        special("linked.cls", tarfile.SYMTYPE, "0.cls"),
        ("twice.png", encoded(6)),
        ("twice.cls", b"0"),
        ("twice.cls", b"1"),
        ("bytes.png", encoded(7)),
        ("bytes.cls", b"\xff"),
    )
    before = sorted(tmp_path.iterdir())
    found = ingested(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    reasons = dict(zip(found.rejected["source"], found.rejected["reason"], strict=True))
    assert {name.removeprefix("a.tar/"): reason for name, reason in reasons.items()} == {
        "link.png": "OSError: not a regular member",
        "hard.png": "OSError: not a regular member",
        "fifo.png": "OSError: not a regular member",
        "disk.png": "OSError: not a regular member",
        "/etc/absolute.png": "OSError: its name leads out of the archive",
        "../up.png": "OSError: its name leads out of the archive",
        "empty.png": "OSError: the file is empty",
        "script.jpg": "cannot identify its format",
        "0.jpg": "OSError: another image has its key",
        "linked.png": "OSError: its label linked.cls: not a regular member",
        "twice.png": "OSError: two labels have its key",
        "bytes.png": "OSError: its label bytes.cls: 'utf-8' codec can't decode byte 0xff in "
        "position 0: invalid start byte",
    }
    assert found.examples["source"].tolist() == ["a.tar/0.png", "a.tar/1.png"]


@pytest.fixture
def whole(tmp_path: Path, write_tar: Write, encoded: Encoded) -> bytes:
    members = [
        m for at in range(4) for m in ((f"{at}.png", encoded(at)), (f"{at}.cls", b"%d" % at))
    ]
    return write_tar("whole.tar", *members).read_bytes()


def test_a_tar_cut_anywhere_is_refused_by_its_name(tmp_path: Path, whole: bytes) -> None:
    """Cut in a header, in data or between members; a tar of no end is what tarfile would accept."""
    end = len(whole.rstrip(b"\0"))
    for size in [0, 1, 511, *range(512, end, 256)]:
        (tmp_path / "whole.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"source.train` must be whole, .* got 'whole.tar': "):
            list_webdataset(source(tmp_path))


def test_a_header_with_a_flipped_bit_is_refused(tmp_path: Path, whole: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        starts = [member.offset for member in tar]
    for start in starts:
        for byte in (0, 100, 124, 136, 150, 156, 257, 345):
            damaged = bytearray(whole)
            damaged[start + byte] ^= 1
            (tmp_path / "whole.tar").write_bytes(damaged)
            with pytest.raises(DataError, match=r"got 'whole.tar': "):
                list_webdataset(source(tmp_path))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-1, -512, -1024, 2**62, 2**70])
def test_a_member_of_absurd_size_is_refused(
    tmp_path: Path, write_tar: Write, kind: bytes, size: int
) -> None:
    """A header may hold any size; below zero tarfile would go back and read for ever."""
    file = write_tar("a.tar", ("0.cls", b""), ("1.png", b""))
    tar = bytearray(file.read_bytes())
    header = memoryview(tar)[512:1024]
    header[124:136] = bytes([0xFF if size < 0 else 0x80]) + (size % 2**88).to_bytes(11, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    header.release()
    file.write_bytes(tar)
    with pytest.raises(DataError, match=r"source.train` must be whole, .* got 'a.tar': "):
        list_webdataset(source(tmp_path))


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, whole: bytes, form: str) -> None:
    (tmp_path / "whole.tar").unlink()
    with tarfile.open(tmp_path / f"whole.tar.{form}", f"w:{form}") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    message = rf"uncompressed tar files \(images are read in place\), got 'whole.tar.{form}'"
    with pytest.raises(DataError, match=message):
        list_webdataset(source(tmp_path, train="*.tar.*"))


def test_shards_put_one_after_the_other_are_refused(tmp_path: Path, whole: bytes) -> None:
    """Reading would end at the first one's end."""
    (tmp_path / "whole.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="no end of archive at byte"):
        list_webdataset(source(tmp_path))


def test_no_images(tmp_path: Path, write_tar: Write) -> None:
    write_tar("a.tar", ("0.cls", b"0"))
    with pytest.raises(DataError, match=r"source.train` must be files with images, got none"):
        list_webdataset(source(tmp_path))


def test_ids_stay_when_shards_are_added_and_ascend_as_images_are_stored(
    tmp_path: Path, whole: bytes
) -> None:
    before = list_webdataset(source(tmp_path))
    shutil.copy(tmp_path / "whole.tar", tmp_path / "another.tar")
    after = list_webdataset(source(tmp_path))
    ids = dict(zip(after.sources, after.example_ids, strict=True))
    assert [ids[name] for name in before.sources] == before.example_ids.tolist()
    assert [key.offset for key in before.keys] == sorted(key.offset for key in before.keys)
    assert (after.example_ids[1:] > after.example_ids[:-1]).all()
