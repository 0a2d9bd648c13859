"""Image files: regular files of raster formats, each folder once, whatever links say."""

import os
import pickle
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from kd_pipeline.data.image_files import FORMATS, FileReader, walk_image_files

WriteImage = Callable[..., Path]

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
"""


def walked(root: Path, *folders: str) -> list[tuple[str, str]]:
    found = walk_image_files(str(root), folders)
    return sorted((folders[file.folder], file.path) for file in found)


def test_a_link_to_a_folder_above_is_given_once_and_not_followed(
    tmp_path: Path, write_image: WriteImage
) -> None:
    write_image("cat/0.png", seed=0)
    write_image("dog/0.png", seed=1)
    for name, target in (("loop", "cat"), ("up", "."), ("across", "dog")):
        (tmp_path / "cat" / name).symlink_to(tmp_path / target)
    assert walked(tmp_path, "cat", "dog") == [
        ("cat", "cat/0.png"),
        ("cat", "cat/across"),
        ("cat", "cat/loop"),
        ("cat", "cat/up"),
        ("dog", "dog/0.png"),
    ]
    with pytest.raises(OSError, match="the folder is listed already, under another path"):
        FileReader(str(tmp_path))("cat/loop")


def test_two_links_that_lead_to_each_other_end(tmp_path: Path, write_image: WriteImage) -> None:
    write_image("outside/a/0.png", seed=0)
    (tmp_path / "outside/a/b").symlink_to(tmp_path / "outside")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cat").symlink_to(tmp_path / "outside/a")
    (tmp_path / "root/cat.png").symlink_to(tmp_path / "root/cat.png")
    assert walked(tmp_path / "root", "cat") == [("cat", "cat/0.png"), ("cat", "cat/b/a")]


def test_a_folder_belongs_where_it_lies_and_not_where_a_link_leads_to_it(
    tmp_path: Path, write_image: WriteImage
) -> None:
    write_image("dog/deep/0.png", seed=0)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "link").symlink_to(tmp_path / "dog" / "deep")
    (tmp_path / "ant").symlink_to(tmp_path / "dog")
    assert walked(tmp_path, "ant", "cat", "dog") == [
        ("ant", "ant"),
        ("cat", "cat/link"),
        ("dog", "dog/deep/0.png"),
    ]


def test_links_to_folders_and_files_elsewhere_are_followed(
    tmp_path: Path, write_image: WriteImage
) -> None:
    image = write_image("elsewhere/0.png", seed=0)
    (tmp_path / "root/cat").mkdir(parents=True)
    (tmp_path / "root/cat/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/cat/1.png").symlink_to(image)
    assert walked(tmp_path / "root", "cat") == [("cat", "cat/1.png"), ("cat", "cat/more/0.png")]
    with FileReader(str(tmp_path / "root"))("cat/1.png") as read:
        assert read.size == (8, 8)


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
    (tmp_path / "device.bmp").symlink_to("/dev/zero")
    assert stat.S_ISFIFO((tmp_path / "pipe.jpg").stat().st_mode)
    assert [path for _, path in walked(tmp_path, "")] == [
        "device.bmp",
        "pipe.jpg",
        "socket.png",
    ]
    for name in ("device.bmp", "pipe.jpg", "socket.png"):
        with pytest.raises(OSError, match="not a regular file"):
            FileReader(str(tmp_path))(name)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="above 2 GiB"):
        FileReader(str(tmp_path))("sparse.png")


def test_a_postscript_file_named_jpg_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "evil.jpg").write_bytes(EPS)
    with pytest.raises(UnidentifiedImageError), FileReader(str(tmp_path))("evil.jpg") as image:
        image.load()
    assert not ran.exists()


def test_every_format_that_is_named_is_read(tmp_path: Path) -> None:
    reader = pickle.loads(pickle.dumps(FileReader(str(tmp_path))))
    for name in FORMATS:
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.jpg", format=name)
        with reader(f"{name}.jpg") as image:
            assert (image.format, image.size) == (name, (8, 8))
    # What some cameras write: a JPEG that holds several pictures.
    Image.new("RGB", (8, 8)).save(
        tmp_path / "mpo.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    with reader("mpo.jpg") as image:
        assert image.size == (8, 8)
