"""Wiring of a chain: each hop's cache is its predecessor's work, and twins share all but that."""

import warnings
from collections.abc import Iterator

import pytest
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.pipelines import chain, soft_target_caching
from kd_pipeline.training.block_settings import DIRECT, LABELS_ALONE

HOPS = ("large", "middle", "small")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain")
        yield


def wired(*hops: str) -> Pipeline:
    return chain.create_pipeline(hops, soft_target_caching.create_pipeline())


def node(pipeline: Pipeline, output: str) -> Node:
    (found,) = [node for node in pipeline.nodes if output in node.outputs]
    return found


def test_each_hop_is_taught_by_the_one_before() -> None:
    pipeline = wired(*HOPS)
    for teacher, hop in zip(("teacher", *HOPS), HOPS, strict=False):
        labels = node(pipeline, f"{hop}.soft_targets")
        assert [n for n in labels.inputs if n.endswith(".checkpoints")] == [
            f"{teacher}.checkpoints"
        ]
        trains = node(pipeline, f"{hop}.checkpoints")
        assert {f"{hop}.soft_targets", f"{teacher}.card"} <= set(trains.inputs)
        assert labels.namespace == trains.namespace == hop
        assert f"{hop}.history" in trains.outputs


def test_every_cache_is_looked_at() -> None:
    pipeline = wired(*HOPS)
    for hop in HOPS:
        looks = node(pipeline, f"{hop}.soft_target_summary")
        assert looks.outputs == [f"{hop}.soft_target_summary", f"{hop}.soft_target_confusions"]
        assert f"{hop}.soft_targets" in looks.inputs
        assert looks.namespace == hop


def test_no_hop_opens_its_teacher() -> None:
    """Promise one: whoever learns from a cache needs no weights but its own."""
    pipeline = wired(*HOPS)
    for role in (*HOPS, DIRECT, LABELS_ALONE):
        inputs = node(pipeline, f"{role}.checkpoints").inputs
        assert not [name for name in inputs if name.endswith(".checkpoints")]


def test_the_direct_twin_learns_from_the_first_teachers_cache() -> None:
    inputs = node(wired(*HOPS), f"{DIRECT}.checkpoints").inputs
    assert {"large.soft_targets", "teacher.card"} <= set(inputs)


def test_the_other_twin_sees_no_cache() -> None:
    inputs = node(wired(*HOPS), f"{LABELS_ALONE}.checkpoints").inputs
    assert not [name for name in inputs if name.endswith((".soft_targets", ".card"))]


def test_hops_and_twins_share_their_settings() -> None:
    pipeline = wired(*HOPS)
    asked = {
        role: {n for n in node(pipeline, f"{role}.checkpoints").inputs if n.startswith("params:")}
        for role in (*HOPS, DIRECT, LABELS_ALONE)
    }
    shared = {"params:chain", "params:student", "params:views", "params:soft_targets"}
    assert asked == dict.fromkeys(asked, shared)


def test_all_are_measured_in_one_reading_of_the_test_set() -> None:
    measured = node(wired(*HOPS), "hop_metrics")
    read = {name for name in measured.inputs if name.endswith(".checkpoints")}
    roles = {"teacher", *HOPS, DIRECT, LABELS_ALONE}
    assert read == {f"{role}.checkpoints" for role in roles}


def test_one_hop_has_no_direct_twin() -> None:
    pipeline = wired("only")
    assert f"{DIRECT}.checkpoints" not in pipeline.all_outputs()
    assert f"{LABELS_ALONE}.checkpoints" in pipeline.all_outputs()


def test_no_hops_make_no_pipeline() -> None:
    assert wired().nodes == []


def test_what_comes_from_outside_is_what_the_stages_before_give() -> None:
    outside = {n for n in wired(*HOPS).inputs() if not n.startswith("params:")}
    own = {f"{role}.training_states" for role in (*HOPS, DIRECT, LABELS_ALONE)}
    kept = {name for name in outside if name.endswith(".soft_target_parts")}
    given = {"images", "examples", "splits", "teacher.checkpoints", "teacher.card"}
    assert outside - kept == own | given
    assert kept in (set(), {f"{hop}.soft_target_parts" for hop in HOPS})
