"""Every code block of the how-to pages runs, on a small cache, and gives what is on the page."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role, split_fingerprint
from kd_pipeline.datasets.images import ImageSetDataset
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.losses.distillation import SOFT_LOSSES
from kd_pipeline.losses.objective import Objective
from kd_pipeline.models.checkpoint import ModelCheckpoint, write_checkpoint
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.ensemble import average_logits
from kd_pipeline.soft_targets.manifest import Provenance
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import write_soft_targets
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.teacher_logits import TeacherLogits
from kd_pipeline.training.settings import ArmParams
from kd_pipeline.views import ViewPolicy, render
from kd_pipeline.views.settings import ViewsParams

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Code:
    """A fenced block, and what it needs by the comment right above it."""

    language: str
    marker: str
    text: str


def read(page: str) -> str:
    return (PAGES / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Code]:
    found = re.findall(
        r"(?:<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL
    )
    return [Code(language, marker, code) for marker, language, code in found]


@dataclass(frozen=True)
class Cached:
    """A project's folder with a cache, and the logits that are in it."""

    root: Path
    logits: NDArray[np.float32]
    """[members, views, examples, classes], as float16 keeps them."""
    example_ids: NDArray[np.int64]

    def softened(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / TEMPERATURE)
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


Make = Callable[..., Cached]


@pytest.fixture
def make(images: ImageSet, splits: pd.DataFrame, tmp_path: Path) -> Make:
    def make(
        encoding: Encoding, *, num_members: int = 2, num_views: int = 2, num_classes: int = 3
    ) -> Cached:
        ids = ids_with_role(splits, "transfer")
        rng = np.random.default_rng(0)
        shape = (num_members, num_views, len(ids), num_classes)
        logits = rng.normal(0, 4, shape).astype(np.float16).astype(np.float32)
        if num_classes == len(images.class_names):
            # As the classes of the pixels, so that a student can learn them.
            logits[..., np.arange(len(ids)), (ids // 2) % num_classes] += 8
            logits = logits.astype(np.float16).astype(np.float32)
        transforms = [{"name": "shift", "max_pixels": 1}] if num_views > 1 else []
        provenance = Provenance(
            class_names=tuple(f"class {index}" for index in range(num_classes)),
            teacher_fingerprints=tuple("ab"[:num_members]),
            images_fingerprint=images.fingerprint,
            splits_fingerprint=split_fingerprint(splits),
            view_policy={"seed": 0, "transforms": transforms},
            num_views=num_views,
        )
        ImageSetDataset(filepath=str(tmp_path / "data/02_intermediate/images")).save(images)
        write_soft_targets(
            tmp_path / "data/05_model_input/soft_targets",
            list(logits),
            ids,
            provenance=provenance,
            encoding=encoding,
            rows_per_part=30,
        )
        return Cached(tmp_path, logits, ids)

    return make


def run_python(
    page: str, cached: Cached, monkeypatch: pytest.MonkeyPatch, *, marker: str = ""
) -> dict[str, Any]:
    """Run a page's Python blocks one after another, as in a notebook."""
    monkeypatch.chdir(cached.root)
    names: dict[str, Any] = {}
    for code in blocks(page):
        if code.language == "python" and code.marker == marker:
            exec(compile(code.text, page, "exec"), names)
    return names


def test_every_block_is_of_a_kind_that_is_run() -> None:
    known = {
        ("python", ""), ("python", "cache: top-k"), ("sql", ""),
        ("sh", "where: teacher"), ("sh", "where: elsewhere"),
        # By test_use_the_student.py, here and in tests/end_to_end.
        ("sh", "where: project"), ("yaml", "where: preset"), ("c", "file: main.c"),
        ("sh", "where: export"), ("python", "where: executorch"), ("sh", "where: served"),
        ("python", "file: src/my_package/losses.py"), ("yaml", "where: arm"),
        ("sh", "where: sweep"), ("yaml", "where: sweep"),
        # By tests/end_to_end/test_label_in_shards.py and test_sweep_in_shards.py.
        ("sh", "where: torchrun"), ("sh", "where: batch"),
        # By tests/end_to_end/test_several_devices.py.
        ("sh", "where: training"), ("sh", "where: replicas"),
        # Of run-on-many-machines.md: by the last test here, and tests/end_to_end/test_airflow.py.
        ("sh", "where: two hosts"), ("sh", "where: slurm"), ("yaml", "where: kubernetes"),
        ("sh", "where: airflow"), ("sh", "where: server"), ("sh", "where: containers"),
        # By tests/end_to_end/test_object_storage.py, with a server and a bucket of its own.
        ("sh", "where: object storage"), ("yaml", "where: object storage"),
    }  # fmt: skip
    for page in sorted(PAGES.glob("*.md")):
        assert {(code.language, code.marker) for code in blocks(page.name)} <= known, page.name
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page.name))


