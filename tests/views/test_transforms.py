"""Every transform of the table: what it makes lies on the device of the keys and pixels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_pipeline.views import ViewPolicy, ViewRenderer
from kd_pipeline.views.blur import gaussian_weights
from kd_pipeline.views.mixing import draw_partners
from kd_pipeline.views.record import MixingTransform
from kd_pipeline.views.settings import ViewsParams
from kd_pipeline.views.stream import Stream
from kd_pipeline.views.transforms import TRANSFORMS

NOWHERE = torch.device("meta")
"""Has shapes and types without values, and refuses to compute with tensors of another device."""
NEEDED: dict[str, dict[str, Any]] = {
    "shift": {"max_pixels": 2},
    "colour_jitter": {"hue": 0.1, "contrast": 0.1},
    "mixup": {"alpha": 0.3},
}
CHOOSING = {"colour_jitter", "blur", "rand_augment"}
"""Rendered by `change_by_choice`, which counts the images of each choice: that needs values."""


def stream(num: int = 5) -> Stream:
    return Stream(torch.empty(num, dtype=torch.int64, device=NOWHERE), seed=0, position=0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_draws_and_views_stay_on_the_device(name: str) -> None:
    transform, block = TRANSFORMS[name], {"name": name, **NEEDED.get(name, {})}
    (settings,) = ViewsParams.model_validate({"transforms": [block]}).transforms
    drawn = transform.draw(stream(), settings)
    assert {(len(values), values.device) for values in drawn.values()} == {(5, NOWHERE)}
    if name in CHOOSING:
        return
    pixels = torch.empty(5, 3, 8, 9, dtype=torch.uint8, device=NOWHERE)
    if isinstance(transform, MixingTransform):
        views = transform.mix(pixels, pixels, drawn)
        assert transform.image_weight(drawn, (8, 9)).device == NOWHERE
    else:
        views = transform.render(pixels, drawn, settings)
    assert (views.shape, views.device) == (pixels.shape, NOWHERE)


def test_partners_and_kernels_stay_on_the_device() -> None:
    ids = torch.empty(7, dtype=torch.int64, device=NOWHERE)
    partners = draw_partners(stream(), ids[:5], ids)
    weights = gaussian_weights(torch.empty(5, device=NOWHERE), margin=2)
    assert (partners.device, weights.device) == (NOWHERE, NOWHERE)
    assert (partners.shape, weights.shape) == ((5,), (5, 3))


class Images:
    """Five images without pixels."""

    example_ids = torch.empty(5, dtype=torch.int64, device=NOWHERE)
    image_size = (8, 9)

    def __call__(self, positions: Tensor) -> Tensor:
        return torch.empty(len(positions), 3, 8, 9, dtype=torch.uint8, device=NOWHERE)


@pytest.mark.parametrize("views", [3, torch.tensor([0, 1, 0])])
def test_a_renderer_draws_on_the_device_of_its_images(views: Tensor | int) -> None:
    transforms = ViewsParams.model_validate({"transforms": [{"name": "cutout"}]}).transforms
    positions = torch.empty(3, dtype=torch.int64, device=NOWHERE)
    drawn = ViewRenderer(ViewPolicy(0, transforms), Images()).draw(positions, views)
    assert drawn.drawn[0]["cut"].device == drawn.render().device == NOWHERE
