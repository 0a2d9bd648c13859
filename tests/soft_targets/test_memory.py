"""What writing and gathering a store take in memory, measured in a process of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

_MEASURED = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.manifest import Part, Provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import plan_store

def anonymous_kib():
    pa.default_memory_pool().release_unused()
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

def peak_anonymous_kib(call):
    import threading
    peak, over = [anonymous_kib()], threading.Event()
    def watch():
        while not over.wait(0.002):
            peak.append(anonymous_kib())
    thread = threading.Thread(target=watch)
    thread.start()
    result = call()
    over.set()
    thread.join()
    return max(peak), result

count, folder = int(sys.argv[1]), Path(sys.argv[2])
ids = np.arange(count)
provenance = Provenance(tuple(map(str, range(100))), ("t",), "i", "s", {}, 1)
manifest = plan_store(
    ids, provenance=provenance, encoding=Encoding(), facts={}, rows_per_part=4096
)
def label(part, ids):
    return np.random.default_rng(part.shard).normal(size=(len(ids), 100)).astype(np.float32)
writing, store = peak_anonymous_kib(lambda: PartsFolder(folder).fill(manifest, ids, label))
def gather():
    return gather_targets(
        store, ids, SoftTargetsParams(), temperature=1.0, budget=MemoryBudget(2**20)
    )
gathering, _ = peak_anonymous_kib(gather)
print(writing, gathering)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """Four times the rows, 200 bytes each: 25 MB more to hold, but for streaming."""
    peaks = []
    for count in (40_960, 163_840):
        command = [sys.executable, "-c", _MEASURED, str(count), str(tmp_path / str(count))]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append([int(kib) for kib in ran.stdout.split()])
    grown = np.subtract(peaks[1], peaks[0])
    ids_kib = 8 * (163_840 - 40_960) / 1024
    # Ids, their order and a few copies of them are the only things that grow.
    assert (grown < 6 * ids_kib).all(), f"RssAnon grew by {grown} KiB, in all {peaks}"
