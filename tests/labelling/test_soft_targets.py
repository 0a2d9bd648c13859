"""Labelling: every member and view apart, each from the pixels of that very view."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.errors import CheckpointError, DataError, ParameterError, StaleArtefactError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.labelling import soft_targets
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import SoftTargets, check_store
from kd_pipeline.views import ViewPolicy, render_views, view_parameters

POLICY = ViewPolicy(5, ({"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"}))


def member(seed: int, class_names: tuple[str, ...]) -> ModelCheckpoint:
    arguments = {"channels": [4, 8], "dropout": 0.5}
    classifier = build_untrained(
        architecture="small_cnn",
        arguments=arguments,
        preprocessing=Preprocessing((1, 8, 8), (0.5,), (0.3,)),
        num_classes=len(class_names),
        seed=seed,
    )
    return snapshot(
        classifier,
        architecture="small_cnn",
        arguments=arguments,
        class_names=class_names,
        facts={},
    )


def label(
    folder: Path,
    teacher: list[ModelCheckpoint],
    images: ImageSet,
    splits: pd.DataFrame,
    **changes: Any,
) -> SoftTargets:
    arguments: dict[str, Any] = {
        "splits_fingerprint": "s",
        "policy": POLICY,
        "num_views": 3,
        "batch_size": 7,
        "device": "cpu",
        "precision": "float32",
        "rows_per_part": 30,
    }
    ids = ids_with_role(splits, "transfer")
    return label_transfer_set(
        teacher, images, ids, parts=PartsFolder(folder), **(arguments | changes)
    )


def test_cached_logits_are_those_of_the_member_on_that_view(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    members = [member(seed, images.class_names) for seed in (0, 1)]
    made = label(tmp_path, members, images, splits)
    check_store(made)
    for teacher, checkpoint in enumerate(members):
        for part in made.parts(member=teacher):
            drawn = view_parameters(POLICY, torch.as_tensor(part.example_ids), part.view)
            pixels = render_views(images.take(part.example_ids), drawn, POLICY)
            with torch.inference_mode():
                expected = build_classifier(checkpoint)(pixels).numpy()
            np.testing.assert_allclose(part.logits, expected, rtol=2e-3, atol=2e-3)
    assert made.manifest.provenance.teacher_fingerprints == tuple(m.fingerprint for m in members)
    assert made.example_ids.tolist() == ids_with_role(splits, "transfer").tolist()


def test_a_part_labelled_alone_has_the_same_bits(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    """Batches begin with a part: whatever else is labelled in the same run does not matter."""
    teacher = [member(0, images.class_names)]
    made = label(tmp_path, teacher, images, splits)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made.manifest.parts) >= 6
    for part in made.manifest.parts[1::3]:
        (tmp_path / part.file).unlink()
    label(tmp_path, teacher, images, splits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_views_that_mix_are_mixed_from_the_whole_transfer_set(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    """A partner may lie in another part, and a student draws it from all of them."""
    policy, ids = ViewPolicy(1, ({"name": "mixup"},)), ids_with_role(splits, "transfer")
    teacher = member(0, images.class_names)
    made = label(tmp_path, [teacher], images, splits, policy=policy)
    drawn = view_parameters(policy, torch.as_tensor(ids), 2, partners=torch.as_tensor(ids))
    pixels = render_views(images.take(ids), drawn, policy, pixels_of=images.take)
    with torch.inference_mode():
        expected = build_classifier(teacher)(pixels).numpy()
    stored = np.concatenate([part.logits for part in made.parts(view=2)])
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)


def test_a_model_is_built_once_per_member_and_not_at_all_for_parts_that_are_there(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = soft_targets.open_predictor

    def spy(checkpoint: ModelCheckpoint, *arguments: Any, **rest: Any) -> Any:
        opened.append(checkpoint.fingerprint)
        return real(checkpoint, *arguments, **rest)

    monkeypatch.setattr(soft_targets, "open_predictor", spy)
    teacher = [member(seed, images.class_names) for seed in (0, 1)]
    label(tmp_path, teacher, images, splits)
    assert opened == [m.fingerprint for m in teacher]
    label(tmp_path, teacher, images, splits)
    assert len(opened) == 2


def test_progress_is_told_over_all_parts(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        made = label(tmp_path, [member(0, images.class_names)], images, splits)
    told = [event for event in heard if isinstance(event, Progress)]
    assert {(event.description, event.total) for event in told} == {
        ("label the transfer set", made.manifest.num_rows)
    }
    done = [event.done for event in told]
    assert done == sorted(done)
    assert done[-1] == made.manifest.num_rows
    assert len(set(done)) >= len(made.manifest.parts)


def test_top_k_is_cached_with_its_tail(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    teacher = [member(0, images.class_names)]
    dense = label(tmp_path / "dense", teacher, images, splits)
    made = label(tmp_path / "top", teacher, images, splits, top_k=1, temperature=2.0)
    assert made.manifest.encoding == Encoding(1, 2.0)
    for top, whole in zip(made.parts(), dense.parts(), strict=True):
        np.testing.assert_array_equal(top.logits[:, 0], whole.logits.max(axis=1))
        others = np.sort(whole.logits.astype(np.float64), axis=1)[:, :-1]
        tails = 2 * np.log(np.exp(others / 2).sum(axis=1))
        np.testing.assert_allclose(top.tail_logits, tails, rtol=2e-3, atol=2e-3)


def test_top_k_of_several_members_is_refused_before_any_is_run(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    teacher = [member(seed, images.class_names) for seed in (0, 1)]
    with pytest.raises(ParameterError, match=r"`soft_target_caching\.top_k` must be null for"):
        label(tmp_path / "b", teacher, images, splits, top_k=1, temperature=2.0)
    assert not (tmp_path / "b").exists()


def test_logits_that_float16_cannot_hold_are_refused(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    teacher = member(0, images.class_names)
    state = {name: tensor.clone() for name, tensor in teacher.state.items()}
    # The head's: only there are there three of them.
    bias = next(name for name, tensor in state.items() if tensor.shape == (3,))
    state[bias][2] = 1e6
    with pytest.raises(DataError, match=r"within ±65504.* for class 2 of example \d+ in view 0"):
        label(tmp_path, [replace(teacher, state=state)], images, splits)
    assert not list(tmp_path.glob("*.parquet"))


def label_clean(
    folder: Path, teacher: ModelCheckpoint, images: ImageSet, splits: pd.DataFrame
) -> SoftTargets:
    return label(folder, [teacher], images, splits, policy=ViewPolicy(), num_views=1)


def test_a_teacher_of_other_classes_is_refused(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"`teacher\.checkpoints` must have the images' classes"
    ):
        label_clean(tmp_path, member(0, ("x", "y", "z")), images, splits)


@pytest.mark.parametrize("what", ["images", "splits"])
def test_a_teacher_of_another_split_is_refused(
    images: ImageSet, splits: pd.DataFrame, tmp_path: Path, what: str
) -> None:
    stale = replace(member(0, images.class_names), facts={what: "older"})
    with pytest.raises(StaleArtefactError, match=f"were trained on other {what}"):
        label_clean(tmp_path, stale, images, splits)


_MEASURED = """
import sys, threading
from pathlib import Path
import numpy as np
import torch
from kd_pipeline.data.images import ImageSet
from kd_pipeline.views import ViewPolicy
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.soft_targets.parts_folder import PartsFolder

