"""What layout, precision, a fused optimiser and torch.compile do for one training step each."""

import argparse
import statistics
from collections.abc import Callable

import torch

from bench.timing import alternate, seconds
from bench.training import LARGE_MLP, SMALL_CNN, Setting, plain_step, random_pixels
from kd_pipeline.models.settings import Model

RESNET_8 = Model(name="cifar_resnet", arguments={"depth": 8, "shortcut": "convolution"})
SETTINGS = (
    Setting("MLP 784-800-800-10", LARGE_MLP, (1, 28, 28), 256, "bfloat16", 20),
    Setting("small CNN 16-32-64, 32 px", SMALL_CNN, (3, 32, 32), 128, "bfloat16", 10),
    Setting("ResNet-8, 32 px", RESNET_8, (3, 32, 32), 128, "bfloat16", 5),
    Setting("fast CNN, 32 px", Model(name="fast_cnn"), (3, 32, 32), 128, "bfloat16", 2),
)
VARIANTS = ("as in training", "float32", "contiguous", "not fused", "compiled")
"""As the engine takes steps with `precision: auto`, and with one thing changed."""


def main(rounds: int) -> dict[str, dict[str, float]]:
    """Measure every variant, print a table, return steps a second over those of the engine."""
    table = {}
    print(f"{'':28}" + "".join(f"{name:>16}" for name in VARIANTS) + f"{'compiling, s':>14}")
    for setting in SETTINGS:
        row = measure(setting, rounds)
        table[setting.name] = row
        print(f"{setting.name:28}" + "".join(f"{row[name]:>16.2f}" for name in VARIANTS), end="")
        print(f"{row['compiling_seconds']:>14.1f}", flush=True)
    return table


def measure(setting: Setting, rounds: int) -> dict[str, float]:
    """Steps a second of each variant over those of the first, and the seconds of a first step."""
    contenders = {name: _steps(setting, name) for name in VARIANTS}
    compiling = contenders["compiled"]()
    times = alternate(contenders, rounds)
    pairs = {name: zip(times[VARIANTS[0]], times[name], strict=True) for name in VARIANTS}
    ratios = {name: statistics.median(a / b for a, b in each) for name, each in pairs.items()}
    return ratios | {"compiling_seconds": compiling}


def _steps(setting: Setting, variant: str) -> Callable[[], float]:
    classifier = setting.classifier().train()
    if variant == "contiguous":
        classifier.layout = torch.contiguous_format
        classifier.network.to(memory_format=classifier.layout)
    optimiser = torch.optim.SGD(
        classifier.parameters(), lr=0.01, momentum=0.9, fused=variant != "not fused"
    )
    precision = "float32" if variant == "float32" else setting.precision
    if variant == "compiled":
        classifier.network.compile()  # type: ignore[no-untyped-call]
    update = plain_step(classifier, optimiser, precision)
    images = random_pixels(setting.batch_size, setting.shape)
    pixels, labels = images(torch.arange(setting.batch_size)), torch.arange(setting.batch_size) % 10

    def steps() -> None:
        for _ in range(setting.steps):
            update(pixels, labels)

    return lambda: seconds(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="alternations (default 7)")
    torch.set_num_threads(1)
    main(parser.parse_args().rounds)
