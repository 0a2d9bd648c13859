"""The table of transforms: what YAML may say is what the views know, with the same defaults."""

from typing import Annotated, get_args

from pydantic import BaseModel

from kd_pipeline.views import TRANSFORMS
from kd_pipeline.views.settings import Transform


def models() -> dict[str, type[BaseModel]]:
    union, _ = get_args(Transform)
    return {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(union)}


def test_yaml_and_views_know_the_same_transforms_settings_and_defaults() -> None:
    assert get_args(Transform)[0] is not Annotated
    assert set(models()) == set(TRANSFORMS)
    for name, kind in models().items():
        fields = {field: info for field, info in kind.model_fields.items() if field != "name"}
        required = {field for field, info in fields.items() if info.is_required()}
        defaults = {field: fields[field].default for field in fields if field not in required}
        assert required == TRANSFORMS[name].required
        assert defaults == dict(TRANSFORMS[name].defaults)
