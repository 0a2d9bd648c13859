"""Print what rendering views costs: milliseconds per batch, and as a share of a training step.

The step is that of a small CNN at 32 px, measured in the same process in rounds that alternate
with the rendering, so that shares can be compared between machines and milliseconds cannot.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_pipeline.models.checkpoint import build_untrained
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.views import ViewPolicy, render_views, view_parameters

BATCH, SIDE, ROUNDS, STEPS_DRAWN = 128, 32, 15, 16
"""Views are drawn for `STEPS_DRAWN` steps at once, as the training loop does."""

SHIFT: Mapping[str, Any] = {"name": "shift", "max_pixels": 4}
FLIP: Mapping[str, Any] = {"name": "horizontal_flip"}
CROP: Mapping[str, Any] = {"name": "resized_crop", "min_scale": 0.25}
AFFINE: Mapping[str, Any] = {
    "name": "affine",
    "max_degrees": 15.0,
    "max_shift_pixels": 2.0,
    "max_scale": 1.1,
}
JITTER: Mapping[str, Any] = {
    "name": "colour_jitter",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
}
GREY: Mapping[str, Any] = {"name": "grey", "probability": 0.2}
BLUR: Mapping[str, Any] = {"name": "blur"}
CUTOUT: Mapping[str, Any] = {"name": "cutout"}
RAND_AUGMENT: Mapping[str, Any] = {"name": "rand_augment"}
MIXUP: Mapping[str, Any] = {"name": "mixup"}
CUTMIX: Mapping[str, Any] = {"name": "cutmix"}

POLICIES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "shift + flip (the usual)": (SHIFT, FLIP),
    "shift + flip + cutout": (SHIFT, FLIP, CUTOUT),
    "shift + flip + rand_augment": (SHIFT, FLIP, RAND_AUGMENT),
    "shift + flip + mixup": (SHIFT, FLIP, MIXUP),
    "shift + flip + cutmix": (SHIFT, FLIP, CUTMIX),
    "resized_crop + flip": (CROP, FLIP),
    "crop + flip + jitter + grey + blur": (CROP, FLIP, JITTER, GREY, BLUR),
}
SINGLE = (SHIFT, FLIP, CROP, AFFINE, JITTER, GREY, BLUR, CUTOUT, RAND_AUGMENT, MIXUP, CUTMIX)


def main() -> None:
    """Measure every transform and a few usual policies, and print a table."""
    device = resolve_device("auto")
    named = {transform["name"]: (transform,) for transform in SINGLE} | POLICIES
    step = _training_step(device)
    contenders = {name: _rendering(policy, device) for name, policy in named.items()}
    seconds, shares = _measure(step, contenders, device)
    print(f"{BATCH} images of {SIDE} px on {device}, {torch.get_num_threads()} threads;")
    print("share: of a training step of small_cnn 16-32-64 on the same batch\n")
    print(f"{'views':38}{'ms':>8}{'share':>9}")
    for name in contenders:
        print(f"{name:38}{1000 * seconds[name]:>8.2f}{shares[name]:>9.1%}")


def _measure(
    step: Callable[[], object], contenders: Mapping[str, Callable[[], object]], device: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each contender, and its median share of the step of the same round."""
    for contender in (step, *contenders.values()):
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            # The step beside it: a machine's speed drifts within a round of a dozen contenders.
            whole = _seconds(step, device)
            part = _seconds(contender, device) / STEPS_DRAWN
            seconds[name].append(part)
            shares[name].append(part / whole)
    medians = (
        {name: statistics.median(values) for name, values in of.items()} for of in (seconds, shares)
    )
    return next(medians), next(medians)


def _seconds(contender: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    contender()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _rendering(transforms: tuple[Mapping[str, Any], ...], device: str) -> Callable[[], None]:
    """Draw the views of some steps at once, and render them step by step."""
    policy, pixels = ViewPolicy(0, transforms), _pixels(device)
    ids = torch.arange(BATCH, device=device).repeat(STEPS_DRAWN)
    partners = torch.arange(BATCH, device=device) if policy.mixes else None

    def render() -> None:
        drawn = view_parameters(policy, ids, 3, partners=partners)
        by_step = {
            name: values.view(-1, BATCH, *values.shape[1:]) for name, values in drawn.items()
        }
        for step in range(STEPS_DRAWN):
            now = {name: values[step] for name, values in by_step.items()}
            render_views(pixels, now, policy, pixels_of=lambda ids: pixels[ids])

    return render


def _training_step(device: str) -> Callable[[], None]:
    """One update as the engine makes it: mixed precision, channels last, AdamW."""
    shape, half = (3, SIDE, SIDE), (0.5, 0.5, 0.5)
    model = build_untrained(
        architecture="small_cnn",
        arguments={"channels": [16, 32, 64]},
        preprocessing=Preprocessing(shape, half, half),
        num_classes=10,
        seed=0,
    )
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)
    pixels = _pixels(device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=device) % 10
    bfloat16 = resolve_precision("auto", device) == "bfloat16"

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(pixels).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def _pixels(device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 3, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)


if __name__ == "__main__":
    main()
