"""Checkpoints on disk: a whole list or none of it, in order, and no pickle."""

from pathlib import Path
from typing import Any

import pytest
from kedro.io.core import DatasetError

from kd_pipeline.datasets import checkpoints as module
from kd_pipeline.datasets.checkpoints import CheckpointsDataset
from kd_pipeline.models import checkpoint as models
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model


def make(seed: int) -> ModelCheckpoint:
    model = Model(name="mlp", arguments={"hidden": [3]})
    preprocessing = Preprocessing((1, 4, 4), (0.5,), (0.3,))
    classifier = build_untrained(model, preprocessing, num_classes=2, seed=seed)
    return snapshot(classifier, model, class_names=("a", "b"), facts={"replicate": seed})


@pytest.fixture
def dataset(tmp_path: Path) -> CheckpointsDataset:
    return CheckpointsDataset(filepath=str(tmp_path / "models/arm"), metadata={"layer": "student"})


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_a_round_trip_keeps_every_checkpoint_in_its_place(
    dataset: CheckpointsDataset, count: int
) -> None:
    """Twelve: as text, 10 comes before 2."""
    written = [make(seed) for seed in range(count)]
    assert not dataset.exists()
    dataset.save(written)
    assert dataset.exists()
    read = dataset.load()
    assert [c.fingerprint for c in read] == [c.fingerprint for c in written]
    assert [c.facts["replicate"] for c in read] == list(range(count))


def test_fewer_replicates_leave_no_stale_ones(dataset: CheckpointsDataset) -> None:
    dataset.save([make(seed) for seed in range(3)])
    dataset.save([make(7)])
    (only,) = dataset.load()
    assert only.fingerprint == make(7).fingerprint


def test_a_save_that_fails_keeps_the_old_list(
    dataset: CheckpointsDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.save([make(0), make(1)])
    real, written = models.write_checkpoint, []

    def fail_second(*arguments: Any) -> None:
        written.append(arguments)
        if len(written) == 2:
            raise OSError("disk full")
        real(*arguments)

    monkeypatch.setattr(models, "write_checkpoint", fail_second)
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save([make(2), make(3)])
    monkeypatch.undo()
    assert [c.facts["replicate"] for c in dataset.load()] == [0, 1]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["arm"]


def test_a_missing_folder_or_replicate_is_named(
    dataset: CheckpointsDataset, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"no complete set of checkpoints in .*models/arm"):
        dataset.load()
    dataset.save([make(0), make(1)])
    (tmp_path / "models/arm/0").rename(tmp_path / "away")
    with pytest.raises(DatasetError, match=r"found \['1'\]"):
        dataset.load()


def test_a_damaged_checkpoint_is_refused(dataset: CheckpointsDataset, tmp_path: Path) -> None:
    dataset.save([make(0)])
    weights = tmp_path / "models/arm/0/model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(DatasetError, match="is damaged: its fingerprint differs"):
        dataset.load()


def test_only_safetensors_and_json_are_written(dataset: CheckpointsDataset, tmp_path: Path) -> None:
    dataset.save([make(0)])
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert module.__file__ is not None
    assert "pickle" not in Path(module.__file__).read_text(encoding="utf-8")
