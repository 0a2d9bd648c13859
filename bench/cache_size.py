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

from kd_pipeline.data.conversion import image_to_pixels
from kd_pipeline.data.sources_image_folder import list_image_folder
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import write_soft_targets

NUM_ROWS = 50_000
NUM_TRAINED_ON = 30_000
BOUNDS = {10: 22, 100: 200, 1000: 35}
"""Bytes per row that a store of so many classes may take; of 1000 only the top 10 are kept."""


@dataclass(frozen=True)
class Labelled:
    """Images with labels, and what a teacher says of them."""

    name: str
    example_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    logits: NDArray[np.float32]
    accuracy: float


def teachers(num_epochs: int) -> Iterator[Labelled]:
    """Train a teacher on each data set at hand."""
    if root := os.environ.get("CIFAR10_ROOT"):
        listing = list_image_folder(root)
        rows = np.flatnonzero(listing.partitions == "train")[:NUM_ROWS]
        pixels = np.stack(
            [
                image_to_pixels(listing.reader(listing.keys[row]), colour="rgb", image_size=None)
                for row in rows
            ]
        )
        ids, labels = listing.example_ids[rows], listing.labels[rows]
        yield _label("CIFAR-10 folder", ids, pixels, labels, listing.class_names, num_epochs)
    if root := os.environ.get("MNIST_ROOT"):
        from torchvision.datasets import MNIST

        mnist = MNIST(root)
        digits, labels = mnist.data[:, None].numpy(), mnist.targets.numpy()
        for num_digits in (1, 2, 3):
            pixels, numbers = _side_by_side(digits, labels, num_digits)
            names = tuple(f"{number:0{num_digits}d}" for number in range(10**num_digits))
            ids = np.arange(NUM_ROWS)
            yield _label(f"MNIST x {num_digits}", ids, pixels, numbers, names, num_epochs)


def _side_by_side(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], num_digits: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Numbers of several digits: images [n, 1, 28, 28 * num_digits], and what they read."""
    drawn = np.random.default_rng(0).integers(0, len(digits), (NUM_ROWS, num_digits))
    if num_digits == 1:
        drawn = np.arange(NUM_ROWS)[:, None]
    pixels = np.concatenate([digits[column] for column in drawn.T], axis=3)
    numbers = (labels[drawn] * 10 ** np.arange(num_digits)[::-1]).sum(axis=1)
    return pixels, numbers


def _label(
    name: str,
    ids: NDArray[np.int64],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    num_epochs: int,
) -> Labelled:
    images, truth = torch.from_numpy(pixels), torch.from_numpy(labels)
    network = _train(images[:NUM_TRAINED_ON], truth[:NUM_TRAINED_ON], len(class_names), num_epochs)
    with torch.inference_mode():
        logits = torch.cat([network(_scaled(batch)) for batch in images.split(512)])
    held_out = logits[NUM_TRAINED_ON:].argmax(dim=1) == truth[NUM_TRAINED_ON:]
    accuracy = float(held_out.float().mean())
    return Labelled(name, ids, class_names, logits.numpy(), accuracy)


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


def measure(labelled: Labelled) -> str:
    """Write a store and say how many bytes its folder takes per row."""
    num_classes = len(labelled.class_names)
    encoding = Encoding() if num_classes < 1000 else Encoding(top_k=10, temperature=4.0)
    policy = {"seed": 0, "transforms": []}
    digests = ["0" * 64] * 3
    provenance = Provenance(labelled.class_names, (digests[0],), *digests[1:], policy, 1)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        write_soft_targets(
            store,
            [[labelled.logits]],
            labelled.example_ids,
            provenance=provenance,
            encoding=encoding,
        )
        size = sum(path.stat().st_size for path in store.iterdir())
    kind = "dense" if encoding.top_k is None else f"top {encoding.top_k}"
    teacher = f"{labelled.name:16s}{num_classes:5d} classes, accuracy {labelled.accuracy:6.2%}"
    bytes_per_row = size / len(labelled.example_ids)
    return f"{teacher}, {kind:7s}{bytes_per_row:7.2f} bytes per row, {BOUNDS[num_classes]} allowed"


def main() -> None:
    """Print a line per data set at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="to train each teacher for")
    parser.add_argument("--keep", type=Path, help="a folder in which to keep the logits as .npz")
    arguments = parser.parse_args()
    for labelled in teachers(arguments.epochs):
        print(measure(labelled), flush=True)
        if arguments.keep:
            name = labelled.name.replace(" ", "_")
            ids, logits = labelled.example_ids, labelled.logits
            np.savez(arguments.keep / f"{name}.npz", example_ids=ids, logits=logits)


if __name__ == "__main__":
    main()
