"""A chain: per hop, the one before it labels the transfer set and the hop learns from that.

teacher.checkpoints -> <hop>.soft_targets -> <hop>.checkpoints -> <next hop>.soft_targets -> ...
-> hop_metrics -> hop_table; beside it a summary of each hop's cache.
"""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from kd_pipeline.pipelines.chain.nodes import (
    cache_summariser,
    describe_hop,
    evaluate_hops,
    hop_trainer,
    refuse_without_list,
    tabulate_hops,
    train_on_labels_alone,
    write_hop_report,
)
from kd_pipeline.training.block_settings import FIRST_TEACHER, twins_of

_DATA = {"images", "examples", "splits"}
_SHARED = {
    **{name: name for name in _DATA},
    "training_states": "training_states",
    "chain": "params:chain",
    "student": "params:student",
    "views": "params:views",
    "reading": "params:soft_targets",
}
_PARAMETERS = {name for name in _SHARED.values() if name.startswith("params:")}
_CACHE = "soft_targets"


def create_pipeline(hops: Sequence[str], caching: Pipeline) -> Pipeline:
    """Wire the chain; dataset names are those of catalog_chain.yml.

    Args:
        hops: Names of the hops, in their order; none makes an empty pipeline.
        caching: The stage that labels the transfer set for the first teacher: every hop's teacher
            does it in the same way.
    """
    if not hops:
        return Pipeline([])
    before = dict(zip(hops, [FIRST_TEACHER, *hops], strict=False))
    chain = sum((_hop(hop, teacher, caching) for hop, teacher in before.items()), Pipeline([]))
    cards = sum((_card(hop) for hop in hops), Pipeline([]))
    twins = twins_of(len(hops))
    beside = sum((_twin(twin, source, hops[0]) for twin, source in twins.items()), Pipeline([]))
    return chain + cards + beside + Pipeline(_evaluate([*hops, *twins]))


def without_list() -> Pipeline:
    """Stand in for a chain whose list is missing or malformed: refused when run, and only then."""
    chain = {"chain": "params:chain"}
    return Pipeline([Node(func=refuse_without_list, inputs=chain, outputs=None, name="find_hops")])


def _hop(name: str, teacher: str, caching: Pipeline) -> Pipeline:
    labels = caching.to_outputs(_CACHE)
    shared = {entry for entry in labels.inputs() if not entry.startswith("params:")}
    cache = Pipeline(
        labels,
        namespace=name,
        # What a stage keeps for its own resumption has no maker: it gets the hop's name.
        inputs={
            entry: f"{teacher}.checkpoints" if entry == "teacher.checkpoints" else entry
            for entry in shared & {"teacher.checkpoints", *_DATA}
        },
        parameters={entry for entry in labels.inputs() if entry.startswith("params:")},
    )
    return cache + _looked_at(name) + _trained(name, cache=f"{name}.{_CACHE}", teacher=teacher)


def _looked_at(name: str) -> Pipeline:
    node = Node(
        func=cache_summariser(name),
        inputs={
            "soft_targets": _CACHE,
            "examples": "examples",
            "chain": "params:chain",
            "reading": "params:soft_targets",
        },
        outputs=["soft_target_summary", "soft_target_confusions"],
        name="summarise_soft_targets",
    )
    return Pipeline(
        [node],
        namespace=name,
        inputs={_CACHE: f"{name}.{_CACHE}", "examples": "examples"},
        parameters={"params:chain", "params:soft_targets"},
    )


def _twin(name: str, source: str, first_hop: str) -> Pipeline:
    if source == "labels":
        node = Node(
            func=train_on_labels_alone,
            inputs=_SHARED,
            outputs=["checkpoints", "history"],
            name="train_on_labels_alone",
        )
        return Pipeline([node], namespace=name, inputs=_DATA, parameters=_PARAMETERS)
    return _trained(name, cache=f"{first_hop}.{_CACHE}", teacher=FIRST_TEACHER)


def _trained(name: str, *, cache: str, teacher: str) -> Pipeline:
    node = Node(
        func=hop_trainer(name),
        inputs={**_SHARED, "soft_targets": "cache_of_teacher", "teacher_card": "card_of_teacher"},
        outputs=["checkpoints", "history"],
        name="train_hop",
    )
    return Pipeline(
        [node],
        namespace=name,
        inputs={
            **{entry: entry for entry in _DATA},
            "cache_of_teacher": cache,
            "card_of_teacher": f"{teacher}.card",
        },
        parameters=_PARAMETERS,
    )


def _card(name: str) -> Pipeline:
    node = Node(
        func=describe_hop,
        inputs={"checkpoints": "checkpoints"},
        outputs="card",
        name="describe_hop",
    )
    return Pipeline([node], namespace=name, inputs={"checkpoints": f"{name}.checkpoints"})


def _evaluate(roles: Sequence[str]) -> list[Node]:
    checkpoints = {role: f"{role}.checkpoints" for role in (FIRST_TEACHER, *roles)}
    evaluation, chain = {"params": "params:evaluation"}, {"chain": "params:chain"}
    measured = {"predictions": "hop_predictions", "metrics": "hop_metrics"}
    return [
        Node(
            func=evaluate_hops,
            inputs={
                **{name: name for name in sorted(_DATA)},
                **evaluation,
                **chain,
                "reading": "params:soft_targets",
                **checkpoints,
            },
            outputs=["hop_predictions", "hop_metrics"],
            name="evaluate_hops",
        ),
        Node(
            func=tabulate_hops,
            inputs={**measured, **evaluation, **chain},
            outputs=["hop_table", "hop_comparison"],
            name="tabulate_hops",
        ),
        Node(
            func=write_hop_report,
            inputs={"table": "hop_table", "comparison": "hop_comparison"},
            outputs="hop_report",
            name="write_hop_report",
        ),
    ]
