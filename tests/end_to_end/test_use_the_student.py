"""docs/how-to/use-the-student.md from a folder of images on: its commands, and ExecuTorch.

Its other code is run by tests/docs/test_use_the_student.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/how-to/use-the-student.md"
COLOURS = {"cat": (200, 90, 60), "dog": (60, 190, 80), "fox": (70, 80, 200)}
SHORT = """
teacher:
  model: {name: small_cnn, arguments: {channels: [8, 16]}}
  training: {num_epochs: 20, optimiser: {name: AdamW, arguments: {lr: 0.01}}}
"""


def block(language: str, marker: str = "") -> str:
    comment = f"<!-- {marker} -->\n" if marker else "(?<!-->\n)"
    text = PAGE.read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"{comment}^```{language}\n(.*?)^```$", text, re.M | re.S))


def make_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(30):
            pixels = np.clip(rng.normal(colour, 40, (40, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.jpg", quality=95)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_documented_commands_lead_from_images_to_files_that_name_them(fresh: Any) -> None:
    images = fresh.data / "01_raw/my_images"
    make_images(images)
    preset = fresh.path / "conf/image_folder/parameters_image_folder.yml"
    text = preset.read_text().replace("num_epochs: 60", "num_epochs: 15")
    text = text.replace("student:\n", "student:\n  num_replicates: 2\n")
    preset.write_text(text + SHORT + block("yaml", "where: preset"))
    export = fresh.data / "06_models/export/student_kd"
    for command in block("sh", "where: project").splitlines():
        fresh.after(command.partition("#")[0])
        rows = "".join(re.findall(r"^\| `.*$", PAGE.read_text(encoding="utf-8"), re.M))
        assert {path.name for path in export.iterdir()} == set(re.findall(r"`([\w.]+)`", rows))
    sizes = {file["file"]: file for file in json.loads((export / "card.json").read_text())["files"]}
    assert {"flash_bytes", "ram_bytes"} <= sizes["model.c"].keys()
    assert (fresh.data / "08_reporting/export_report.md").is_file()

    (export / "photo.jpg").write_bytes((images / "fox/0.jpg").read_bytes())
    code = block("python") + block("python", "where: executorch")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=export, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["fox", "fox"]
