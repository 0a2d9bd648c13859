"""Soft targets through the catalog: what was saved is loaded, and damage is refused."""

from pathlib import Path

import numpy as np
import pytest
from kedro.io.core import DatasetError

from kd_pipeline.datasets.soft_targets import SoftTargetsDataset
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.store import SoftTargets, make_soft_targets

PROVENANCE = Provenance(("a", "b"), ("t",), "i", "s", {"seed": 0, "transforms": []}, 1)


def make(count: int, teacher: str = "t") -> SoftTargets:
    logits = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    provenance = Provenance(**{**vars(PROVENANCE), "teacher_fingerprints": (teacher,)})
    return make_soft_targets([[logits]], np.arange(count), provenance=provenance)


@pytest.fixture
def dataset(tmp_path: Path) -> SoftTargetsDataset:
    return SoftTargetsDataset(filepath=str(tmp_path / "soft_targets"))


def test_round_trip(dataset: SoftTargetsDataset) -> None:
    assert not dataset.exists()
    dataset.save(make(9))
    assert dataset.exists()
    read = dataset.load()
    np.testing.assert_array_equal(read.logits, make(9).logits)
    assert read.manifest.provenance == PROVENANCE


def test_a_new_cache_replaces_the_old_one_whole(dataset: SoftTargetsDataset) -> None:
    """A part of an earlier run that stays beside the new ones would be read as new."""
    dataset.save(make(9))
    dataset.save(make(4, teacher="u"))
    read = dataset.load()
    assert len(read.example_ids) == 4
    assert read.manifest.provenance.teacher_fingerprints == ("u",)


def test_a_missing_manifest_and_a_damaged_part_are_refused(
    dataset: SoftTargetsDataset, tmp_path: Path
) -> None:
    dataset.save(make(9))
    part = tmp_path / "soft_targets/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="checksum differs") as caught:
        dataset.load()
    assert isinstance(caught.value.__cause__, StaleArtefactError)
    (tmp_path / "soft_targets/manifest.json").unlink()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="kedro run --pipelines=soft_target_caching"):
        dataset.load()
