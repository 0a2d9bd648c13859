"""Bytes per row of the soft-target store on the logits of real teachers.

`python -m bench.cache_size` reads MNIST from MNIST_ROOT (as torchvision lays it out) and CIFAR-10
as an image folder from CIFAR10_ROOT, and leaves out what is not there. Everything in the store's
folder counts, the manifest too. Each teacher is trained for a minute or so on a part of the
images and labels all of them.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kd_pipeline.data.ingest import ingest_images
from kd_pipeline.data.settings import DataIngestParams
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import write_soft_targets

NUM_ROWS = 50_000
NUM_TRAINED_ON = 30_000
BOUNDS = {10: 22, 100: 200, 1000: 35}
"""Bytes per row that a store of so many classes may take; of 1000 only the top 10 are kept."""


@dataclass(frozen=True)
class Images:
    """Images with labels."""

    name: str
    example_ids: NDArray[np.int64]
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def at_hand() -> Iterator[Images]:
    """Read each data set that there is."""
    if root := os.environ.get("CIFAR10_ROOT"):
        yield _read("CIFAR-10 folder", kind="image_folder", root=root)
    if root := os.environ.get("MNIST_ROOT"):
        digits = _read("MNIST", kind="torchvision", name="MNIST", root=root)
        yield from (_side_by_side(digits, number) for number in (1, 2, 3))


def _read(title: str, **source: str) -> Images:
    ingested = ingest_images(DataIngestParams(source=source))
    images, examples = ingested.images, ingested.examples
    ids = examples.loc[examples["partition"] == "train", "example_id"].to_numpy()
    labels = examples.set_index("example_id")["label"].loc[ids].to_numpy(np.int64)
    return Images(title, ids, images.take(ids), torch.from_numpy(labels), images.class_names)


def _side_by_side(digits: Images, num_digits: int) -> Images:
    """Numbers of several digits: images [n, 1, 28, 28 * num_digits], and what they read."""
    drawn = np.random.default_rng(0).integers(0, len(digits.pixels), (NUM_ROWS, num_digits))
    if num_digits == 1:
        drawn = np.arange(NUM_ROWS)[:, None]
    pixels = torch.cat([digits.pixels[column] for column in drawn.T], dim=3)
    labels = (digits.labels[drawn] * 10 ** torch.arange(num_digits).flip(0)).sum(dim=1)
    names = tuple(f"{number:0{num_digits}d}" for number in range(10**num_digits))
    return Images(f"MNIST x {num_digits}", np.arange(NUM_ROWS), pixels, labels, names)


def _label(images: Images, num_epochs: int) -> tuple[NDArray[np.float32], float]:
    """A teacher's logits of all images, and its accuracy on those that it was not trained on."""
    trained_on, held_out = slice(NUM_TRAINED_ON), slice(NUM_TRAINED_ON, None)
    network = _train(
        images.pixels[trained_on], images.labels[trained_on], len(images.class_names), num_epochs
    )
    with torch.inference_mode():
        logits = torch.cat([network(_scaled(batch)) for batch in images.pixels.split(512)])
    is_right = logits[held_out].argmax(dim=1) == images.labels[held_out]
    return logits.numpy(), float(is_right.float().mean())


def _train(images: Tensor, labels: Tensor, num_classes: int, num_epochs: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [nn.LazyConv2d(width, 3, padding=1), nn.LazyBatchNorm2d()]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(num_classes))
    network(_scaled(images[:2]))
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    batches = len(images) // 128 * num_epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=batches)
    for epoch in range(num_epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128)[: len(images) // 128]:
            loss = F.cross_entropy(network(_scaled(images[rows])), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 128 - 1


def _bytes_per_row(images: Images, logits: NDArray[np.float32], encoding: Encoding) -> float:
    digests = ["0" * 64] * 3
    policy = {"seed": 0, "transforms": []}
    provenance = Provenance(images.class_names, (digests[0],), *digests[1:], policy, 1)
    with tempfile.TemporaryDirectory() as folder:
        store, ids = Path(folder, "store"), images.example_ids
        write_soft_targets(store, [[logits]], ids, provenance=provenance, encoding=encoding)
        return sum(path.stat().st_size for path in store.iterdir()) / len(ids)


def main() -> None:
    """Print a line per data set at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="to train each teacher for")
    parser.add_argument("--keep", type=Path, help="a folder in which to keep the logits as .npz")
    arguments = parser.parse_args()
    for images in at_hand():
        logits, accuracy = _label(images, arguments.epochs)
        num_classes = len(images.class_names)
        encoding = Encoding() if num_classes < 1000 else Encoding(top_k=10, temperature=4.0)
        size = _bytes_per_row(images, logits, encoding)
        teacher = f"{images.name:16s}{num_classes:5d} classes, accuracy {accuracy:6.2%}"
        kind = "dense" if encoding.top_k is None else f"top {encoding.top_k}"
        bound = BOUNDS[num_classes]
        print(f"{teacher}, {kind:7s}{size:7.2f} bytes per row, {bound} allowed", flush=True)
        if arguments.keep:
            file = arguments.keep / f"{images.name.replace(' ', '_')}.npz"
            np.savez(file, example_ids=images.example_ids, logits=logits)


if __name__ == "__main__":
    main()
