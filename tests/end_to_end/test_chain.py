"""A chain from its command line: one list in the parameters is the list of pipelines."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import yaml

from kd_pipeline.errors import KdPipelineError, ParameterError, StaleArtefactError

Run = Callable[..., Any]

ROLES = ["teacher", "middle", "small", "chain_labels_alone", "chain_direct"]


@pytest.fixture
def chained(finished_chain: Any, tmp_path: Any) -> Any:
    """A copy of the finished chain, to be changed."""
    return type(finished_chain)(shutil.copytree(finished_chain.path, tmp_path / "project"))


def hop_table(project: Any) -> pd.DataFrame:
    return pd.read_csv(project.data / "08_reporting/hop_table.csv")


def test_the_list_of_the_preset_is_what_runs(finished_chain: Any) -> None:
    ran = re.findall(r"\] (\w+): (?:train_hop|train_on_labels_alone)", finished_chain.stderr)
    assert sorted(ran) == sorted(ROLES[1:])
    assert not (finished_chain.data / "06_models/assistant").exists()
    counts = {
        role: len(list((finished_chain.data / "06_models" / role).iterdir())) for role in ROLES
    }
    assert counts == {
        "teacher": 1, "middle": 2, "small": 2, "chain_labels_alone": 2, "chain_direct": 2
    }  # fmt: skip


def test_every_hop_is_cached_from_the_one_before(finished_chain: Any) -> None:
    models, inputs = finished_chain.data / "06_models", finished_chain.data / "05_model_input"
    for teacher, hop in (("teacher", "middle"), ("middle", "small")):
        members = sorted((models / teacher).glob("*/model.json"))
        fingerprints = [json.loads(file.read_text())["fingerprint"] for file in members]
        manifest = json.loads((inputs / hop / "soft_targets/manifest.json").read_text())
        assert manifest["provenance"]["teacher_fingerprints"] == fingerprints


def test_the_last_hop_and_its_twins_differ_in_their_teacher_alone(finished_chain: Any) -> None:
    def facts(role: str, replicate: int) -> dict[str, Any]:
        file = finished_chain.data / "06_models" / role / str(replicate) / "model.json"
        return dict(json.loads(file.read_text())["facts"])

    for replicate in (0, 1):
        trained = [facts(role, replicate) for role in ("small", "chain_direct")]
        trained.append(facts("chain_labels_alone", replicate))
        for fact in ("seed", "shared", "steps", "views"):
            assert trained[0][fact] == trained[1][fact] == trained[2][fact], fact
        assert len({tuple(told["teacher"]) for told in trained}) == 3
        assert trained[0]["seed"] != facts("middle", replicate)["seed"]


def test_nothing_is_left_to_be_resumed(finished_chain: Any) -> None:
    folders = ("06_models/.interrupted", "05_model_input/.interrupted")
    left = [path for folder in folders for path in (finished_chain.data / folder).rglob("*")]
    # Lock files stay: removing one would let two runs hold what they take for the same lock.
    assert [path for path in left if path.is_file() and path.suffix != ".lock"] == []


def test_every_cache_is_summed_up_for_a_reader(finished_chain: Any) -> None:
    for hop in ("middle", "small"):
        folder = finished_chain.data / "08_reporting" / hop
        summary = pd.read_csv(folder / "soft_target_summary.csv", dtype={"fingerprint": str})
        manifest = json.loads(
            (
                finished_chain.data / "05_model_input" / hop / "soft_targets/manifest.json"
            ).read_text()
        )
        members = summary.loc[summary["teacher"].astype(str) != "mixed", "fingerprint"].tolist()
        assert members == manifest["provenance"]["teacher_fingerprints"]
        assert (folder / "soft_target_confusions.csv").is_file()


def test_it_ends_with_a_table_of_hops(finished_chain: Any) -> None:
    table = hop_table(finished_chain).set_index("role")
    assert sorted(table.index) == sorted(ROLES)
    assert table.loc["small", "learnt_from"] == "middle"
    assert table.loc["chain_direct", "learnt_from"] == "teacher"
    assert table.loc["chain_labels_alone", "learnt_from"] == "labels"
    same = ["architecture", "parameters", "macs", "size_bytes", "num_models"]
    assert table.loc["small", same].to_list() == table.loc["chain_direct", same].to_list()
    assert table[["validation_accuracy", "test_accuracy", "test_nll"]].notna().all(axis=None)
    out = finished_chain.stdout
    assert all(role in out for role in ROLES)
    assert re.search(r"[Tt]he detour", out)
    (path,) = re.findall(r"\S*08_reporting/hop_report\.md", out)
    report = (finished_chain.path / path).read_text(encoding="utf-8")
    assert report.startswith("# Did the chain help?")


def test_mlflow_has_a_run_per_model_and_the_table(
    finished_chain: Any, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    runs = fetch_runs(finished_chain)
    by_role = pd.Series([run.data.tags["kd.role"] for run in runs]).value_counts().to_dict()
    assert by_role == {
        "teacher": 1, "middle": 2, "small": 2, "chain_labels_alone": 2, "chain_direct": 2,
        "comparison": 1,
    }  # fmt: skip
    small = next(run for run in runs if run.data.tags["kd.role"] == "small")
    assert {"test/accuracy", "test/teacher_agreement", "train/loss"} <= set(small.data.metrics)
    assert small.data.params["learnt_from"] == "middle"
    (comparison,) = [run for run in runs if run.data.tags["kd.role"] == "comparison"]
    assert "gain/over_chain_direct/accuracy" in comparison.data.metrics
    logged = {file.name for file in finished_chain.path.glob("mlartifacts/**/hop_*")}
    assert logged >= {"hop_table.csv", "hop_report.md", "hop_comparison.json"}


def test_a_hop_more_is_an_entry_more(chained: Any, run_here: Run) -> None:
    """In an environment of the user's own; neither code nor catalog is touched."""
    smoke = yaml.safe_load((chained.path / "conf/smoke/parameters_smoke.yml").read_text())
    hops = smoke["chain"]["hops"]
    smoke["chain"]["hops"] = [hops[0], {**hops[0], "name": "between", "num_members": 1}, hops[1]]
    (chained.path / "conf/mine").mkdir()
    (chained.path / "conf/mine/parameters.yml").write_text(yaml.safe_dump(smoke))
    outcome = run_here(chained, ["chain"], env="mine")
    assert outcome.error is None
    table = hop_table(chained).set_index("role")["learnt_from"].dropna().to_dict()
    assert table == {
        "middle": "teacher", "between": "middle", "small": "between",
        "chain_labels_alone": "labels", "chain_direct": "teacher",
    }  # fmt: skip


