"""A classifier fits each view to its own network: size, colours, normalisation, order."""

import torch
import torch.nn.functional as F

from kd_pipeline.models.checkpoint import build_classifier, build_untrained, snapshot
from kd_pipeline.models.classifier import Classifier, fit_pixels
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)


def identity(shape: tuple[int, int, int], mean: float = 0.0, std: float = 1.0) -> Classifier:
    statistics = (mean,) * shape[0], (std,) * shape[0]
    return Classifier(torch.nn.Identity(), Preprocessing(shape, *statistics))


def test_images_of_the_networks_own_size_are_not_touched() -> None:
    pixels = PIXELS.float()
    assert fit_pixels(pixels, (3, 8, 8)) is pixels
    scale, shift = torch.full((3, 1, 1), 1 / 0.25) / 255, torch.full((3, 1, 1), -0.5 / 0.25)
    by_hand = torch.addcmul(shift, pixels, scale)
    assert torch.equal(identity((3, 8, 8), 0.5, 0.25)(PIXELS), by_hand)


def test_shrinking_averages_and_does_not_pick_pixels() -> None:
    """Stripes whose bright pixels lie just where bilinear sampling alone takes them."""
    stripes = torch.tensor([0, 255, 255, 0, 0, 255, 255, 0], dtype=torch.uint8).expand(1, 1, 8, 8)
    seen = identity((1, 2, 2))(stripes)
    # By hand: a triangle 8 pixels wide, cut at the border, over pixels 0 to 5.
    expected = (0.875 + 0.875 + 0.125) / (0.625 + 0.875 + 0.875 + 0.625 + 0.375 + 0.125)
    torch.testing.assert_close(seen, torch.full((1, 1, 2, 2), expected))


def test_resizing_is_bilinear_and_comes_before_the_normalisation() -> None:
    seen = identity((3, 16, 16), mean=0.5, std=0.25)(PIXELS)
    resized = F.interpolate(PIXELS.float() / 255, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, (resized - 0.5) / 0.25, atol=1e-5, rtol=1e-5)


def test_a_constant_image_stays_constant_at_any_size() -> None:
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    for size in (3, 5, 16, 31):
        seen = identity((3, size, size))(flat)
        torch.testing.assert_close(seen, torch.full((2, 3, size, size), 77 / 255))


def test_bytes_and_floats_of_the_same_view_are_seen_alike() -> None:
    classifier = identity((3, 12, 12), 0.4, 0.3)
    torch.testing.assert_close(classifier(PIXELS), classifier(PIXELS.float() / 255))


def test_grey_is_repeated_for_a_network_of_colours_with_each_channels_normalisation() -> None:
    preprocessing = Preprocessing((3, 8, 8), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    seen = Classifier(torch.nn.Identity(), preprocessing)(PIXELS[:, :1])
    grey = PIXELS[:, 0].float() / 255
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), strict=True)):
        torch.testing.assert_close(seen[:, channel], (grey - mean) / std)


def test_teacher_and_student_of_other_sizes_see_the_same_view_each_in_its_own_way() -> None:
    view = PIXELS[:, :1]
    teacher, student = identity((3, 16, 16), 0.5, 0.25), identity((1, 8, 8), 0.1, 2.0)
    assert teacher(view).shape == (4, 3, 16, 16)
    torch.testing.assert_close(student(view), (view.float() / 255 - 0.1) / 2)
    back = F.interpolate(teacher(view)[:, :1] * 0.25 + 0.5, (8, 8), mode="bilinear", antialias=True)
    assert (back - view.float() / 255).abs().mean() < 0.15


def test_outputs_are_put_into_the_classes_order() -> None:
    network, preprocessing = torch.nn.Flatten(), Preprocessing((1, 1, 3), (0.0,), (1.0,))
    reordered = Classifier(network, preprocessing, class_order=(2, 0, 1))
    logits = reordered(torch.tensor([[[[0.1, 0.2, 0.3]]]]))
    torch.testing.assert_close(logits, torch.tensor([[0.3, 0.1, 0.2]]))


def test_torchvisions_networks_take_grey_images_as_built_and_as_rebuilt() -> None:
    model, grey = Model(name="squeezenet1_1"), Preprocessing((1, 32, 32), (0.3,), (0.2,))
    built = build_untrained(model, grey, num_classes=3, seed=0)
    assert built.preprocessing == Preprocessing((3, 32, 32), (0.3,) * 3, (0.2,) * 3)
    checkpoint = snapshot(built, model, class_names=("a", "b", "c"), facts={})
    pixels = PIXELS[:, :1].repeat(1, 1, 4, 4)
    with torch.inference_mode():
        expected, rebuilt = built.eval()(pixels), build_classifier(checkpoint)(pixels)
    assert torch.equal(expected, rebuilt)


class Counting(torch.nn.Module):
    """A user's own network, written for the usual memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.convolution(images)
        return seen.view(len(seen), -1)[:, :10]


def test_a_users_own_network_is_fed_in_the_usual_layout() -> None:
    """`view` fails on channels-last memory, in which the engine hands pixels over."""
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.2,) * 3)
    foreign = Classifier(Counting(), preprocessing, takes_any_layout=False)
    expected = foreign(PIXELS)
    assert foreign.layout is torch.contiguous_format
    assert torch.equal(foreign(PIXELS.contiguous(memory_format=torch.channels_last)), expected)
    known = Classifier(torch.nn.Conv2d(3, 4, 3), preprocessing)
    assert known.layout is torch.channels_last
    assert known(PIXELS).is_contiguous(memory_format=torch.channels_last)
