"""Small image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
