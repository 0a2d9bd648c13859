"""docs/how-to/use-the-student.md: its code names the class that the checkpoint names.

The commands that train, and ExecuTorch, are in tests/end_to_end/test_use_the_student.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.ingest import ingest_images
from kd_pipeline.data.settings import DataIngestParams, TransferSplitParams
from kd_pipeline.data.splits import split_examples
from kd_pipeline.export.jobs import AWARE, export_models
from kd_pipeline.export.publish import CARD_FILE, MODEL_CARD_FILE
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.export.targets import TARGETS
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    snapshot,
)
from kd_pipeline.models.preprocessing import measure_preprocessing
from kd_pipeline.models.settings import Model
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.tracking import fluent, serve
from kd_pipeline.training.settings import StudentParams

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "conf/image_folder/parameters_image_folder.yml"
EXPORT = ROOT / "conf/base/parameters_model_export.yml"
PAGE = (ROOT / "docs/how-to/use-the-student.md").read_text(encoding="utf-8")
COLOURS = {"cat": (210, 60, 60), "dog": (60, 210, 60), "fox": (60, 60, 210)}
GREYS = {"cat": (40,), "dog": (125,), "fox": (210,)}
CHOICE = "transfer_split.teacher.labels_per_class=all"
ALLOWED = {"numpy", "onnxruntime", "PIL"}
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {ALLOWED}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocker())
"""


def block(language: str, marker: str = "") -> str:
    """The page's blocks of a language under a marker, one after another."""
    comment = f"<!-- {marker} -->\n" if marker else "(?<!-->\n)"
    found = re.findall(rf"{comment}^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert found, (language, marker)
    return "\n".join(found)


@dataclass(frozen=True)
class Student:
    """An image folder, and a student of it with its files."""

    data: LabelledImages
    root: Path
    checkpoint: ModelCheckpoint
    export: Path

    def photos(self) -> list[tuple[Path, np.ndarray, str]]:
        """An image of each class: its file, pixels as ingested, and the checkpoint's class."""
        table = self.data.examples.groupby("class_name").first()
        pixels = self.data.images.take(table["example_id"].to_numpy())
        with torch.no_grad():
            classes = build_classifier(self.checkpoint)(pixels).argmax(dim=1)
        files = [self.root / source for source in table["source"]]
        names = [self.checkpoint.class_names[index] for index in classes.tolist()]
        return list(zip(files, pixels.numpy(), names, strict=True))


def make_images(root: Path, classes: dict[str, tuple[int, ...]]) -> None:
    """Noisy JPEGs of 24 by 20 pixels, each class about a colour of its own."""
    rng = np.random.default_rng(0)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(rng.normal(colour, 20, (20, 24, len(colour))), 0, 255)
            image = Image.fromarray(pixels.astype(np.uint8).squeeze())
            image.save(root / name / f"{index}.jpg", quality=95)


def train(data: LabelledImages) -> ModelCheckpoint:
    """A small CNN, trained on the labels of the transfer set."""
    ids = data.ids("transfer")
    pixels, labels = data.images.take(ids), data.labels_of(ids)
    model = Model(name="small_cnn", arguments={"channels": [4, 8]})
    preprocessing = measure_preprocessing([pixels])
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=0).train()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(classifier(pixels), labels).backward()
        optimiser.step()
    return snapshot(classifier, model, class_names=data.images.class_names, facts={})