def test_parameters_of_a_run_bring_another_list(chained: Any, run_here: Run) -> None:
    hop = {"name": "other", "model": {"name": "mlp", "arguments": {"hidden": []}}}
    params = {"chain": {"num_replicates": 1, "hops": [hop]}}
    outcome = run_here(chained, ["chain"], params=params)
    assert outcome.error is None
    assert hop_table(chained)["role"].tolist() == ["teacher", "other", "chain_labels_alone"]


def test_the_cache_of_a_hop_that_has_changed_is_refused(chained: Any, run_here: Run) -> None:
    """The design's eighth mistake, along the chain."""
    params = {"chain": {"seed": 1}}
    again = run_here(
        chained, ["chain"], params=params, node_names=["middle.train_hop", "middle.describe_hop"]
    )
    assert again.error is None
    outcome = run_here(chained, ["chain"], node_names=["small.train_hop"], stop_at_training=True)
    message = outcome.refused(StaleArtefactError)
    assert "`small.soft_targets` do not match this run's teacher" in message
    assert "kedro run --pipelines=chain --from-nodes=small.cache_soft_targets" in message


def test_a_hop_of_another_teacher_is_not_measured(chained: Any, run_here: Run) -> None:
    params = {"chain": {"seed": 1}}
    assert (
        run_here(chained, ["chain"], params=params, node_names=["middle.train_hop"]).error is None
    )
    message = run_here(chained, ["chain"], node_names=["evaluate_hops"]).refused(StaleArtefactError)
    assert "`small.checkpoints[0]` must be made from the teacher at hand" in message
    assert "kedro run --pipelines=chain" in message


def test_students_of_a_hop_train_with_its_teachers_files_deleted(
    chained: Any, run_here: Run
) -> None:
    for role in ("teacher", "middle"):
        shutil.rmtree(chained.data / "06_models" / role)
    nodes = ["small.train_hop", "chain_direct.train_hop"]
    outcome = run_here(chained, ["chain"], node_names=nodes)
    assert outcome.error is None
    assert outcome.trained == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("hop", "name"),
    [
        ({"name": "small", "model": {"name": "mlpp"}}, "chain.hops.small"),
        ({"name": "teacher", "model": {"name": "mlp"}}, "chain.hops.0"),
        ({"name": "small", "model": {"name": "mlp"}, "tempreature": 1}, "chain.hops.0"),
    ],
)
def test_a_hop_that_cannot_work_is_refused_before_the_teacher_trains(
    hop: dict[str, Any], name: str, chained: Any, run_here: Run
) -> None:
    outcome = run_here(chained, ["chain"], params={"chain": {"hops": [hop]}}, stop_at_training=True)
    message = outcome.refused(ParameterError if "mlpp" in str(hop) else KdPipelineError)
    assert name in message
