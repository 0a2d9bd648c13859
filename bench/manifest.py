"""What the manifest and the listing of a store's parts cost at the size of a large store.

    python -m bench.manifest --rows 100000000 --classes 10 --views 8

The parts are empty files of the right size, and their checksums are random: everything is done that
a run does before it reads a row, and the order in which students and shards ask for parts.
"""

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.manifest import Manifest, Part, Provenance
from kd_pipeline.soft_targets.seconds import add_seconds, keep_seconds, total_seconds
from kd_pipeline.soft_targets.shards import describe_missing
from kd_pipeline.soft_targets.store import (
    MANIFEST_FILE,
    read_manifest,
    read_soft_targets,
    rows_within_budget,
    write_manifest,
)


def main(given: argparse.Namespace) -> dict[str, Any]:
    """Print a line per operation: CPU seconds and wall seconds."""
    manifest = _plan(given)
    parts = [_with_size(part, manifest) for part in manifest.layout()]
    print(
        f"{given.rows:,} rows, {given.classes} classes, {given.views} views: {len(parts):,} parts "
        f"of {manifest.rows_per_part:,} rows"
    )
    measured: dict[str, Any] = {"parts": len(parts)}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        measured[name] = [time.process_time() - cpu, time.perf_counter() - wall]
        print(f"{name:34}{measured[name][0]:9.2f} CPU s{measured[name][1]:9.2f} s", flush=True)
        return result

    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        folder = Path(root, "store")
        folder.mkdir()
        timed("make empty parts", lambda: _touch(folder, parts))
        timed("write the manifest", lambda: write_manifest(folder, manifest, parts))
        measured["manifest_bytes"] = (folder / MANIFEST_FILE).stat().st_size
        print(f"{'size of the manifest':34}{measured['manifest_bytes'] / 2**20:9.2f} MiB")
        read = timed("read and verify the manifest", lambda: read_manifest(folder))
        store = timed("open the store (list all parts)", lambda: read_soft_targets(folder))
        timed("find each part by view and shard", lambda: _find_all(read))
        timed("note the seconds of each part", lambda: _note(folder, parts))
        timed("sum the seconds", lambda: total_seconds(folder, store.manifest.parts))
        timed("deal the parts to 1,000 shards", lambda: _deal(read))
    measured["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory':34}{measured['peak_mib']:9.0f} MiB")
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2))
    return measured


def _plan(given: argparse.Namespace) -> Manifest:
    names = tuple(f"class {number}" for number in range(given.classes))
    digests = ["0" * 64] * 3
    return Manifest(
        provenance=Provenance(names, (digests[0],), *digests[1:], {"seed": 0}, given.views),
        encoding=Encoding() if given.top_k is None else Encoding(given.top_k, 4.0),
        num_examples=given.rows,
        example_ids_digest=digests[0],
        rows_per_part=given.rows_per_part or rows_within_budget(given.classes),
    )


def _with_size(part: Part, manifest: Manifest) -> Part:
    top_k = manifest.encoding.top_k
    width = 2 * len(manifest.provenance.class_names) if top_k is None else 4 * top_k + 2
    digest = hashlib.sha256(part.file.encode()).hexdigest()
    return replace(part, size_bytes=part.num_rows * width, sha256=digest)


def _touch(folder: Path, parts: list[Part]) -> None:
    for part in parts:
        with (folder / part.file).open("wb") as file:
            os.truncate(file.fileno(), part.size_bytes)


def _find_all(manifest: Manifest) -> int:
    """As a student gathers: every shard of every view."""
    shape = manifest.provenance.num_views, manifest.num_shards
    return sum(manifest.part_at[0, view, shard].num_rows for view, shard in np.ndindex(shape))


def _note(folder: Path, parts: list[Part]) -> None:
    for part in parts:
        add_seconds(folder, part, 1.0)
    keep_seconds(folder, parts)


def _deal(manifest: Manifest) -> str:
    layout = manifest.layout()
    there = [part.file for part in layout[::2]]
    return describe_missing(1000, layout, there, ())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000, help="examples")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--rows-per-part", type=int, help="as soft_target_caching.rows_per_part")
    parser.add_argument("--folder", type=Path, help="for the empty parts")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main(_parse())
