"""A cache of something else is refused, saying of what."""

from dataclasses import replace

import pytest

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import (
    Manifest,
    Part,
    Provenance,
    check_provenance,
    seal,
    unseal,
)

PROVENANCE = Provenance(
    class_names=("a", "b", "c"),
    teacher_fingerprints=("t0", "t1"),
    images_fingerprint="i",
    splits_fingerprint="s",
    view_policy={"seed": 0, "transforms": [{"name": "shift", "max_pixels": 2}]},
    num_views=2,
)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_fingerprints", ("t0", "t9"), "this run's teacher"),
        ("images_fingerprint", "j", "this run's images"),
        ("splits_fingerprint", "z", "this run's splits"),
        ("view_policy", {"seed": 0, "transforms": []}, "this run's view policy"),
        ("num_views", 3, "this run's number of views"),
        ("class_names", ("a", "c", "b"), "this run's class names"),
    ],
)
def test_a_cache_of_something_else_is_refused_saying_which(
    field: str, value: object, message: str
) -> None:
    expected = vars(PROVENANCE) | {field: value}
    with pytest.raises(StaleArtefactError, match=message) as caught:
        check_provenance(PROVENANCE, **expected)
    assert str(caught.value).count("cached") == 1
    assert "--pipelines=soft_target_caching" in str(caught.value)


def test_a_matching_cache_is_accepted() -> None:
    check_provenance(PROVENANCE, **vars(replace(PROVENANCE)))


def test_the_layout_covers_every_row_once() -> None:
    manifest = Manifest(PROVENANCE, Encoding(), 7, "digest", rows_per_part=3)
    layout = manifest.layout()
    assert len(layout) == 2 * 2 * 3
    assert sum(part.num_rows for part in layout) == manifest.num_rows == 28
    rows = [row for shard in range(3) for row in manifest.rows_of(shard)]
    assert rows == list(range(7))
    assert len({part.file for part in layout}) == len(layout)


def test_names_of_parts_sort_as_the_parts_do() -> None:
    parts = [Part(m, v, s, 1) for m in (0, 10) for v in (2, 300) for s in (9, 1000)]
    assert sorted(part.file for part in parts) == [part.file for part in parts]


def test_a_seal_breaks_with_any_value() -> None:
    text = seal({"a": 1, "b": [1.5, None, "ü"]})
    assert unseal(text) == {"a": 1, "b": [1.5, None, "ü"]}
    with pytest.raises(ValueError, match="checksum differs"):
        unseal(text.replace("1.5", "1.25"))
    with pytest.raises(TypeError, match="no JSON object"):
        unseal("[]")
