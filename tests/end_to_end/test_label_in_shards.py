"""Labelling in shards by real runs: the same bytes, exit code 0, nothing twice in MLflow."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = {"soft_target_caching": {"rows_per_part": 100}}
STAGE = "kedro run --pipelines=soft_target_caching --env=smoke"
STORE = "05_model_input/soft_targets"
PAGE = Path(__file__).parents[2] / "docs/how-to/label-in-shards.md"


def contents(project: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.data / STORE).iterdir()}


def shard_of(index: int, count: int) -> dict[str, Any]:
    return {"soft_target_caching": {"rows_per_part": 100, "num_shards": count, "shard": index}}


def test_shards_end_their_runs_and_the_stage_without_them_summarises_the_store(
    finished: Any,
    run_here: Callable[..., Any],
    fetch_runs: Callable[[Any], list[Any]],
) -> None:
    """In this process; a `SystemExit` without a code is exit code 0."""
    stage = ["soft_target_caching"]
    assert run_here(finished, stage, params=ROWS, to_nodes=["cache_soft_targets"]).error is None
    expected = contents(finished)
    assert len(expected) > 5
    shutil.rmtree(finished.data / STORE)
    for summary in finished.data.glob("08_reporting/soft_target*"):
        summary.unlink()
    num_runs = len(fetch_runs(finished))
    for index in (1, 0):
        with pytest.raises(SystemExit) as ended:
            run_here(finished, stage, params=shard_of(index, 2), tracked=True)
        assert not ended.value.code
        assert (finished.data / STORE).exists() == (index == 0)
    assert contents(finished) == expected
    assert not list(finished.data.glob("08_reporting/soft_target*"))
    assert len(fetch_runs(finished)) == num_runs
    end = {"to_nodes": ["summarise_soft_targets"]}
    assert run_here(finished, stage, params=ROWS, tracked=True, **end).error is None
    assert contents(finished) == expected
    assert list(finished.data.glob("08_reporting/soft_target*"))
    assert len(fetch_runs(finished)) == num_runs + 1


def test_a_run_of_other_stages_is_no_shard(fresh: Any, run_here: Callable[..., Any]) -> None:
    error = run_here(fresh, params=shard_of(0, 2)).error
    assert "`soft_target_caching.num_shards` must be 1" in str(error)


@pytest.fixture(scope="module")
def labelled(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project whose store has several parts, labelled by one process."""
    project = finished_run.copy(tmp_path_factory.mktemp("labelled"))
    settings = project.path / "conf/base/parameters_soft_target_caching.yml"
    settings.write_text(settings.read_text().replace("rows_per_part: null", "rows_per_part: 100"))
    return project.after(STAGE)


def unlabelled(labelled: Any, folder: Path) -> Any:
    project = labelled.copy(folder)
    shutil.rmtree(project.data / STORE)
    return project


def commands(where: str) -> str:
    """A block of the page, with the preset of the tests."""
    found = re.search(rf"<!-- where: {where} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    pipeline = "--pipelines=soft_target_caching"
    return found[1].replace(pipeline, f"{pipeline} --env=smoke")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["torchrun", "batch"])
def test_the_commands_of_the_page_write_the_bytes_of_one_process(
    labelled: Any, tmp_path: Path, where: str
) -> None:
    project = unlabelled(labelled, tmp_path)
    script = tmp_path / "commands.sh"
    script.write_text(f"set -e\n{commands(where)}")
    done = project.command(f"bash {script}")
    assert done.returncode == 0, done.stderr
    assert contents(project) == contents(labelled)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_two_checkouts_with_one_data_folder_label_one_store(
    labelled: Any, another: Callable[[Path], Any], tmp_path: Path, count: int
) -> None:
    project, other = unlabelled(labelled, tmp_path), another(tmp_path / "other")
    shutil.copytree(project.path / "conf", other.path / "conf", dirs_exist_ok=True)
    other.data.rmdir()
    other.data.symlink_to(project.data)
    given = f"{STAGE} --params=soft_target_caching.num_shards={count},soft_target_caching.shard="
    checkouts = [(project, other)[index % 2] for index in range(count)]
    processes = [
        subprocess.Popen(f"{given}{index}".split(), cwd=one.path, env=one.environment)
        for index, one in enumerate(checkouts)
    ]
    assert [process.wait() for process in processes] == [0] * count
    assert contents(project) == contents(labelled)


@pytest.mark.long
def test_ranks_that_settings_contradict_are_refused_on_the_command_line(labelled: Any) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2"}
    given = "--params=soft_target_caching.num_shards=4,soft_target_caching.shard=0"
    done = labelled.command(f"{STAGE} {given}", environment=environment)
    assert done.returncode == 1
    assert "must be left out under torchrun or be its RANK, 1-of-2, got '0-of-4'" in done.stderr
