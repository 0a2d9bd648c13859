"""The command that runs Kedro once per seed: what it runs, keeps and refuses. Kedro is faked."""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.resplits import main

ROOT = Path(__file__).parents[1]


class Runs:
    """Stands for Kedro: writes a comparison in which the gain grows with the seed."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.arguments: list[str] = []
        self.failing: int | None = None

    def __call__(self, arguments: Sequence[str], seed: int, project: Path) -> int:
        self.seeds.append(seed)
        self.arguments = list(arguments)
        if seed == self.failing:
            return 3
        file = project / "data/08_reporting/comparison.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(comparison(seed)))
        return 0


def comparison(seed: int) -> dict[str, Any]:
    return {
        "group": f"run {seed}",
        "env": "smoke",
        "arms": {"student_kd": {"accuracy": {"mean": 0.9}}},
        "teacher": None,
        "gains": {
            "student_kd": {"accuracy": {"mean": 0.05 + seed / 100}, "nll": {"mean": -seed / 10}}
        },
        "distilled": "student_kd",
        "distilled_over": {},
        "method": {
            "num_replicates": 2,
            "num_test_examples": 50,
            "num_training_examples": 100,
            "test_ids_fingerprint": str(seed),
            "confidence_level": 0.95,
        },
    }


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("KD_SEED", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kedro's own.
        yield


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "conf/base/mlflow.yml").write_text("enabled: false\n")
    return tmp_path


@pytest.fixture
def runs() -> Runs:
    return Runs()


def resplits(project: Path, runs: Runs, *more: str, num: int = 2) -> int:
    given = [f"--num={num}", "--env=smoke", f"--project={project}", *more]
    return main(given, run=runs)


def test_runs_each_seed_and_writes_what_they_show_together(
    project: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resplits(project, runs, "--params=student_kd.temperature=4") == 0
    assert runs.seeds == [0, 1]
    options = ["--env=smoke", "--params=student_kd.temperature=4"]
    assert runs.arguments == ["run", "--pipelines=distill", *options]
    folder = project / "data/08_reporting/resplits/smoke"
    assert json.loads((folder / "1/comparison.json").read_text())["group"] == "run 1"
    found = json.loads((folder / "resplits.json").read_text())
    assert found["gains"]["student_kd"]["accuracy"]["mean"] == pytest.approx(0.055)
    assert "+5.50 points" in (folder / "resplits.md").read_text()
    assert "+5.50 points" in (folder / "resplits.html").read_text()
    assert "+5.50 points" in capsys.readouterr().out


def test_goes_on_where_it_stopped_and_with_more_seeds(
    project: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.failing = 1
    assert resplits(project, runs) == 1
    assert "the run with seed 1 failed with status 3" in capsys.readouterr().err
    runs.failing = None
    assert resplits(project, runs) == 0
    assert resplits(project, runs, num=3) == 0
    assert runs.seeds == [0, 1, 1, 2]


def test_the_first_seed_is_the_global_one(
    project: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_SEED", "5")
    assert resplits(project, runs) == 0
    assert runs.seeds == [5, 6]


def test_kept_runs_of_other_settings_are_refused_before_any_is_run(
    project: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resplits(project, runs) == 0
    file = project / "conf/smoke/parameters_smoke.yml"
    changed = file.read_text().replace("num_replicates: 2", "num_replicates: 1")
    assert changed != file.read_text()
    file.write_text(changed)
    assert resplits(project, runs, num=3) == 1
    assert "must have the settings of now, got others: remove" in capsys.readouterr().err
    assert runs.seeds == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num=1"], "`num` must be at least 2: one split has no spread, got 1"),
        (["--pipeline=nothing"], "`pipeline` must be registered, got 'nothing'"),
        (["--pipeline=evaluation"], "`pipeline` must be a whole run, from the split to the"),
    ],
)
def test_refuses_what_cannot_be_combined(
    project: Path, runs: Runs, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resplits(project, runs, *more) == 1
    assert message in capsys.readouterr().err
    assert runs.seeds == []


def test_refuses_a_seed_that_does_not_vary(
    project: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / "conf/base/globals.yml"
    file.write_text(file.read_text().replace("${environment:KD_SEED,0}", "4"))
    assert resplits(project, runs) == 1
    assert "`transfer_split.seed` must be ${globals:seed}" in capsys.readouterr().err
    assert runs.seeds == []


@pytest.mark.parametrize("name", ["transfer_split.seed", "student.seed"])
def test_refuses_a_seed_that_is_given(
    project: Path, runs: Runs, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert resplits(project, runs, f"--params=student_kd.temperature=4,{name}=3") == 1
    assert f"`{name}` must be ${{globals:seed}}" in capsys.readouterr().err
    assert runs.seeds == []
