"""The manifest: facts, layout and checksum."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from kd_pipeline.errors import ParameterError
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import (
    Manifest,
    Part,
    Provenance,
    digest_of_ids,
)
from kd_pipeline.soft_targets.settings import Calibration, SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets

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


def test_the_digest_of_ids_is_that_of_their_bytes_on_any_machine() -> None:
    ids = [3, 2**40]
    content = b"".join(example_id.to_bytes(8, "little") for example_id in ids)
    assert digest_of_ids(np.array(ids)) == hashlib.sha256(content).hexdigest()


def test_a_text_that_was_not_written_so_is_refused() -> None:
    text = Manifest(PROVENANCE, Encoding(), 7, "digest", rows_per_part=3).as_text()
    assert Manifest.from_text(text).as_text() == text
    with pytest.raises(ValueError, match=r"^it is damaged: it is not as it was written$"):
        Manifest.from_text(text + " ")


def test_names_of_parts_sort_as_the_parts_do() -> None:
    parts = [Part(m, v, s, 1) for m in (0, 10) for v in (2, 300) for s in (9, 1000)]
    assert sorted(part.file for part in parts) == [part.file for part in parts]


def test_a_fitted_temperature_is_read_back_and_changes_no_part() -> None:
    """Parts hold the manifest's head: caches of the same logits stay the same files."""
    without = Manifest(PROVENANCE, Encoding(), 7, "digest", rows_per_part=3)
    fitted = Calibration({"geometric": 1.5, "arithmetic": 1.25}, (0.5, 0.5), 100)
    with_it = replace(without, calibration=fitted)
    assert with_it.head() == without.head()
    assert Manifest.from_text(with_it.as_text()).calibration == fitted
    assert "calibration" not in without.as_text()
    asked = SoftTargetsParams(teacher_calibration="temperature", ensemble_average="arithmetic")
    assert with_it.fitted_temperature(asked) == 1.25
    assert with_it.fitted_temperature(SoftTargetsParams()) is None
    with pytest.raises(ParameterError, match="must be null with a top-k cache"):
        replace(with_it, encoding=Encoding(2, 4.0)).fitted_temperature(asked)


def test_a_head_without_provenance_differs_in_what_it_lacks(store: SoftTargets) -> None:
    head = store.manifest.head()
    del head["provenance"]
    found = store.manifest.differences_from(head)
    assert found and all("manifest" in text for text in found)