torch.set_num_threads(1)
count, folder = int(sys.argv[1]), Path(sys.argv[2])
names = tuple(map(str, range(500)))
ARGUMENTS = {"channels": [2, 4]}

class Blank:
    class_names, fingerprint = names, "i"
    def take(self, ids):
        return torch.zeros(len(ids), 1, 4, 4, dtype=torch.uint8)

model = build_untrained(architecture="small_cnn", arguments=ARGUMENTS, num_classes=500, seed=0,
                        preprocessing=Preprocessing((1, 4, 4), (0.5,), (0.3,)))
teacher = snapshot(model, architecture="small_cnn", arguments=ARGUMENTS, class_names=names,
                   facts={})

def anonymous_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

def label(count, folder):
    label_transfer_set([teacher], Blank(), np.arange(count), parts=PartsFolder(folder),
                       splits_fingerprint="s", policy=ViewPolicy(), num_views=1, batch_size=512,
                       device="cpu", precision="float32", rows_per_part=2048)

label(2048, folder / "warm")
before = anonymous_kib()
peak, over = [before], threading.Event()
def watch():
    while not over.wait(0.002):
        peak.append(anonymous_kib())
thread = threading.Thread(target=watch)
thread.start()
label(count, folder / "measured")
over.set()
thread.join()
print(max(peak))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_depends_on_the_rows_of_a_part_and_not_on_those_of_the_set(tmp_path: Path) -> None:
    """Four times the rows, of 2,000 bytes as float32: 48 MB more to hold, were they all held."""
    peaks = []
    for count in (8_192, 32_768):
        command = [sys.executable, "-c", _MEASURED, str(count), str(tmp_path / str(count))]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(ran.stdout))
    assert peaks[1] - peaks[0] < 8 * 1024, f"RssAnon in KiB: {peaks}"
