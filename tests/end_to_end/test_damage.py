"""Damage to any file of a finished run is refused by its name, or what is read is equal."""

import os
import sys
import warnings
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError

from kd_pipeline.errors import KdPipelineError, our_cause

NUM_DAMAGES = 40
READ_BY_STAGES = (
    "images", "examples", "splits", "teacher.checkpoints", "teacher.card", "soft_targets",
    "student_kd.checkpoints", "student_baseline.checkpoints", "predictions", "metrics",
    "comparison",
)  # fmt: skip


def open_catalog(project: Path) -> Any:
    from kedro.framework.project import configure_project
    from kedro.framework.session import KedroSession

    with chdir(project):
        configure_project("kd_pipeline")
        with KedroSession.create(project, env="smoke") as session:
            return session.load_context().catalog


def content(catalog: Any, name: str) -> Any:
    """All that a stage reads of a catalog entry, to be compared by `==`."""
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.soft_targets.store import SoftTargets, check_store

    loaded = catalog.load(name)
    if isinstance(loaded, ImageSet):
        plain = ImageSet(loaded.example_ids, loaded.pixels, loaded.class_names)
        return loaded.fingerprint, plain.fingerprint
    if isinstance(loaded, pd.DataFrame):
        return loaded.to_csv(), [str(kind) for kind in loaded.dtypes]
    if isinstance(loaded, SoftTargets):
        check_store(loaded)
        return loaded.manifest
    if isinstance(loaded, list):
        return [(checkpoint.fingerprint, checkpoint.facts) for checkpoint in loaded]
    return loaded


def damage(data: bytes, number: int, generator: np.random.Generator) -> bytes:
    """Empty a file, cut it, or flip one bit of it."""
    if number < 4:
        return data[: generator.integers(len(data)) if number else 0]
    flipped = bytearray(data)
    flipped[generator.integers(len(data))] ^= 1 << generator.integers(8)
    return bytes(flipped)


@pytest.mark.long
def test_no_damaged_file_of_a_finished_run_is_believed(finished: Any, capsys: Any) -> None:
    generator, refused, harmless = np.random.default_rng(0), 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kedro's own, which pytest would turn into errors here.
        catalog = open_catalog(finished.path)
        for name in READ_BY_STAGES:
            path = Path(str(catalog.get(name)._describe()["filepath"]))
            whole = content(catalog, name)
            beside = path.with_name(f".{path.name}.crc32")
            files = [file for file in path.rglob("*") if file.is_file()] or [path, beside]
            for file in files:
                data = file.read_bytes()
                for number in range(NUM_DAMAGES):
                    file.write_bytes(damage(data, number, generator))
                    os.utime(file, ns=(number, number))  # Two writes may fall into one tick.
                    try:
                        assert content(catalog, name) == whole, f"{file} is believed"
                        harmless += 1
                    except (DatasetError, KdPipelineError) as error:
                        assert str(path) in str(our_cause(error)), f"{error} does not name {file}"
                        refused += 1
                file.write_bytes(data)
    with capsys.disabled():
        tried = f"{refused + harmless} damages tried"
        sys.stderr.write(f"\n{tried}: {refused} refused, {harmless} harmless, 0 wrong\n")
    assert refused > 10 * harmless
