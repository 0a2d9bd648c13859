"""Students that teach other students: a teacher assistant, and born-again generations."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from kd_pipeline.errors import ParameterError, StaleArtefactError

Run = Callable[..., Any]

COMPARED = ["student_assisted", "student_kd", "student_baseline"]
CACHES = {"teacher": "soft_targets", "assistant": "assistant/soft_targets"}
PIPELINE = ["teacher_assistant"]


def model(project: Any, role: str, replicate: int = 0) -> dict[str, Any]:
    file = project.data / "06_models" / role / str(replicate) / "model.json"
    return dict(json.loads(file.read_text()))


def fingerprints(project: Any, role: str) -> list[str]:
    replicates = sorted((project.data / "06_models" / role).iterdir())
    return [model(project, role, int(one.name))["fingerprint"] for one in replicates]


def teachers_of_cache(project: Any, cache: str) -> list[str]:
    manifest = json.loads((project.data / "05_model_input" / cache / "manifest.json").read_text())
    return list(manifest["provenance"]["teacher_fingerprints"])


def learnt_from(project: Any) -> dict[str, str]:
    metrics = pd.read_csv(project.data / "08_reporting/metrics.csv")
    return metrics.set_index("role")["learnt_from"].dropna().to_dict()


def test_every_cache_is_of_the_model_that_teaches_and_is_summed_up(finished_chain: Any) -> None:
    reporting = finished_chain.data / "08_reporting"
    for role, cache in CACHES.items():
        members = teachers_of_cache(finished_chain, cache)
        assert members == fingerprints(finished_chain, role)
        folder = reporting / cache.removesuffix("soft_targets")
        summary = pd.read_csv(folder / "soft_target_summary.csv", dtype={"fingerprint": str})
        of_members = summary[summary["teacher"].astype(str) != "ensemble"]
        assert of_members["fingerprint"].tolist() == members
        assert (folder / "soft_target_confusions.csv").is_file()


def test_students_that_are_compared_differ_in_their_teacher_alone(finished_chain: Any) -> None:
    for replicate in (0, 1):
        trained = [model(finished_chain, role, replicate)["facts"] for role in COMPARED]
        for fact in ("seed", "shared", "steps", "views"):
            assert trained[0][fact] == trained[1][fact] == trained[2][fact], fact
        assert len({tuple(facts["teacher"]) for facts in trained}) == len(COMPARED)
        assistant = model(finished_chain, "assistant", replicate)["facts"]
        assert assistant["seed"] != trained[0]["seed"]


def test_nothing_is_left_to_be_resumed(finished_chain: Any) -> None:
    states = [*finished_chain.data.glob("06_models/.interrupted/*/*")]
    assert all((state / "complete.json").is_file() for state in states)
    left = [*(finished_chain.data / "05_model_input/.interrupted").rglob("*")]
    # Lock files stay: removing one would let two runs hold what they take for the same lock.
    assert [path for path in left if path.is_file() and ".lock" not in path.suffixes] == []


def test_the_report_measures_all_and_compares_those_that_share_their_size(
    finished_chain: Any,
) -> None:
    assert learnt_from(finished_chain) == {
        "assistant": "teacher",
        "student_assisted": "assistant",
        "student_kd": "teacher",
        "student_baseline": "labels",
    }
    reporting = finished_chain.data / "08_reporting"
    comparison = json.loads((reporting / "comparison.json").read_text())
    assert comparison["intermediate"] == ["assistant"]
    assert comparison["distilled"] == "student_assisted"
    assert set(comparison["gains"]) == {"student_assisted", "student_kd"}
    assert set(comparison["distilled_over"]) == {"student_kd"}
    out = finished_chain.stdout
    assert all(role in out for role in ["assistant", *COMPARED])
    assert "through assistant" in out
    # The run ended before its page.
    (path,) = re.findall(r"\S*08_reporting/report\.md", out)
    report = (finished_chain.path / path).read_text(encoding="utf-8")
    assert report.startswith("# Did distillation help?")
    assert "taught by the teacher directly" in report


def test_mlflow_has_a_run_per_model_and_both_summaries(
    finished_chain: Any, fetch_runs: Callable[[Any], list[Any]]
) -> None:
    runs = fetch_runs(finished_chain)
    by_role = Counter(run.data.tags["kd.role"] for run in runs)
    twice = dict.fromkeys(["assistant", *COMPARED], 2)
    assert by_role == {"teacher": 1, **twice, "comparison": 1}
    for run in runs:
        if run.data.tags["kd.role"] in twice:
            wanted = {"test/accuracy", "test/teacher_agreement", "train/loss"}
            assert wanted <= set(run.data.metrics)
    (comparison,) = [run for run in runs if run.data.tags["kd.role"] == "comparison"]
    wanted = {"gain/accuracy", "gain/student_kd/accuracy", "soft_targets/assistant/entropy_at_4"}
    assert wanted <= set(comparison.data.metrics)
    logged = {file.name for file in finished_chain.path.glob("mlartifacts/**/*.csv")}
    assert logged >= {"soft_target_summary.csv", "assistant.soft_target_summary.csv"}


def test_born_again_generations_are_a_longer_row(chained: Any, run_here: Run) -> None:
    outcome = run_here(chained, ["born_again"], to_nodes=["compare_arms"])
    assert outcome.error is None
    assert learnt_from(chained) == {
        "generation_1": "teacher",
        "generation_2": "generation_1",
        "generation_3": "generation_2",
        "student_kd": "teacher",
        "student_baseline": "labels",
    }


def test_the_cache_of_a_student_that_has_changed_is_refused(chained: Any, run_here: Run) -> None:
    """The design's eighth mistake, one student later."""
    params = {"student": {"seed": 1}}
    again = run_here(chained, PIPELINE, params=params, node_names=["assistant.train_student"])
    assert again.error is None
    nodes = ["student_assisted.train_student"]
    outcome = run_here(chained, PIPELINE, node_names=nodes, stop_at_training=True)
    message = outcome.refused(StaleArtefactError)
    assert "`assistant.soft_targets` do not match this run's teacher" in message
    assert "--from-nodes=<student>.cache_soft_targets" in message
    outcome = run_here(chained, PIPELINE, node_names=["evaluate_models"])
    message = outcome.refused(StaleArtefactError)
    assert "student_assisted.checkpoints[0]` do not match this run's teacher" in message


