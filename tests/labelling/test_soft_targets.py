"""Labelling: every member and view apart, each from the pixels of that very view."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import CheckpointError, DataError, ParameterError, StaleArtefactError
from kd_pipeline.events import Event, Progress, listening
from kd_pipeline.labelling import members
from kd_pipeline.labelling.members import Member
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint, build_classifier
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.imported import ImportedLogits
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.store import SoftTargets, check_store
from kd_pipeline.views import ViewRenderer
from kd_pipeline.views.settings import ViewsParams

CLEAN = ViewsParams()
VIEWS = ViewsParams(
    seed=5,
    num_views=3,
    transforms=[{"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"}],
)
MIXUP = ViewsParams(seed=1, num_views=3, transforms=[{"name": "mixup"}])
TOLERANCE = {"rtol": 2e-3, "atol": 2e-3}
"""Rounding to float16, and the sums of other batches."""

Untrained = Callable[..., ModelCheckpoint]


def label(
    folder: Path,
    data: LabelledImages,
    *teacher: Member,
    views: ViewsParams = VIEWS,
    **caching: Any,
) -> SoftTargets:
    params = SoftTargetCachingParams(batch_size=7, device="cpu", rows_per_part=30, **caching)
    return label_transfer_set(teacher, data, PartsFolder(folder), params, views)


def expected_logits(
    member: ModelCheckpoint, data: LabelledImages, views: ViewsParams, view: int
) -> NDArray[np.float32]:
    """Of the whole transfer set in one batch."""
    pixels = data.images.reader(data.ids("transfer"), device="cpu")
    renderer = ViewRenderer(views.policy, pixels, pixels)
    with torch.inference_mode():
        rendered = renderer.draw(torch.arange(len(pixels.rows)), view).render()
        return build_classifier(member)(rendered).numpy()


@pytest.mark.parametrize("views", [VIEWS, MIXUP], ids=["shift and flip", "mixup"])
def test_cached_logits_are_those_of_the_member_on_that_view(
    data: LabelledImages, untrained: Untrained, tmp_path: Path, views: ViewsParams
) -> None:
    """A partner that is mixed in may lie in another part: it is drawn from all of them."""
    teacher = [untrained(seed) for seed in (0, 1)]
    made = label(tmp_path, data, *teacher, views=views)
    check_store(made)
    assert made.example_ids.tolist() == data.ids("transfer").tolist()
    for number, member in enumerate(teacher):
        for view in range(3):
            parts = list(made.parts(member=number, view=view))
            assert len(parts) > 1
            cached = np.concatenate([part.rows.logits for part in parts])
            np.testing.assert_allclose(
                cached, expected_logits(member, data, views, view), **TOLERANCE
            )


def test_the_manifest_names_all_that_the_logits_were_made_from(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    teacher = [untrained(seed) for seed in (0, 1)]
    provenance = label(tmp_path, data, *teacher).manifest.provenance
    assert provenance.facts() == {
        **data.provenance,
        "teacher": [member.fingerprint for member in teacher],
        "view_policy": VIEWS.policy.description,
        "num_views": 3,
    }


def test_imported_logits_are_cached_as_they_are(data: LabelledImages, tmp_path: Path) -> None:
    ids = data.images.example_ids
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    imported = ImportedLogits(ids, logits, data.images.class_names)
    made = label(tmp_path, data, imported, views=CLEAN)
    cached = np.concatenate([part.rows.logits for part in made.parts()])
    np.testing.assert_array_equal(cached, imported.rows(data.ids("transfer")).astype(np.float16))
    assert made.manifest.provenance.teacher_fingerprints == (imported.fingerprint,)


def test_a_part_labelled_alone_has_the_same_bits(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    """Batches begin with a part: whatever else is labelled in the same run does not matter."""
    made = label(tmp_path, data, untrained())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made.manifest.parts) >= 6
    for part in made.manifest.parts[1::3]:
        (tmp_path / part.file).unlink()
    label(tmp_path, data, untrained())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_is_built_once_per_member_and_not_at_all_for_parts_that_are_there(
    data: LabelledImages, untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def spy(member: ModelCheckpoint) -> Any:
        built.append(member.fingerprint)
        return build_classifier(member)

    monkeypatch.setattr(members, "build_classifier", spy)
    teacher = [untrained(seed) for seed in (0, 1)]
    label(tmp_path, data, *teacher)
    assert built == [member.fingerprint for member in teacher]
    label(tmp_path, data, *teacher)
    assert len(built) == 2


def test_progress_is_emitted_over_all_parts(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    events: list[Event] = []
    with listening(events.append):
        made = label(tmp_path, data, untrained())
    progress = [event for event in events if isinstance(event, Progress)]
    assert {(event.description, event.total) for event in progress} == {
        ("label the transfer set", made.manifest.num_rows)
    }
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[-1] == made.manifest.num_rows
    assert len(set(done)) >= len(made.manifest.parts)


def test_top_k_is_cached_with_its_tail(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    dense = label(tmp_path / "dense", data, untrained())
    made = label(tmp_path / "top", data, untrained(), top_k=1, temperature=2.0)
    assert made.manifest.encoding == Encoding(1, 2.0)
    for part, whole in zip(made.parts(), dense.parts(), strict=True):
        np.testing.assert_array_equal(part.rows.logits[:, 0], whole.rows.logits.max(axis=1))
        others = np.sort(whole.rows.logits.astype(np.float64), axis=1)[:, :-1]
        tails = 2 * np.log(np.exp(others / 2).sum(axis=1))
        np.testing.assert_allclose(part.rows.tail_logits, tails, **TOLERANCE)


def test_top_k_of_several_members_is_refused_before_any_is_run(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"`soft_target_caching\.top_k` must be null for"):
        label(tmp_path / "b", data, untrained(0), untrained(1), top_k=1, temperature=2.0)
    assert not (tmp_path / "b").exists()


def test_logits_that_float16_cannot_hold_are_refused(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    teacher = untrained()
    state = {name: tensor.clone() for name, tensor in teacher.state.items()}
    # The head's: no other tensor is of three numbers.
    bias = next(name for name, tensor in state.items() if tensor.shape == (3,))
    state[bias][2] = 1e6
    with pytest.raises(DataError, match=r"within ±65504.* for class 2 of example \d+ in view 0"):
        label(tmp_path, data, replace(teacher, state=state))
    assert not list(tmp_path.glob("*.parquet"))


def test_a_teacher_of_other_classes_is_refused(
    data: LabelledImages, untrained: Untrained, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"`teacher\.checkpoints` must have the images' classes"
    ):
        label(tmp_path, data, untrained(class_names=("x", "y", "z")), views=CLEAN)


@pytest.mark.parametrize("what", ["images", "splits"])
def test_a_teacher_of_another_split_is_refused(
    data: LabelledImages, untrained: Untrained, tmp_path: Path, what: str
) -> None:
    with pytest.raises(
        StaleArtefactError, match=rf"`teacher\.checkpoints` do not match this run's {what}"
    ):
        label(tmp_path, data, untrained(0), untrained(1, **{what: "older"}), views=CLEAN)


_MEASURED = """
import sys, threading
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import build_untrained, snapshot
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.views.settings import ViewsParams

torch.set_num_threads(1)
count, folder = int(sys.argv[1]), Path(sys.argv[2])
names = tuple(map(str, range(500)))
model = Model(name="small_cnn", arguments={"channels": [2, 4]})
preprocessing = Preprocessing((1, 4, 4), (0.5,), (0.3,))
untrained = build_untrained(model, preprocessing, num_classes=500, seed=0)
teacher = snapshot(untrained, model, class_names=names, facts={})
CACHING = SoftTargetCachingParams(device="cpu", rows_per_part=2048)

def anonymous_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

def label(count, folder):
    ids = np.arange(count)
    images = ImageSet(ids, np.zeros((count, 1, 4, 4), np.uint8), names, fingerprint="i")
    splits = pd.DataFrame(
        {"example_id": ids, "role": "transfer", "use_label": False, "for_student": True}
    )
    examples = pd.DataFrame({"example_id": ids, "label": 0, "class_name": "0"})
    data = LabelledImages(images, examples, splits)
    label_transfer_set([teacher], data, PartsFolder(folder), CACHING, ViewsParams())

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
