"""The block `views`: every transform that the file shows is legal, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from kd_pipeline.config import Params
from kd_pipeline.errors import ParameterError
from kd_pipeline.views.settings import Transforms, ViewsParams
from kd_pipeline.views.transforms import TRANSFORMS

SHOWN = Path(__file__).parents[2] / "conf/base/parameters_views.yml"


def shown() -> list[dict[str, Any]]:
    lines = [line.partition("- {")[2] for line in SHOWN.read_text().splitlines() if "- {" in line]
    return [yaml.safe_load("{" + line) for line in lines]


def views(*transforms: dict[str, Any], **settings: Any) -> ViewsParams:
    return ViewsParams.model_validate({"transforms": transforms, **settings})


def test_the_file_shows_every_transform_with_all_its_settings_and_defaults() -> None:
    assert [example["name"] for example in shown()] == list(TRANSFORMS)
    for example in shown():
        fields = TRANSFORMS[example["name"]].settings.model_fields
        assert list(example) == list(fields)
        for name, info in fields.items():
            if not info.is_required():
                assert example[name] == pytest.approx(info.default, abs=1e-4), (example, name)


def test_every_transform_shown_makes_a_policy() -> None:
    for example in shown():
        if example["name"] == "colour_jitter":
            example["hue"] = 0.1
        policy = views(example, num_views=3).policy
        assert type(policy.transforms[0]) is TRANSFORMS[example["name"]].settings
        assert policy.description["transforms"] == [example]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "twirl"}, "`name` must be one of shift, .*, got 'twirl'"),
        ({"max_pixels": 2}, "`name` must be one of shift, .*, got None"),
        ({"name": ["grey"]}, r"`name` must be one of shift, .*, got \['grey'\]"),
        ({"name": "shift"}, r"transforms.0.max_pixels\n  Field required"),
        ({"name": "shift", "max_pixels": 0}, "transforms.0.max_pixels"),
        ({"name": "grey", "probabilty": 0.5}, r"probabilty\n  Extra inputs are not permitted"),
        ({"name": "resized_crop", "min_scale": 0.0}, "min_scale"),
        ({"name": "resized_crop", "max_scale": 1.5}, "max_scale"),
        ({"name": "resized_crop", "min_scale": 0.5, "max_scale": 0.4}, "`min_scale` must be at"),
        ({"name": "resized_crop", "min_ratio": 2.0}, "`min_ratio` must be at most `max_ratio`"),
        ({"name": "horizontal_flip", "probability": 1.5}, "probability"),
        ({"name": "affine", "max_scale": 0.5}, "`max_scale` must be at least 1 without"),
        ({"name": "affine", "min_scale": 1.2}, "`min_scale` must be at most"),
        ({"name": "affine", "max_shear_degrees": 90}, "max_shear_degrees"),
        ({"name": "colour_jitter"}, "must be above 0"),
        ({"name": "colour_jitter", "hue": 0.6}, "hue"),
        ({"name": "colour_jitter", "contrast": -0.1}, "contrast"),
        ({"name": "grey", "probability": -0.1}, "probability"),
        ({"name": "blur", "kernel_size": 4}, "`kernel_size` must be odd, got 4"),
        ({"name": "blur", "min_sigma": 0}, "min_sigma"),
        ({"name": "blur", "min_sigma": 3}, "`min_sigma` must be at most `max_sigma`"),
        ({"name": "cutout", "min_area": 0.5}, "`min_area` must be at most `max_area`"),
        ({"name": "cutout", "max_area": 1.1}, "max_area"),
        ({"name": "rand_augment", "magnitude": 31}, "magnitude"),
        ({"name": "rand_augment", "num_ops": 0}, "num_ops"),
        ({"name": "mixup", "alpha": 0}, "alpha"),
        ({"name": "cutmix", "probability": 2}, "probability"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(transform: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        views(transform)


@pytest.mark.parametrize(
    ("entry", "message"),
    [("twirl", "`name` must be one of shift, .*, got 'twirl'"), ("grey", "valid dictionary")],
)
def test_a_bare_name_is_no_transform(entry: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewsParams.model_validate({"transforms": [entry]})


def test_settings_that_were_validated_are_taken_as_they_are() -> None:
    first = views({"name": "grey"}, {"name": "mixup"})
    assert ViewsParams(transforms=first.transforms) == first


def test_an_error_names_the_entry_and_the_setting() -> None:
    with pytest.raises(ValidationError) as caught:
        views({"name": "grey"}, {"name": "shift", "max_pixels": 0, "paddin": "zeros"})
    places = [error["loc"] for error in caught.value.errors()]
    assert places == [("transforms", 1, "max_pixels"), ("transforms", 1, "paddin")]


class Block(Params):
    """Another block that has transforms, as the teacher's."""

    transforms: Transforms = ()


@pytest.mark.parametrize("block", [ViewsParams, Block])
def test_images_are_mixed_at_most_once(block: type[Params]) -> None:
    mixing = [{"name": "mixup"}, {"name": "grey"}, {"name": "cutmix"}]
    with pytest.raises(
        ValidationError, match=r"at most one of mixup and cutmix, got \['mixup', 'cutmix'\]"
    ):
        block.model_validate({"transforms": mixing})


def test_fresh_views_cannot_be_cached() -> None:
    fresh = views({"name": "grey"}, num_views=None)
    assert fresh.num_views is None
    rule = "be a number where a cache is made or read: fresh views are not in it, got None"
    with pytest.raises(ParameterError, match=f"^`views.num_views` must {rule}$"):
        fresh.num_cached_views()
    assert views({"name": "grey"}, num_views=4).num_cached_views() == 4


@pytest.mark.parametrize("num_views", [None, 2])
def test_clean_views_are_all_alike(num_views: int | None) -> None:
    with pytest.raises(ValidationError, match="`num_views` must be 1 where `transforms` is empty"):
        views(num_views=num_views)


def test_settings_without_transforms_need_no_torch() -> None:
    code = (
        "import sys; from kd_pipeline.views.settings import ViewsParams; "
        "ViewsParams().policy.description; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
