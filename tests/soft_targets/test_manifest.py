"""The manifest: facts, layout and checksum."""

import numpy as np

from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import (
    Manifest,
    Part,
    Provenance,
)

PROVENANCE = Provenance(
    class_names=("a", "b", "c"),
    teacher_fingerprints=("t0", "t1"),
    images_fingerprint="i",
    splits_fingerprint="s",
    view_policy={"seed": 0, "transforms": [{"name": "shift", "max_pixels": 2}]},
    num_views=2,
)


def test_facts_go_by_the_names_that_every_artefact_uses() -> None:
    assert PROVENANCE.facts() == {
        "class_names": ["a", "b", "c"],
        "teacher": ["t0", "t1"],
        "images": "i",
        "splits": "s",
        "view_policy": {"seed": 0, "transforms": [{"name": "shift", "max_pixels": 2}]},
        "num_views": 2,
    }


def test_the_layout_covers_every_row_once() -> None:
    manifest = Manifest(PROVENANCE, Encoding(), 7, "digest", rows_per_part=3)
    layout = manifest.layout()
    assert len(layout) == 2 * 2 * 3
    assert sum(part.num_rows for part in layout) == manifest.num_rows == 28
    rows = [row for shard in range(3) for row in np.arange(7)[manifest.rows_of(shard)]]
    assert rows == list(range(7))
    assert len({part.file for part in layout}) == len(layout)


def test_names_of_parts_sort_as_the_parts_do() -> None:
    parts = [Part(m, v, s, 1) for m in (0, 10) for v in (2, 300) for s in (9, 1000)]
    assert sorted(part.file for part in parts) == [part.file for part in parts]
