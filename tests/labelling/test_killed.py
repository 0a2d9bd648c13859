"""kill -9 while the teacher labels: run again, it ends with the same manifest every time."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.datasets.soft_targets import SoftTargetPartsDataset, SoftTargetsDataset
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_shard, label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.shards import Shard
from kd_pipeline.soft_targets.store import check_store, read_soft_targets
from kd_pipeline.views.settings import ViewsParams

NUM_KILLS = 30
NUM_SHARDS = 4
CACHING = SoftTargetCachingParams(batch_size=4, device="cpu", rows_per_part=5)
VIEWS = ViewsParams(seed=5, num_views=3, transforms=[{"name": "shift", "max_pixels": 2}])


@pytest.fixture
def teacher(untrained: Callable[..., ModelCheckpoint]) -> list[ModelCheckpoint]:
    return [untrained(seed) for seed in (0, 1)]


class Caching:
    """What the stage does, in a process of its own that can be killed."""

    def __init__(self, folder: Path, teacher: list[ModelCheckpoint], data: LabelledImages) -> None:
        self.folder, self.teacher, self.data = folder, teacher, data

    def run(self, shard: Shard | None = None) -> None:
        """Label two members' three views in parts of five rows, and put the store in place."""
        paths: dict[str, Any] = {
            "filepath": str(self.folder / ".interrupted/soft_targets"),
            "finished": {"filepath": str(self.folder / "soft_targets")},
        }
        parts = SoftTargetPartsDataset(**paths).load()
        if shard is not None:
            label_shard(shard, self.teacher, self.data, parts, CACHING, VIEWS)
            return
        made = label_transfer_set(self.teacher, self.data, parts, CACHING, VIEWS)
        SoftTargetsDataset(**paths["finished"]).save(made)

    def start(self, shard: Shard | None = None) -> int:
        """Run in a child, which shares nothing with its siblings; gives its id."""
        child = os.fork()
        if child == 0:
            try:
                self.run(shard)
                os._exit(0)
            finally:  # A child must never come back into pytest.
                os._exit(1)
        return child

    def seconds_of_whole_run(self) -> float:
        """How long a child takes that nothing interrupts."""
        started = time.monotonic()
        _, status = os.waitpid(self.start(), 0)
        assert status == 0
        return time.monotonic() - started

    def is_killed_after(self, seconds: float) -> bool:
        """Whether the child was killed before it was done."""
        child = self.start()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise RuntimeError("caching failed by itself")
        return os.WIFSIGNALED(status)

    def digest(self) -> str:
        """Of the finished store's manifest, once everything in it has been read."""
        check_store(read_soft_targets(self.folder / "soft_targets"))
        return hashlib.sha256((self.folder / "soft_targets/manifest.json").read_bytes()).hexdigest()


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: each start-up would take seconds")
# Nothing else runs in this process: one thread is what a forked child can rely on.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_thirty_random_instants_it_ends_with_the_same_manifest(
    tmp_path: Path, teacher: list[ModelCheckpoint], data: LabelledImages
) -> None:
    torch.set_num_threads(1)
    caching = Caching(tmp_path / "unbroken", teacher, data)
    whole = caching.seconds_of_whole_run()
    expected, instants = caching.digest(), random.Random(0)
    caching.folder = tmp_path / "killed"
    kills = rounds = 0
    while kills < NUM_KILLS:
        # From the first byte to the renames at the end, and again on what the last one left.
        while caching.is_killed_after(instants.uniform(0, whole)):
            kills += 1
        assert caching.digest() == expected
        rounds += 1
        if rounds % 2:
            # Every other time begin again beside the finished store, with one part of it gone.
            parts = sorted((caching.folder / "soft_targets").glob("*.parquet"))
            for part in instants.sample(parts, len(parts) // 2):
                part.unlink()
        else:
            shutil.rmtree(caching.folder)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: each start-up would take seconds")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.timeout(900)
def test_four_shards_of_which_one_is_killed_and_run_again_end_with_the_same_manifest(
    tmp_path: Path, teacher: list[ModelCheckpoint], data: LabelledImages
) -> None:
    torch.set_num_threads(1)
    caching = Caching(tmp_path / "unbroken", teacher, data)
    whole = caching.seconds_of_whole_run()
    expected, instants = caching.digest(), random.Random(0)
    caching.folder = tmp_path / "shards"
    kills = 0
    while kills < NUM_KILLS:
        shards = [Shard(index, NUM_SHARDS) for index in range(NUM_SHARDS)]
        children = {caching.start(shard): shard for shard in shards}
        victim = instants.choice(list(children))
        time.sleep(instants.uniform(0, whole))
        os.kill(victim, signal.SIGKILL)
        statuses = {child: os.waitpid(child, 0)[1] for child in children}
        assert {status for child, status in statuses.items() if child != victim} == {0}
        if statuses[victim] == signal.SIGKILL:
            kills += 1
            _, status = os.waitpid(caching.start(children[victim]), 0)
            assert status == 0
        assert caching.digest() == expected
        shutil.rmtree(caching.folder)
