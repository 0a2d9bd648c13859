"""CPU seconds and peak memory of each stage as the number of images grows.

    python -m bench.growth --rows 10000 50000
    python -m bench.growth --rows 2000 4000 8000 --image-size 224

Each size is a process of its own, which ingests, splits, labels and trains for one epoch. Images
are random bytes without compression in a parquet file, and the networks are small, so that what
else grows is seen. Memory is what is not backed by a file (RssAnon and RssShmem of /proc), sampled
from outside every 20 milliseconds: mapped pixels are the kernel's to drop.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_CLASSES = 10
STAGES = ("start", "ingest", "split", "label", "train")
"""start: the imports, which each later stage's memory includes."""
GROUP_BYTES = 16 * 2**20
SAMPLE_SECONDS = 0.02


def main(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each size in turn, print a table, return a row for each size and stage."""
    print(f"{given.image_size} px, budget {given.budget_mb} MiB")
    print(f"{'rows':>10} {'stage':8}{'CPU s':>9}{'us a row':>10}{'peak MiB':>10}{'wall s':>9}")
    measured = []
    for rows in given.rows:
        for row in _measure(rows, given):
            measured.append(row)
            each = row["cpu_seconds"] / rows * 1e6
            print(
                f"{rows:>10,} {row['stage']:8}{row['cpu_seconds']:>9.2f}{each:>10.1f}"
                f"{row['peak_mib']:>10.0f}{row['wall_seconds']:>9.2f}",
                flush=True,
            )
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(measured, indent=2))
    return measured


def _measure(rows: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        write_images(Path(folder, "source"), rows, given.image_size)
        command = [sys.executable, "-m", "bench.growth", "--child", folder]
        command += ["--budget-mb", str(given.budget_mb), "--rows", str(rows)]
        command += ["--image-size", str(given.image_size)]
        environment = os.environ | {"TMPDIR": folder}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            stages, peaks = _watch(process)
    if process.returncode or set(stages) != set(STAGES):
        raise RuntimeError(f"{rows} rows of {given.image_size} px ended with {process.returncode}")
    settings = {"rows": rows, "image_size": given.image_size, "budget_mib": given.budget_mb}
    return [{**settings, **stages[s], "peak_mib": peaks[s] / 1024} for s in STAGES]


def _watch(
    process: "subprocess.Popen[str]",
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """What a process prints of its stages, and its peak memory in KiB in each."""
    stages, peaks, over = {}, dict.fromkeys(STAGES, 0), threading.Event()
    current = STAGES[0]

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            peaks[current] = max(peaks[current], anonymous_kib(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for line in process.stdout or ():
            stage = json.loads(line)
            stages[stage["stage"]] = stage
            current = STAGES[min(STAGES.index(stage["stage"]) + 1, len(STAGES) - 1)]
    finally:
        over.set()
        sampler.join()
    return stages, peaks


def anonymous_kib(pid: int) -> int:
    """Memory of a process that no file backs; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return int(kib.get("RssAnon", 0)) + int(kib.get("RssShmem", 0))


def write_images(folder: Path, rows: int, image_size: int) -> None:
    """A parquet file of encoded images, as BMP: a header and random bytes."""
    folder.mkdir()
    blank = io.BytesIO()
    Image.new("RGB", (image_size, image_size)).save(blank, "BMP")
    random, header = np.random.default_rng(0), blank.getvalue()[:54]
    num_bytes = len(blank.getvalue()) - len(header)
    step = max(1, GROUP_BYTES // num_bytes)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    writing = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(folder / "train.parquet", schema, **writing) as writer:
        for start in range(0, rows, step):
            count = min(step, rows - start)
            images = [header + random.bytes(num_bytes) for _ in range(count)]
            labels = np.arange(start, start + count) % NUM_CLASSES
            writer.write_table(pa.table([images, labels], schema=schema), row_group_size=step)


def run_stages(folder: Path, budget_mb: int) -> Iterator[str]:
    """Run one stage after another, as their nodes do; yields the name of each that has ended."""
    import pandas as pd

    from kd_pipeline.config import Computing
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.data.ingest import ingest_images
    from kd_pipeline.data.settings import DataIngestParams, TransferSplitParams
    from kd_pipeline.data.splits import split_examples
    from kd_pipeline.datasets.images import ImageSetDataset
    from kd_pipeline.labelling.settings import SoftTargetCachingParams
    from kd_pipeline.labelling.soft_targets import label_transfer_set
    from kd_pipeline.memory import open_budget
    from kd_pipeline.models.checkpoint import build_untrained, snapshot
    from kd_pipeline.models.preprocessing import Preprocessing
    from kd_pipeline.models.settings import Model
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.soft_targets.parts_folder import PartsFolder
    from kd_pipeline.soft_targets.settings import SoftTargetsParams
    from kd_pipeline.training.settings import ArmParams, StudentParams
    from kd_pipeline.training.students import train_students
    from kd_pipeline.training.teacher_sources import CachedTeacher
    from kd_pipeline.views.settings import ViewsParams

    model = Model(name="mlp", arguments={"hidden": [16]}, input_size=32)
    computing: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    views = ViewsParams(num_views=2, transforms=[{"name": "horizontal_flip"}])
    yield "start"

    source = {"kind": "parquet", "root": str(folder / "source"), "train": "*.parquet"}
    catalog, table = ImageSetDataset(filepath=str(folder / "images")), folder / "examples.parquet"
    ingested = ingest_images(DataIngestParams(source=source), open_budget(budget_mb))
    catalog.save(ingested.images)
    ingested.examples.to_parquet(table)
    del ingested
    yield "ingest"

    images, examples = catalog.load(), pd.read_parquet(table)
    params = TransferSplitParams(
        test_fraction=0.1, validation_fraction=0.1, teacher={"fraction": 0.5}
    )
    data = LabelledImages(images, examples, split_examples(examples, images.class_names, params))
    yield "split"

    preprocessing = Preprocessing((3, 32, 32), (0.5,) * 3, (0.3,) * 3)
    untrained = build_untrained(model, preprocessing, num_classes=NUM_CLASSES, seed=0)
    teacher = snapshot(untrained, model, class_names=images.class_names, facts={})
    caching = SoftTargetCachingParams(**{**Computing(**computing).model_dump(), "batch_size": 512})
    cache = label_transfer_set([teacher], data, PartsFolder(folder / "cache"), caching, views)
    yield "label"

    student = StudentParams(
        num_replicates=1, model=model, training={"num_epochs": 1, "batch_size": 256, **computing}
    )
    train_students(
        data,
        student,
        ArmParams(soft_weight=1.0),
        views,
        teacher=CachedTeacher(cache, SoftTargetsParams(), [teacher.fingerprint]),
        states=StateFolder(folder / "states"),
        budget=open_budget(budget_mb),
    )
    yield "train"


@contextmanager
def _stated(stage: str) -> Iterator[None]:
    """Print what the block took, as a line of JSON."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield
    taken = {"cpu_seconds": _cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}
    print(json.dumps({"stage": stage, **taken}), flush=True)


def _cpu_seconds() -> float:
    """Of this process and those that it started."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _child(folder: Path, budget_mb: int) -> None:
    stages = run_stages(folder, budget_mb)
    for stage in STAGES:
        with _stated(stage):
            next(stages)


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels")
    parser.add_argument("--budget-mb", type=int, default=64, help="memory_budget_mb")
    parser.add_argument("--folder", type=Path, help="for scratch; needs twice the pixels' size")
    parser.add_argument("--json", type=Path, default=Path("data/08_reporting/growth.json"))
    # Of the processes that `main` starts.
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = _parse()
    if given.child is None:
        main(given)
    else:
        _child(given.child, given.budget_mb)
