"""Print what rendering views costs: milliseconds per batch, and as a share of a training step.

The step is that of a small CNN at 32 px, measured in the same process in rounds that alternate
with the rendering, so that shares can be compared between machines and milliseconds cannot.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.timing import alternate, seconds
from bench.training import SETTINGS, plain_step, random_pixels
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams

SETTING = SETTINGS[-1]
ROUNDS, STEPS_DRAWN = 15, 16
"""Views are drawn for `STEPS_DRAWN` steps at once, as the training loop does."""

SINGLE: dict[str, dict[str, Any]] = {
    "shift": {"max_pixels": 4},
    "horizontal_flip": {},
    "resized_crop": {"min_scale": 0.25},
    "affine": {"max_degrees": 15.0, "max_shift_pixels": 2.0, "max_scale": 1.1},
    "colour_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grey": {"probability": 0.2},
    "blur": {},
    "cutout": {},
    "rand_augment": {},
    "mixup": {},
    "cutmix": {},
}
POLICIES = {
    "shift + flip (the usual)": ("shift", "horizontal_flip"),
    "shift + flip + cutout": ("shift", "horizontal_flip", "cutout"),
    "shift + flip + rand_augment": ("shift", "horizontal_flip", "rand_augment"),
    "shift + flip + mixup": ("shift", "horizontal_flip", "mixup"),
    "shift + flip + cutmix": ("shift", "horizontal_flip", "cutmix"),
    "resized_crop + flip": ("resized_crop", "horizontal_flip"),
    "crop + flip + jitter + grey + blur": (
        "resized_crop", "horizontal_flip", "colour_jitter", "grey", "blur",
    ),
}  # fmt: skip


def main() -> dict[str, dict[str, float]]:
    """Measure every transform and a few usual policies, and print a table; returns its rows."""
    device = resolve_device("auto")
    named = {name: (name,) for name in SINGLE} | POLICIES
    step = _training_step(device)
    measured = alternate(
        {name: partial(_beside, step, _rendering(of, device)) for name, of in named.items()}, ROUNDS
    )
    (_, side, _), batch = SETTING.shape, SETTING.batch_size
    print(f"{batch} images of {side} px on {device}, {torch.get_num_threads()} threads;")
    print("share: of a training step of small_cnn 16-32-64 on the same batch\n")
    print(f"{'views':38}{'ms':>8}{'share':>9}")
    table = {}
    for name, rounds in measured.items():
        part, share = (statistics.median(values) for values in zip(*rounds, strict=True))
        table[name] = {"seconds": part, "share": share}
        print(f"{name:38}{1000 * part:>8.2f}{share:>9.1%}")
    return table


def _beside(step: Callable[[], object], render: Callable[[], object]) -> tuple[float, float]:
    """Seconds of rendering for one step, and their share of a step measured right before."""
    whole = seconds(step)
    part = seconds(render) / STEPS_DRAWN
    return part, part / whole


def _rendering(names: tuple[str, ...], device: str) -> Callable[[], None]:
    """Draw the views of some steps at once, and render them step by step."""
    views = ViewsParams(transforms=[{"name": name, **SINGLE[name]} for name in names])
    pixels = random_pixels(SETTING.batch_size, SETTING.shape, device)
    renderer = ViewRenderer(views.policy, pixels, pixels)
    positions = torch.arange(SETTING.batch_size, device=device).expand(STEPS_DRAWN, -1)

    def render() -> None:
        drawn = renderer.draw(positions, 3)
        for step in range(STEPS_DRAWN):
            drawn.render(step)

    return render


def _training_step(device: str) -> Callable[[], object]:
    """One update as the engine makes it: mixed precision, channels last, AdamW."""
    model = SETTING.classifier().to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)
    update = plain_step(model, optimiser, resolve_precision("auto", device))
    images = random_pixels(SETTING.batch_size, SETTING.shape, device)
    positions = torch.arange(SETTING.batch_size, device=device)
    pixels = images(positions).contiguous(memory_format=model.layout)
    return lambda: update(pixels, positions % 10)


if __name__ == "__main__":
    main()