@pytest.fixture(scope="module", params=[COLOURS, GREYS], ids=["colour", "grey"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    root = tmp_path_factory.mktemp("my_images")
    make_images(root, request.param)
    source = {"kind": "image_folder", "root": str(root)}
    ingested = ingest_images(DataIngestParams.model_validate({"source": source, "image_size": 16}))
    params = TransferSplitParams.model_validate({"teacher": {"fraction": 1.0}})
    images, examples = ingested.images, ingested.examples
    data = LabelledImages(images, examples, split_examples(examples, images.class_names, params))
    checkpoint, folder = train(data), tmp_path_factory.mktemp("export")
    targets = ModelExportParams(targets=("onnx", "c"))
    (made,) = export_models(data, {"student_kd": [checkpoint]}, targets, folder=folder)
    return Student(data, root, checkpoint, next(iter(made.files.values())).path.parent)


@pytest.fixture
def workplace(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the exported folder, where the page's code is run."""
    folder = shutil.copytree(student.export, tmp_path / "student_kd")
    monkeypatch.chdir(folder)
    return folder


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where only the standard library and the packages of `ALLOWED` can be imported."""
    command = [sys.executable, "-I", "-c", BLOCKER + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_python_and_c_name_the_class_of_the_checkpoint(student: Student, workplace: Path) -> None:
    Path("main.c").write_text(block("c", "file: main.c"))
    python, shell = block("python"), block("sh", "where: export")
    named = []
    for photo, pixels, class_name in student.photos():
        Path("photo.jpg").write_bytes(photo.read_bytes())
        done = run_python(python)
        assert done.returncode == 0, done.stderr
        printed, probability = done.stdout.split()
        assert printed == class_name
        assert 0.5 < float(probability) < 1
        # The very pixels that the student was trained on, not only the same class.
        assert Path("photo.raw").read_bytes() == pixels.tobytes()
        in_c = subprocess.run(["sh", "-ec", shell], capture_output=True, text=True, check=True)
        assert in_c.stdout.startswith(f"{class_name}, logit ")
        named.append(class_name)
    assert named == ["cat", "dog", "fox"]  # It has learnt them, so that no class comes by chance.


def test_the_program_in_c_ends_with_status_1_where_pixels_are_missing(
    student: Student, workplace: Path
) -> None:
    Path("main.c").write_text(block("c", "file: main.c"))
    Path("photo.raw").write_bytes(b"\0" * 5)
    assert subprocess.run(["sh", "-c", block("sh", "where: export")], check=False).returncode == 1


def test_nothing_but_three_packages_can_be_imported_there() -> None:
    for name in ("torch", "kd_pipeline", "onnx"):
        assert f"{name} is not installed here" in run_python(f"import {name}").stderr
    assert f"`pip install {' '.join(sorted(ALLOWED - {'PIL'}))} pillow`" in PAGE


@pytest.fixture
def asked(student: Student, workplace: Path) -> tuple[str, dict[str, Any]]:
    """The URL and the body that the page's command gives to curl, about the first photo."""
    Path("photo.jpg").write_bytes(student.photos()[0][0].read_bytes())
    Path("curl").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\ncat > body\n')
    Path("curl").chmod(0o755)
    path = {"PATH": f"{workplace}{os.pathsep}{os.environ['PATH']}"}
    shell = ["sh", "-ec", block("sh", "where: served")]
    subprocess.run(shell, env=os.environ | path, check=True)
    arguments = Path("arguments").read_text().splitlines()
    assert arguments[-4:] == ["-H", "Content-Type: application/json", "-d", "@-"]
    return arguments[1], json.loads(Path("body").read_text())


def test_the_served_model_answers_the_command(
    student: Student, asked: tuple[str, dict[str, Any]], workplace: Path
) -> None:
    with fluent.without_warnings():
        from kd_pipeline.tracking.serving_model import ServedStudent
    shape = student.data.images.pixels.shape[1:]
    card = {"class_names": student.checkpoint.class_names, "input_shape": shape}
    Path(CARD_FILE).write_text(json.dumps(card))
    context: Any = SimpleNamespace(
        artifacts={"onnx": str(workplace / "model.onnx"), "card": str(workplace / CARD_FILE)}
    )
    served = ServedStudent()
    served.load_context(context)
    answer = served.predict(context, pd.DataFrame(asked[1]["dataframe_records"]))
    assert answer["class_name"].tolist() == [student.photos()[0][2]]
    named = re.findall(r"`(\w+)`", PAGE[PAGE.rindex("The answer has") :])
    assert named == [*answer.columns, "predictions"]


def test_the_command_asks_where_make_serve_serves(
    asked: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(serve, "find_champion", lambda *_: SimpleNamespace(version="1"))
    monkeypatch.setattr(serve, "make_app", lambda *_: None)
    monkeypatch.setattr("uvicorn.run", lambda _, **given: taken.update(given))
    assert serve.main([]) == 0
    assert asked[0] == f"http://{taken['host']}:{taken['port']}/invocations"
    assert f"PORT ?= {taken['port']}\n" in (ROOT / "Makefile").read_text()


def test_the_commands_name_pipelines_a_preset_and_settings_that_exist() -> None:
    commands = block("sh", "where: project").splitlines()
    options = [dict(re.findall(r"--(\w+)=(\S+)", command)) for command in commands]
    assert len(options) == 2
    assert {option["pipelines"] for option in options} <= set(register_pipelines())
    assert {option["env"] for option in options} == {PRESET.parent.name}
    assert f"`{PRESET.relative_to(ROOT)}`" in PAGE
    root = yaml.safe_load(PRESET.read_text())["data_ingest"]["source"]["root"]
    assert f"`{root}/<class>/*.jpg`" in PAGE
    split, export = options[0]["params"].split(",")
    block_name, name, value = re.split(r"[.=]", export)
    assert block_name in yaml.safe_load(EXPORT.read_text())
    assert ModelExportParams.model_validate({name: value}).enabled
    assert split == options[1]["params"] == CHOICE


def test_the_settings_on_the_page_are_legal() -> None:
    chosen = yaml.safe_load(block("yaml", "where: preset"))
    params = ModelExportParams.model_validate(chosen["model_export"])
    assert params.enabled
    assert set(params.targets) == set(TARGETS)  # The table below lists the files of all.
    assert ModelExportParams().targets == ("onnx",)  # "the default is onnx alone"
    (split,) = re.findall(r"`(transfer_split: .*?)`", PAGE)
    TransferSplitParams.model_validate(yaml.safe_load(split)["transfer_split"])
    (quantisation,) = re.findall(r"`(quantisation: .*?)`", PAGE)
    own = yaml.safe_load(PRESET.read_text())["student"] | {"seed": 0}
    assert StudentParams.model_validate(own | yaml.safe_load(quantisation)).quantisation is not None
    (name,) = re.findall(r"`(registered_name: .*?)`", PAGE)
    registered = ModelExportParams.model_validate(yaml.safe_load(name)).registered_name
    assert registered == serve.MODEL_NAME  # Which `make serve` serves.


def test_the_table_names_every_file() -> None:
    made = {name for target in TARGETS.values() for name in target.files.values()}
    rows = "".join(re.findall(r"^\| `.*$", PAGE, re.M))
    assert set(re.findall(r"`([\w.]+)`", rows)) == made | {"model.h", CARD_FILE, MODEL_CARD_FILE}
    assert f"`{AWARE}`" in PAGE
