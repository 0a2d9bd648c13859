"""Soft targets through the catalog: moved in whole, opened by a handle, and damage is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from kedro.framework.context.context import _convert_paths_to_absolute_posix
from kedro.io import DataCatalog
from kedro.io.core import DatasetError

from kd_pipeline.datasets.soft_targets import SoftTargetPartsDataset, SoftTargetsDataset
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.object_storage.store import ObjectStore
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.shared_parts import SharedParts
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets

PROVENANCE = Provenance(("a", "b"), ("t",), "i", "s", {"seed": 0, "transforms": []}, 1)
LOGITS = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
PART = "part-t000-v00000-s00000.parquet"


def make(folder: Path, count: int, teacher: str = "t") -> SoftTargets:
    provenance = Provenance(**{**vars(PROVENANCE), "teacher_fingerprints": (teacher,)})
    return write_soft_targets(
        folder, [[LOGITS[:count]]], np.arange(count), provenance=provenance, rows_per_part=5
    )


@pytest.fixture
def dataset(tmp_path: Path) -> SoftTargetsDataset:
    return SoftTargetsDataset(filepath=str(tmp_path / "soft_targets"))


def test_what_is_saved_is_moved_and_opened(dataset: SoftTargetsDataset, tmp_path: Path) -> None:
    assert not dataset.exists()
    dataset.save(make(tmp_path / "staged", 9))
    assert dataset.exists()
    assert not (tmp_path / "staged").exists()
    read = dataset.load()
    assert read.folder == tmp_path / "soft_targets"
    stored = np.concatenate([part.rows.logits for part in read.parts()])
    np.testing.assert_array_equal(stored, LOGITS.astype(np.float16))
    assert read.manifest.provenance == PROVENANCE


def test_a_new_cache_replaces_the_old_one_whole(
    dataset: SoftTargetsDataset, tmp_path: Path
) -> None:
    """A part of an earlier run that stays beside the new ones would be read as new."""
    dataset.save(make(tmp_path / "staged", 9))
    dataset.save(make(tmp_path / "staged", 4, teacher="u"))
    read = dataset.load()
    assert len(read.example_ids) == 4
    assert read.manifest.provenance.teacher_fingerprints == ("u",)
    assert sorted(path.name for path in read.folder.iterdir()) == ["manifest.json", PART]


def test_saving_what_is_there_already_checks_and_keeps_it(
    dataset: SoftTargetsDataset, tmp_path: Path
) -> None:
    dataset.save(make(tmp_path / "staged", 9))
    dataset.save(dataset.load())
    assert len(dataset.load().example_ids) == 9
    here = dataset.load()
    (here.folder / PART).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{PART} is damaged"):
        dataset.save(here)


def test_a_missing_manifest_and_a_damaged_part_are_refused(
    dataset: SoftTargetsDataset, tmp_path: Path
) -> None:
    dataset.save(make(tmp_path / "staged", 9))
    part = tmp_path / "soft_targets" / PART
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=f"{PART} is damaged") as caught:
        dataset.load()
    assert isinstance(caught.value.__cause__, StaleArtefactError)
    (tmp_path / "soft_targets/manifest.json").unlink()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="kedro run --pipelines=soft_target_caching"):
        dataset.load()


def test_parts_are_handed_out_and_never_saved(tmp_path: Path) -> None:
    staging, finished = tmp_path / ".interrupted/soft_targets", tmp_path / "soft_targets"
    dataset = SoftTargetPartsDataset(filepath=str(staging), finished={"filepath": str(finished)})
    folder = dataset.load()
    assert (folder.folder, folder.finished) == (staging, finished)
    assert not staging.exists()
    with pytest.raises(DatasetError, match="not allowed"):
        dataset.save(None)


def test_a_broken_store_does_not_replace_a_good_one(
    dataset: SoftTargetsDataset, tmp_path: Path
) -> None:
    dataset.save(make(tmp_path / "staged", 9))
    broken = make(tmp_path / "staged", 4, teacher="u")
    (tmp_path / "staged" / PART).unlink()
    with pytest.raises(DatasetError, match=f"{PART} is missing"):
        dataset.save(broken)
    assert dataset.load().manifest.provenance == PROVENANCE


CATALOGS = Path(__file__).parents[2] / "conf/base"


def test_the_finished_store_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run from a subfolder would: Kedro makes paths absolute by the names of their keys."""
    text = (CATALOGS / "catalog_soft_target_caching.yml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    absolute = _convert_paths_to_absolute_posix(Path("/project"), yaml.safe_load(text))
    catalog = DataCatalog.from_config(absolute)
    parts, store = catalog.get("soft_target_parts"), catalog.get("soft_targets")
    assert isinstance(parts, SoftTargetPartsDataset)
    assert isinstance(store, SoftTargetsDataset)
    assert str(parts.load().finished) == store._describe()["filepath"]
    assert str(parts.load().finished).startswith("/project/data/")


def test_parts_are_shared_where_their_folder_is_mirrored(tmp_path: Path) -> None:
    folders = {"filepath": str(tmp_path / "parts"), "finished": {"filepath": str(tmp_path / "x")}}
    dataset = SoftTargetPartsDataset(**folders)
    assert dataset.load().shared is None
    dataset.mirror = Mirror(tmp_path, ObjectStore(None, "s3://bucket/x"))
    assert dataset.load().shared == SharedParts(dataset.mirror, tmp_path / "parts", tmp_path / "x")
