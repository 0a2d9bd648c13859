"""Whose list of hops is wired: the session's, or that of conf/base."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.framework import project

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipeline_registry import register_pipelines
from kd_pipeline.pipelines.chain.hop_list import BASE_FILE, follow, hop_names
from kd_pipeline.settings import CONFIG_LOADER_ARGS, LayeredConfigLoader

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nobody_is_followed() -> Iterator[None]:
    follow(None)
    yield
    follow(None)


def hops(*names: str) -> dict[str, Any]:
    return {"chain": {"hops": [{"name": name, "model": {"name": "mlp"}} for name in names]}}


def load(conf: Path, **settings: Any) -> None:
    """Make a config loader as a session does, which then is followed."""
    LayeredConfigLoader(str(conf), **CONFIG_LOADER_ARGS, **settings)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    lists = {"base": hops("a", "b"), "local": {}, "preset": hops("c")}
    for env, parameters in lists.items():
        folder = tmp_path / env
        folder.mkdir()
        (folder / "parameters_chain.yml").write_text(yaml.safe_dump(parameters))
    return tmp_path


def test_without_a_session_the_list_is_that_of_base() -> None:
    written = yaml.safe_load((ROOT / BASE_FILE).read_text(encoding="utf-8"))["chain"]["hops"]
    assert hop_names() == tuple(hop["name"] for hop in written)


def test_the_base_list_is_that_of_the_project_one_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is written: what would only resolve inside Kedro does not matter here.
    text = "chain: {seed: '${globals:seed}', hops: [{name: x, model: '${nowhere}'}]}"
    work_in(tmp_path, text, monkeypatch)
    assert hop_names() == ("x",)


def work_in(project: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a project with this base file, and go there; no session is begun."""
    (project / BASE_FILE).parent.mkdir(parents=True)
    (project / BASE_FILE).write_text(text)
    (project / "pyproject.toml").write_text('[tool.kedro]\npackage_name = "kd_pipeline"\n')
    monkeypatch.chdir(project)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "chain:\n", "other: {}\n"])
def test_a_base_file_without_a_list_has_no_hops(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(tmp_path, text, monkeypatch)
    assert hop_names() == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("- chain\n", "conf/base/parameters_chain.yml"),
        ("chain: [a]\n", r"chain\.hops"),
        ("chain: {seed: 1}\n", r"chain\.hops"),
        ("chain: {hops: []}\n", r"chain\.hops"),
        ("chain: {hops: {name: a}}\n", r"chain\.hops"),
        ("chain: {hops: [{name: a}, b]}\n", r"chain\.hops\.1"),
        ("chain: {hops: [{model: {name: mlp}}]}\n", r"chain\.hops\.0"),
    ],
)
def test_a_base_list_that_is_none_is_refused_by_name(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(tmp_path, text, monkeypatch)
    with pytest.raises(ParameterError, match=f"`{name}` must "):
        hop_names()


@pytest.mark.parametrize(
    "written", [hops("teacher"), {"chain": {"hops": 3}}, {"chain": {"hops": []}}]
)
def test_a_list_that_is_none_is_refused_by_the_chain_alone(
    written: dict[str, Any], conf: Path
) -> None:
    """All pipelines are wired for any of them."""
    load(conf, runtime_params=written)
    pipelines = register_pipelines()
    assert len(pipelines["distill"].nodes) > 10
    (refusing,) = pipelines["chain"].nodes
    assert refusing.inputs == ["params:chain"]
    with pytest.raises(ParameterError, match=r"`chain\.hops"):
        refusing.run({"params:chain": written["chain"]})


def test_a_chain_without_a_list_is_refused_when_it_is_run(conf: Path) -> None:
    (conf / "base/parameters_chain.yml").write_text("chain:\n")
    load(conf)
    (refusing,) = register_pipelines()["chain"].nodes
    with pytest.raises(ParameterError, match=r"`chain\.hops` must be a list of hops, got None"):
        refusing.run({"params:chain": None})


def test_a_session_brings_its_own_list(conf: Path) -> None:
    load(conf, env="preset")
    assert hop_names() == ("c",)
    load(conf)
    assert hop_names() == ("a", "b")


def test_parameters_on_the_command_line_replace_the_list(conf: Path) -> None:
    load(conf, runtime_params=hops("x", "y", "z"))
    assert hop_names() == ("x", "y", "z")


def test_the_machines_own_settings_count(conf: Path) -> None:
    (conf / "local/parameters_chain.yml").write_text(yaml.safe_dump(hops("own")))
    load(conf)
    assert hop_names() == ("own",)


def test_a_project_without_a_list_has_no_hops(conf: Path) -> None:
    for env in ("base", "preset"):
        (conf / env / "parameters_chain.yml").write_text("other: {}\n")
    load(conf)
    assert hop_names() == ()


def test_a_list_that_is_none_is_refused_by_name(conf: Path) -> None:
    load(conf, runtime_params=hops("teacher"))
    with pytest.raises(ParameterError, match=r"`chain.hops.0` must be valid .*none of teacher"):
        hop_names()


def test_pipelines_of_an_earlier_session_are_wired_anew(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kedro keeps what it has loaded: a second session in one process would run the first's."""
    asked: list[str] = []
    monkeypatch.setattr(project, "PACKAGE_NAME", "kd_pipeline")
    monkeypatch.setattr(project.pipelines, "configure", asked.append)
    load(conf)
    assert asked == ["kd_pipeline.pipeline_registry"]
