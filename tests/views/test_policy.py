"""Policies: what a cache's manifest holds of them."""

import json

import pytest

from kd_pipeline.errors import ParameterError
from kd_pipeline.views import ViewPolicy
from kd_pipeline.views.settings import ViewsParams


def policy(*names: str, seed: int = 0) -> ViewPolicy:
    return ViewsParams.model_validate(
        {"seed": seed, "transforms": [{"name": name} for name in names]}
    ).policy


def test_a_description_holds_all_settings_in_their_order() -> None:
    """Manifests on disk hold this; another description would make every cache stale."""
    views = ViewsParams.model_validate(
        {"seed": 3, "transforms": [{"name": "affine", "max_degrees": 8}, {"name": "cutmix"}]}
    )
    assert views.policy.description == {
        "seed": 3,
        "transforms": [
            {
                "name": "affine",
                "max_degrees": 8.0,
                "max_shift_pixels": 0.0,
                "min_scale": None,
                "max_scale": 1.0,
                "max_shear_degrees": 0.0,
            },
            {"name": "cutmix", "alpha": 1.0, "probability": 1.0},
        ],
        "rendering": 1,
    }


def test_the_clean_policy_is_its_seed() -> None:
    assert policy(seed=4).description == {"seed": 4, "transforms": []}


def test_policies_differ_in_their_descriptions() -> None:
    policies = [policy(), policy(seed=1), policy("grey", "blur"), policy("blur", "grey")]
    found = [policy.description for policy in policies]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert policy("grey", "blur").description == found[2]


def test_the_mixing_transform_is_found() -> None:
    assert policy("grey", "blur").mixing_position is None
    assert not policy("grey", "blur").mixes
    assert policy("grey", "mixup", "blur").mixing_position == 1
    assert policy("cutmix").mixes


@pytest.mark.parametrize("names", [(), ("affine", "blur"), ("rand_augment", "cutmix", "cutout")])
def test_a_policy_is_read_back_from_a_manifest(names: tuple[str, ...]) -> None:
    made = policy(*names, seed=7)
    assert ViewPolicy.from_description(json.loads(json.dumps(made.description))) == made


def test_a_policy_of_another_rendering_is_refused() -> None:
    older = policy("grey").description | {"rendering": 0}
    rule = "be 1, the rendering of this version, got 0"
    with pytest.raises(ParameterError, match=f"^`view_policy.rendering` must {rule}$"):
        ViewPolicy.from_description(older)