def test_students_train_with_the_files_of_their_teachers_deleted(
    chained: Any, run_here: Run
) -> None:
    for role in ("teacher", "assistant"):
        shutil.rmtree(chained.data / "06_models" / role)
    nodes = ["student_assisted.train_student", "student_kd.train_student"]
    outcome = run_here(chained, PIPELINE, node_names=nodes)
    assert outcome.error is None
    assert outcome.trained == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"assistant": {"model": {"name": "mlpp"}}}, "`assistant.model.name`"),
        (
            {"assistant": {"training": {"num_epochs": 1, "optimiser": {"name": "AdamWW"}}}},
            "`assistant.training.optimiser.name`",
        ),
        ({"student_assisted": {"num_replicates": 1}}, "`student_assisted.num_replicates`"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_the_teacher_trains(
    params: dict[str, Any], name: str, chained: Any, run_here: Run
) -> None:
    outcome = run_here(chained, PIPELINE, params=params, stop_at_training=True)
    assert name in outcome.refused(ParameterError)


@pytest.mark.long
@pytest.mark.parametrize(
    ("pipeline", "teaching"),
    [("teacher_assistant", ["assistant"]), ("born_again", ["generation_1", "generation_2"])],
)
def test_they_run_as_typed_and_draw_all_figures(
    pipeline: str, teaching: list[str], fresh: Any
) -> None:
    done = fresh.after(f"kedro run --pipelines={pipeline} --env=smoke")
    assert "is deprecated" not in done.stderr
    reporting = fresh.data / "08_reporting"
    drawn = ("entropy", "confidence", "grid")
    for folder in ("figures", *teaching):
        for figure in drawn:
            assert (reporting / folder / f"soft_target_{figure}_figure.png").is_file()
    assert (reporting / "figures/accuracy_figure.png").is_file()