def test_pandas_and_polars_give_the_soft_targets_and_the_ensemble_averages(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = make(Encoding())
    found = run_python("read-the-cache.md", cached, monkeypatch)
    flat = cached.logits.reshape(-1, 3)
    np.testing.assert_allclose(found["soft_targets"], cached.softened(flat), rtol=1e-5)
    np.testing.assert_allclose(found["probabilities"], cached.softened(flat), rtol=1e-5)
    assert found["table"]["top_class"].tolist() == [f"class {c}" for c in flat.argmax(axis=1)]
    assert found["softened"]["top_class"].to_list() == flat.argmax(axis=1).tolist()
    by_member = cached.logits.reshape(2, -1, 3)
    for kind in ("geometric", "arithmetic"):
        params = SoftTargetsParams.model_validate({"ensemble_average": kind})
        average = average_logits(by_member, params, temperature=TEMPERATURE)
        np.testing.assert_allclose(found[kind], cached.softened(average), rtol=1e-4)


def test_a_damaged_file_stops_the_page(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = make(Encoding())
    file = next(iter((cached.root / "data/05_model_input/soft_targets").glob("*.parquet")))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit, match=f"{file.name} is damaged"):
        run_python("read-the-cache.md", cached, monkeypatch)


def test_duckdb_opens_the_files_as_they_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = make(Encoding())
    monkeypatch.chdir(cached.root)
    queries = [code.text for code in blocks("read-the-cache.md") if code.language == "sql"]
    with duckdb.connect() as connection:
        tops, softened, mixed = (connection.sql(query).fetchall() for query in queries)
    views, classes = range(2), cached.logits.argmax(axis=-1)
    assert {(example, view): top for example, view, top in tops} == {
        (int(example), view): int(classes[0, view, at])
        for view in views
        for at, example in enumerate(cached.example_ids)
    }
    at_hand = {int(example): at for at, example in enumerate(cached.example_ids)}
    soft_targets = cached.softened(cached.logits)
    assert len(softened) == soft_targets[..., 0].size
    for example, view, teacher, shares in softened:
        np.testing.assert_allclose(
            shares, soft_targets[teacher, view, at_hand[example]], rtol=1e-5, atol=1e-7
        )
    mean = cached.logits.mean(axis=0)
    assert len(mixed) == mean[..., 0].size
    for example, view, logits in mixed:
        np.testing.assert_allclose(logits, mean[view, at_hand[example]], atol=1e-6)


def test_the_top_k_and_their_tail_add_up_to_the_teachers_soft_targets(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = make(Encoding(top_k=5, temperature=TEMPERATURE), num_members=1, num_classes=20)
    found = run_python("read-the-cache.md", cached, monkeypatch, marker="cache: top-k")
    whole = cached.softened(cached.logits.reshape(-1, 20))
    listed = np.take_along_axis(whole, found["class_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(found["of_top"], listed, rtol=5e-3)
    np.testing.assert_allclose(found["of_tail"], 1 - listed.sum(axis=1), rtol=5e-3)
    np.testing.assert_allclose(found["spread"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found["spread"].argmax(axis=1), whole.argmax(axis=1))


def test_a_student_trains_on_the_files_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = make(Encoding(), num_views=1)
    found = run_python("train-elsewhere.md", cached, monkeypatch)
    assert found["agreement"] > 0.8
    assert (cached.root / "student.pt").is_file()
    (script,) = [c.text for c in blocks("train-elsewhere.md") if c.language == "python"]
    assert "kd_pipeline" not in script


def test_the_script_refuses_a_cache_of_several_views(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = make(Encoding())
    with pytest.raises(SystemExit, match="clean views"):
        run_python("train-elsewhere.md", cached, monkeypatch)


def test_the_script_refuses_other_images(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = make(Encoding(), num_views=1)
    about = cached.root / "data/02_intermediate/images/images.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"fingerprint": "other"}))
    with pytest.raises(SystemExit, match="other images"):
        run_python("train-elsewhere.md", cached, monkeypatch)


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"name": "shift", "max_pixels": 2}, {"name": "horizontal_flip"}],
        [{"name": "affine", "max_degrees": 20.0}, {"name": "mixup"}],
    ],
    ids=["clean", "shift and flip", "affine and mixup"],
)
def test_a_rendered_view_has_the_logits_that_are_cached(
    data: LabelledImages,
    untrained: Callable[..., ModelCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transforms: list[dict[str, Any]],
) -> None:
    views = ViewsParams(seed=3, num_views=2 if transforms else 1, transforms=transforms)
    teacher = untrained(0)
    write_checkpoint(teacher, tmp_path / "data/06_models/teacher/0")
    ImageSetDataset(filepath=str(tmp_path / "data/02_intermediate/images")).save(data.images)
    parts = PartsFolder(tmp_path / "data/05_model_input/soft_targets")
    label_transfer_set([teacher], data, parts, SoftTargetCachingParams(device="cpu"), views)
    cached = Cached(tmp_path, np.empty(0, np.float32), data.ids("transfer"))
    found = run_python("render-a-view.md", cached, monkeypatch)
    np.testing.assert_allclose(found["logits"], found["cached"], rtol=2e-3, atol=2e-3)
    assert found["policy"] == views.policy
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.size == (256, 256)
    # The logits tell views apart.
    if transforms:
        clean = render(ViewPolicy(), found["transfer_set"], found["example_ids"], 0)
        assert np.abs(found["teacher"](clean).detach().numpy() - found["cached"]).max() > 0.05


def test_the_loss_of_ones_own_teaches_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, settings = blocks("write-a-loss.md")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "losses.py").write_text(code.text)
    monkeypatch.syspath_prepend(tmp_path)
    params = ArmParams.model_validate(yaml.safe_load(settings.text)["student_kd"])
    assert params.soft_loss.record.uses_temperature
    assert not params.soft_loss.record.needs_labels
    teacher = TeacherLogits(torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]))
    student, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, -1])
    minimised, losses = Objective(params), []
    for _ in range(200):
        terms = minimised(student, labels, teacher)
        (gradient,) = torch.autograd.grad(terms.loss, student)
        student = (student - gradient).detach().requires_grad_()
        losses.append(terms.soft_loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_every_loss_is_on_the_page_that_helps_to_choose_one() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", read("choose-a-loss.md"), re.MULTILINE)
    assert {name for name, _ in rows[:-1]} == set(SOFT_LOSSES)
    for name, cells in rows[:-1]:
        record = SOFT_LOSSES[name]
        *_, temperature, _, top_k = (cell.strip() for cell in cells.split("|"))
        assert temperature.startswith("yes" if record.uses_temperature else "none"), name
        assert (top_k == "yes") == (record.read_top_k is not None), name
        own = record.settings.model_fields.keys() - {"name", "standardise_logits"}
        for setting in own:
            value = record.settings.model_fields[setting].default
            assert f"`{setting}: {value:g}`" in cells, name


def test_the_sweep_of_the_page_is_one_that_the_stage_takes() -> None:
    """tests/end_to_end/test_sweep.py runs a sweep and its preset."""
    settings = [code.text for code in blocks("tune-fairly.md") if code.language == "yaml"]
    sweep = SweepParams.model_validate(
        {"arms": ["student_kd", "student_smoothed", "student_baseline"]}
        | yaml.safe_load("\n".join(settings))
    )
    assert "student_kd.soft_loss" in sweep.parameters
    commands = [code.text for code in blocks("tune-fairly.md") if code.language == "sh"]
    named = re.findall(r"--pipelines=(\S+)", "\n".join(commands))
    assert {name for names in named for name in names.split(",")} <= set(register_pipelines())
    changes = ",".join(re.findall(r"--params=(\S+)", "\n".join(commands)))
    assert {change.split("=")[0].split(".")[1] for change in changes.split(",")} <= set(
        SweepParams.model_fields
    )


def test_the_commands_for_many_machines_name_stages_settings_and_files() -> None:
    """Their engines are not at hand: what of them is the project's own is looked up."""
    by_marker = {code.marker.partition(": ")[2]: code for code in blocks("run-on-many-machines.md")}
    commands = "\n".join(code.text for code in by_marker.values())
    named = re.findall(r"--pipelines=(\S+)", commands)
    assert set(named) <= set(register_pipelines())
    job = yaml.safe_load(by_marker["kubernetes"].text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (typed,) = container["args"]
    changes = re.search(r"--params=(\S+)", typed)
    assert changes is not None
    given = dict(change.split("=") for change in changes[1].split(","))
    assert given.pop("soft_target_caching.shard") == "$JOB_COMPLETION_INDEX"
    assert int(given["soft_target_caching.num_shards"]) == job["spec"]["completions"]
    assert "\n" not in typed.strip()
    slurm = by_marker["slurm"].text
    assert re.findall(r"(\w+)=\$SLURM_ARRAY_TASK_COUNT,sweep\.(\w+)=\$", slurm) == [
        ("num_shards", "shard")
    ]
    assert {"num_shards", "shard"} <= set(SweepParams.model_fields)
    for path in re.findall(r"deploy/[\w.]+\.\w+|deploy/Dockerfile", commands):
        assert (PAGES.parents[1] / path).exists() or path == "deploy/.env", path
