"""Gathering: the right rows in the order asked, averaged when read, in memory or beside it."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.gathering import gather_targets
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets, write_soft_targets
from kd_pipeline.teacher_logits import TeacherLogits

IDS = np.array([3, 10, 77, 2**40, 2**62], dtype=np.int64)
PLENTY = 2**30


def gather(
    soft_targets: SoftTargets,
    ids: NDArray[np.int64] = IDS,
    *,
    average: SoftTargetsParams | None = None,
    temperature: float | None = 2.0,
    budget: int = PLENTY,
) -> TeacherLogits[NDArray[Any]]:
    return gather_targets(
        soft_targets,
        ids,
        average or SoftTargetsParams(),
        temperature=temperature,
        budget=MemoryBudget(budget),
    )


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., SoftTargets]
) -> SoftTargets:
    return write_store(tmp_path_factory.mktemp("kept") / "store")


@pytest.fixture(scope="module")
def top_k(kept: SoftTargets, logits: NDArray[np.float32]) -> SoftTargets:
    provenance = replace(kept.manifest.provenance, teacher_fingerprints=("t0",))
    return write_soft_targets(
        kept.folder.parent / "top",
        logits[:1],
        IDS,
        provenance=provenance,
        encoding=Encoding(2, 4.0),
        rows_per_part=2,
    )


@given(positions=st.lists(st.integers(0, 4), min_size=1), budget=st.sampled_from([0, PLENTY]))
def test_rows_are_found_by_example_and_view_whatever_the_order(
    kept: SoftTargets, logits: NDArray[np.float32], positions: list[int], budget: int
) -> None:
    found = gather(
        kept, IDS[positions], average=SoftTargetsParams(member_weights=(0.0, 1.0)), budget=budget
    )
    np.testing.assert_array_equal(found.logits, logits[1][:, positions].astype(np.float16))
    assert found.logits.dtype == np.float16
    assert found.class_ids is found.tail_logits is None


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
@pytest.mark.parametrize("temperature", [1.0, 4.0, None])
def test_members_are_averaged_as_they_are_read(
    kept: SoftTargets, logits: NDArray[np.float32], kind: Any, temperature: float | None
) -> None:
    average = SoftTargetsParams(ensemble_average=kind, member_weights=(1.0, 3.0))
    before = {path: path.read_bytes() for path in kept.folder.iterdir()}
    found = gather(kept, average=average, temperature=temperature)
    # Nothing is written and no teacher is at hand: another average costs no forward pass.
    assert {path: path.read_bytes() for path in kept.folder.iterdir()} == before
    cached = logits.astype(np.float16).astype(np.float32)
    for view in range(2):
        expected = average_logits(cached[:, view], average, temperature=temperature or 1.0)
        np.testing.assert_allclose(found.logits[view], expected, rtol=2e-3, atol=1e-3)


def test_an_average_of_vanishing_probabilities_is_kept_within_float16(
    kept: SoftTargets, tmp_path: Path
) -> None:
    """The logarithm of a probability may be twice the largest logit of float16."""
    sure = np.tile(np.array([65_504, -65_504], np.float32), (2, 1, 1, 1))
    names = {"class_names": ("a", "b"), "num_views": 1}
    provenance = replace(kept.manifest.provenance, **names)
    made = write_soft_targets(tmp_path / "sure", sure, IDS[:1], provenance=provenance)
    found = gather(made, IDS[:1], average=SoftTargetsParams(ensemble_average="arithmetic"))
    assert found.logits.tolist() == [[[0.0, -65_504.0]]]


def test_above_the_budget_the_rows_lie_in_a_file_without_a_name(kept: SoftTargets) -> None:
    size = 2 * 5 * 4 * 2
    in_memory, mapped = gather(kept, budget=size), gather(kept, budget=size - 1)
    assert not isinstance(in_memory.logits, np.memmap)
    assert isinstance(mapped.logits, np.memmap)
    np.testing.assert_array_equal(in_memory.logits, mapped.logits)


def test_a_budget_counts_logits_class_ids_and_tails(top_k: SoftTargets) -> None:
    size = 2 * 5 * (2 * 2 + 2 * 2 + 2)
    in_memory, mapped = (gather(top_k, temperature=4.0, budget=b) for b in (size, size - 1))
    assert not isinstance(in_memory.logits, np.memmap)
    assert all(isinstance(values, np.memmap) for values in vars(mapped).values())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_file_lies_where_the_user_wants_temporary_files(
    kept: SoftTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # Where Python remembers an earlier answer.
    mapped = gather(kept, budget=0)
    assert mapped.logits.size
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()
    del mapped
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [0, PLENTY])
@pytest.mark.parametrize("temperature", [4.0, None])
def test_a_top_k_store_gives_classes_and_tails(
    top_k: SoftTargets, budget: int, temperature: float | None
) -> None:
    found = gather(top_k, IDS[::-1].copy(), temperature=temperature, budget=budget)
    parts = list(top_k.parts(view=1))
    assert found.class_ids is not None
    assert found.tail_logits is not None
    assert found.class_ids.dtype == np.uint16
    assert found.logits.dtype == found.tail_logits.dtype == np.float16
    class_ids = np.concatenate([p.rows.class_ids for p in parts if p.rows.class_ids is not None])
    tails = np.concatenate([p.rows.tail_logits for p in parts if p.rows.tail_logits is not None])
    np.testing.assert_array_equal(found.class_ids[1], class_ids[::-1])
    np.testing.assert_array_equal(found.tail_logits[1], tails[::-1])
    np.testing.assert_array_equal(
        found.logits[1], np.concatenate([p.rows.logits for p in parts])[::-1]
    )


def test_a_top_k_store_read_at_another_temperature_is_refused(top_k: SoftTargets) -> None:
    with pytest.raises(ParameterError, match=r"`temperature` must be 4, which .* got 2\.0"):
        gather(top_k)


def test_averaging_several_members_of_a_top_k_store_is_refused(
    kept: SoftTargets, logits: NDArray[np.float32], tmp_path: Path
) -> None:
    made = write_soft_targets(
        tmp_path / "two",
        logits,
        IDS,
        provenance=kept.manifest.provenance,
        encoding=Encoding(2, 4.0),
    )
    with pytest.raises(ParameterError, match=r"top_k` must be null for .* averaged, got 2$"):
        gather(made, temperature=4.0)


def test_weights_of_another_teacher_are_refused(kept: SoftTargets) -> None:
    with pytest.raises(ParameterError, match=r"member_weights` must have one weight .* 2 members"):
        gather(kept, average=SoftTargetsParams(member_weights=(1.0, 1.0, 1.0)))


def test_an_example_without_soft_targets_is_named(kept: SoftTargets) -> None:
    missing = r"^`soft_targets` have no row for 4 examples, first \[4, 5, 11\]$"
    with pytest.raises(DataError, match=missing):
        gather(kept, np.array([12, 3, 11, 4, 5]))


def test_every_part_is_read_exactly_once(
    kept: SoftTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Path.read_bytes

    def counted(self: Path) -> bytes:
        read.append(self.name)
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    gather(SoftTargets(kept.folder, kept.manifest))
    assert sorted(read) == sorted(part.file for part in kept.manifest.parts)
