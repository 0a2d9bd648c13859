"""Small image files, and shards of them."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image(tmp_path: Path) -> WriteImage:
    """Write an image of noise below tmp_path; the same seed gives the same pixels."""

    def write(
        path: str, *, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", **arguments: int
    ) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
        noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(noise).save(file, **arguments)
        return file

    return write


@pytest.fixture
def make_tree(write_image: WriteImage) -> Callable[..., None]:
    """Write `<tree>/<class>/<n>.png`, `num_each` a class, all different."""

    def make(*trees: str, classes: tuple[str, ...] = ("cat", "dog"), num_each: int = 3) -> None:
        seed = 0
        for tree in trees:
            for name in classes:
                for position in range(num_each):
                    write_image(str(Path(tree, name, f"{position}.png")), seed=seed)
                    seed += 1

    return make


@pytest.fixture
def encoded() -> Callable[[int], bytes]:
    """An encoded image of noise by its seed."""
    return png


def png(seed: int) -> bytes:
    """An image of noise, encoded; the same seed gives the pixels of `write_image`."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """Write a tar file of members, in order: bytes by name, or a TarInfo without bytes."""

    def write(path: str, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(file, "w") as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                    continue
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
        return file

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write images and labels as Hugging Face's `datasets` does; `images` may be a plain column."""

    def write(
        path: str,
        images: Sequence[bytes | None] | pa.Array,
        labels: Sequence[Any] | pa.Array,
        *,
        names: Sequence[str] | None = None,
        row_group_size: int = 2,
        **columns: Sequence[Any],
    ) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(images, pa.Array):
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            images = pa.array([{"bytes": one, "path": "x.png"} for one in images], kind)
        table = pa.table({"image": images, "label": pa.array(labels), **columns})
        if names is not None:
            table = table.replace_schema_metadata({"huggingface": hugging_face(names)})
        pq.write_table(table, file, row_group_size=row_group_size)
        return file

    return write


def hugging_face(names: Sequence[str]) -> str:
    """The metadata that `datasets` writes for a column of class numbers."""
    label = {"names": list(names), "_type": "ClassLabel"}
    features: Mapping[str, Any] = {"image": {"_type": "Image"}, "label": label}
    return json.dumps({"info": {"features": features}})
