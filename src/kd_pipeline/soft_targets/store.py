"""Soft targets in memory and as parquet: any parquet reader opens the files.

Columns: `example_id` (int64), `view` (int16), `teacher` (int16, the ensemble member) and `logits`
(fixed-size list of float16, before softmax, free of any temperature). Logits and not
probabilities, because re-tempering float16 probabilities costs a mean KL of 1e-3 to 2e-2 where
float16 logits cost 2e-8.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kd_pipeline.atomic import replace_folder
from kd_pipeline.errors import DataError, StaleArtefactError
from kd_pipeline.soft_targets.manifest import FORMAT, Manifest, Provenance

MANIFEST_FILE = "manifest.json"
ROWS_PER_PART = 262_144
ROWS_PER_GROUP = 8_192


@dataclass(frozen=True)
class SoftTargets:
    """Rows of teacher logits, sorted by teacher, view and example id."""

    manifest: Manifest
    example_ids: NDArray[np.int64]
    """[num_rows]"""
    views: NDArray[np.int16]
    """[num_rows]"""
    teachers: NDArray[np.int16]
    """[num_rows], position in `provenance.teacher_fingerprints`."""
    logits: NDArray[np.float16]
    """[num_rows, num_classes]"""

    def of_examples(self, example_ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """The teacher's logits for examples, in the order given.

        An ensemble's logits are averaged over its members: the geometric mean of their
        distributions, which commutes with every temperature.

        Returns:
            float16 [num_examples, num_views, num_classes].

        Raises:
            DataError: If an example has no soft target.
        """
        provenance = self.manifest.provenance
        num_members, num_views = len(provenance.teacher_fingerprints), provenance.num_views
        logits = self.logits.reshape(num_members, num_views, -1, self.logits.shape[1])
        # Every member and view holds the same ascending ids.
        ids = self.example_ids[: logits.shape[2]]
        positions = np.searchsorted(ids, example_ids).clip(max=len(ids) - 1)
        missing = example_ids[ids[positions] != example_ids]
        if len(missing):
            raise DataError(
                f"`soft_targets` have no row for {len(missing)} examples, "
                f"first {missing[:3].tolist()}"
            )
        picked = logits[:, :, positions]
        mixed = picked[0] if num_members == 1 else picked.astype(np.float32).mean(axis=0)
        return np.ascontiguousarray(mixed.swapaxes(0, 1).astype(np.float16))


def make_soft_targets(
    logits: Sequence[Sequence[NDArray[np.float32]]],
    example_ids: NDArray[np.int64],
    *,
    provenance: Provenance,
    facts: dict[str, object] | None = None,
) -> SoftTargets:
    """Gather a teacher's logits into a table of soft targets.

    Args:
        logits: float32 [num_examples, num_classes] for each member and, within it, each view.
        example_ids: int64 [num_examples], ascending.
        provenance: What the logits were made from.
        facts: What else is worth knowing; not checked.

    Raises:
        DataError: If a logit is not finite or too large for float16.
    """
    num_members, num_views, count = len(logits), len(logits[0]), len(example_ids)
    stacked = np.concatenate([view for member in logits for view in member])
    bound = float(np.finfo(np.float16).max)
    if not np.isfinite(stacked).all() or np.abs(stacked).max(initial=0.0) > bound:
        raise DataError(
            f"teacher logits must be finite and within ±{bound:.0f}, the range of float16: "
            f"got {stacked.min()} to {stacked.max()}"
        )
    return SoftTargets(
        manifest=Manifest(provenance, num_rows=len(stacked), facts=facts or {}),
        example_ids=np.tile(example_ids, num_members * num_views),
        views=np.tile(np.repeat(np.arange(num_views, dtype=np.int16), count), num_members),
        teachers=np.repeat(np.arange(num_members, dtype=np.int16), num_views * count),
        logits=stacked.astype(np.float16),
    )


def write_soft_targets(soft_targets: SoftTargets, folder: Path) -> None:
    """Write parts and then the manifest into a folder that appears whole or not at all."""
    table = _to_table(soft_targets)
    with replace_folder(folder) as temporary:
        parts = []
        for number, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_PART)):
            path = temporary / f"part-{number:05d}.parquet"
            pq.write_table(
                table.slice(start, ROWS_PER_PART),
                path,
                compression="zstd",
                row_group_size=ROWS_PER_GROUP,
                use_dictionary=["view", "teacher"],
                column_encoding={
                    "example_id": "DELTA_BINARY_PACKED",
                    "logits.list.element": "BYTE_STREAM_SPLIT",
                },
                write_page_checksum=True,
            )
            parts.append(
                {
                    "file": path.name,
                    "num_rows": min(ROWS_PER_PART, table.num_rows - start),
                    "size_bytes": path.stat().st_size,
                    "sha256": _sha256(path),
                }
            )
        manifest = replace(soft_targets.manifest, parts=tuple(parts))
        text = json.dumps(manifest.as_dict(), indent=2, allow_nan=False)
        (temporary / MANIFEST_FILE).write_text(text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read what a store was made from, without its rows.

    Raises:
        StaleArtefactError: If there is no manifest or it is not one.
    """
    try:
        return Manifest.from_dict(json.loads((folder / MANIFEST_FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StaleArtefactError(
            f"no finished soft targets in {folder} ({error!r}); "
            "make them: kedro run --pipelines=soft_target_caching"
        ) from error


def read_soft_targets(folder: Path) -> SoftTargets:
    """Read a whole store and check every part against the manifest.

    Raises:
        StaleArtefactError: If a part is missing, damaged or of another store.
    """
    manifest = read_manifest(folder)
    tables = []
    for part in manifest.parts:
        path = folder / part["file"]
        if not path.is_file():
            raise StaleArtefactError(f"`soft_targets` miss their part {path}")
        if _sha256(path) != part["sha256"]:
            raise StaleArtefactError(f"`soft_targets` part {path} is damaged: its checksum differs")
        tables.append(pq.read_table(path, page_checksum_verification=True))
    return _from_table(pa.concat_tables(tables).combine_chunks(), manifest)


def _to_table(soft_targets: SoftTargets) -> pa.Table:
    num_classes = soft_targets.logits.shape[1]
    values = pa.array(soft_targets.logits.reshape(-1), type=pa.float16())
    provenance = soft_targets.manifest.as_dict()["provenance"]
    return pa.table(
        {
            "example_id": soft_targets.example_ids,
            "view": soft_targets.views,
            "teacher": soft_targets.teachers,
            "logits": pa.FixedSizeListArray.from_arrays(values, num_classes),
        }
    ).replace_schema_metadata({FORMAT: json.dumps(provenance)})


def _from_table(table: pa.Table, manifest: Manifest) -> SoftTargets:
    num_classes = len(manifest.provenance.class_names)
    logits = table.column("logits").combine_chunks()
    if isinstance(logits, pa.ChunkedArray):
        logits = logits.chunk(0)
    return SoftTargets(
        manifest=manifest,
        example_ids=table.column("example_id").to_numpy(),
        views=table.column("view").to_numpy(),
        teachers=table.column("teacher").to_numpy(),
        logits=logits.flatten().to_numpy(zero_copy_only=False).reshape(-1, num_classes),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
