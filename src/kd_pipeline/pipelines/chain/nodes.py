"""Nodes of a chain: training of a hop or a twin, and the table of hops at its end."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from kd_pipeline.errors import ParameterError
from kd_pipeline.evaluation.hop_table import make_hop_table, markdown_hop_report
from kd_pipeline.evaluation.hops import compare_hops
from kd_pipeline.evaluation.settings import EvaluationParams
from kd_pipeline.pipelines.chain.hop_list import hop_names
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.block_settings import (
    FIRST_TEACHER,
    LABELS_ALONE,
    ChainParams,
    StudentParams,
)
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.images import ImageSet
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.models.state_folder import StateFolder
    from kd_pipeline.soft_targets.ensemble import Mixing
    from kd_pipeline.soft_targets.store import SoftTargets
    from kd_pipeline.training.teacher_sources import Teacher
else:  # Kedro resolves every hint of a node to validate its parameters; these would import torch.
    ImageSet = ModelCheckpoint = StateFolder = Mixing = SoftTargets = Teacher = object

Trained = tuple[list[ModelCheckpoint], pd.DataFrame]
RERUN = "kedro run --pipelines=chain"


def refuse_without_list(chain: Any) -> NoReturn:
    """Say what is wrong with the list of hops, to whoever runs the chain.

    Args:
        chain: The block `chain` as it is: its model does not take it.

    Raises:
        ParameterError: Always.
    """
    hop_names()
    raise ParameterError("chain.hops", "be a list of hops", chain)


def hop_trainer(role: str) -> Callable[..., Trained]:
    """Make the node function of one hop: a list in YAML has no names that Kedro could wire.

    Args:
        role: The hop's name, or that of the twin that learns from the first teacher.
    """

    def train_hop(
        images: ImageSet,
        examples: pd.DataFrame,
        splits: pd.DataFrame,
        soft_targets: SoftTargets,
        teacher_card: Mapping[str, Any],
        training_states: StateFolder,
        chain: ChainParams,
        student: StudentParams,
        views: ViewsParams,
        reading: SoftTargetsParams,
    ) -> Trained:
        """Train a hop's models on the cached logits of the hop before it.

        Args:
            images: The pixels.
            examples: The labels.
            splits: Which rows are open to students, and which of their labels.
            soft_targets: Of the hop before; refused unless they match all the others.
            teacher_card: The identity of the hop before; not its weights.
            training_states: From which a killed run resumes.
            chain: `chain` in parameters_chain.yml.
            student: `student`, for how to train where the hop does not say.
            views: `views`, what every hop sees.
            reading: `soft_targets`, how members are mixed and a tail is read.

        Returns:
            One checkpoint per member or replicate, and the history.
        """
        from kd_pipeline.soft_targets.manifest import check_provenance
        from kd_pipeline.training.teacher_sources import CachedTeacher

        provenance = soft_targets.manifest.provenance
        check_provenance(provenance, teacher_fingerprints=teacher_card["fingerprints"])
        teacher = CachedTeacher(soft_targets, _mixing(role, chain, reading), reading.tail)
        data = (images, examples, splits)
        return _train(role, data, training_states, chain, student, views, reading, teacher)

    return train_hop


def cache_summariser(role: str) -> Callable[..., tuple[pd.DataFrame, pd.DataFrame]]:
    """Make the node function that looks at what one hop hears.

    Args:
        role: The hop's name.
    """

    def summarise_soft_targets(
        soft_targets: SoftTargets,
        examples: pd.DataFrame,
        chain: ChainParams,
        reading: SoftTargetsParams,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Describe how soft a hop's soft targets are, how often right, and what looks alike.

        Args:
            soft_targets: Of the hop before.
            examples: The labels, whether or not a hop may use them.
            chain: `chain` in parameters_chain.yml.
            reading: `soft_targets`, how members are mixed.

        Returns:
            The summary and the confusable pairs.
        """
        from kd_pipeline.soft_targets.confusions import most_confusable_pairs
        from kd_pipeline.soft_targets.summary import known_labels, summarise

        labels, mixing = known_labels(examples), _mixing(role, chain, reading)
        summary = summarise(soft_targets, labels, mixing=mixing)
        return summary.table, most_confusable_pairs(soft_targets, labels, mixing=mixing)

    return summarise_soft_targets


def train_on_labels_alone(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    training_states: StateFolder,
    chain: ChainParams,
    student: StudentParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
) -> Trained:
    """Train the last hop's architecture without any teacher.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Which rows are open to students, and which of their labels.
        training_states: From which a killed run resumes.
        chain: `chain` in parameters_chain.yml.
        student: `student`, for how to train where the last hop does not say.
        views: `views`, what every hop sees.
        reading: `soft_targets`: only told, so that all roles have the same parameters.

    Returns:
        One checkpoint per replicate, and the history.
    """
    data = (images, examples, splits)
    return _train(LABELS_ALONE, data, training_states, chain, student, views, reading, None)


def describe_hop(checkpoints: list[ModelCheckpoint]) -> dict[str, Any]:
    """Put a hop's identity on a card, against which the next hop checks its soft targets.

    Args:
        checkpoints: One per member.
    """
    from kd_pipeline.models.checkpoint import identity_card

    return identity_card(checkpoints)


def evaluate_hops(
    images: ImageSet,
    examples: pd.DataFrame,
    splits: pd.DataFrame,
    params: EvaluationParams,
    chain: ChainParams,
    reading: SoftTargetsParams,
    teacher: list[ModelCheckpoint],
    **hops: list[ModelCheckpoint],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the validation set and, once, the test set with the teacher, every hop and its twins.

    Args:
        images: The pixels.
        examples: The labels.
        splits: Whose roles `validation` and `test` are read.
        params: `evaluation` in parameters_evaluation.yml.
        chain: Who has learnt from whom.
        reading: `soft_targets`: how members are mixed.
        teacher: Its members; several are evaluated as one mixed model.
        hops: The members or replicates of each hop and twin, by name.

    Returns:
        `hop_predictions` and `hop_metrics`, as those of evaluation, with `learnt_from`,
        `architecture` and `validation_accuracy`.

    Raises:
        StaleArtefactError: If a checkpoint was made from other data than is at hand, or has
            learnt from another model than the hop before it.
    """
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.evaluation.freshness import check_fresh
    from kd_pipeline.evaluation.test_set import TestReader, describe_models, read_test_set
    from kd_pipeline.soft_targets.ensemble import Mixing

    mixing = Mixing(reading.mixing, reading.member_weights)
    check_fresh(
        teacher,
        hops,
        images=images.fingerprint,
        splits=split_fingerprint(splits),
        class_names=images.class_names,
        learnt_from=chain.learnt_from,
        paired=(chain.hops[-1].name, *chain.twins),
        rerun=RERUN,
        mixture=mixing.described(len(teacher)),
    )
    settings = params.model_dump(include={"batch_size", "device", "precision"})
    # Before the test set is opened: whatever fails here leaves it unread.
    described = describe_models(
        images, examples, splits, {"teacher": teacher, **hops}, mixing=mixing, **settings
    )
    reader = TestReader(images, examples, splits, num_bins=params.num_calibration_bins, **settings)
    predictions, metrics = read_test_set(
        reader, teacher, hops, mixing=mixing, learnt_from=chain.learnt_from
    )
    taught = {**chain.learnt_from, LABELS_ALONE: "labels"}
    metrics.insert(2, "learnt_from", metrics["role"].map(taught))
    return predictions, metrics.merge(described, on=["role", "replicate"], how="left")


def tabulate_hops(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    params: EvaluationParams,
    chain: ChainParams,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Line up the hops, and measure the last one against its twins, in pairs.

    Args:
        predictions: As `evaluate_hops` gives them.
        metrics: As `evaluate_hops` gives them.
        params: `evaluation` in parameters_evaluation.yml.
        chain: Which hop is the last.

    Returns:
        `hop_table`, a row per role, and `hop_comparison`.
    """
    comparison = compare_hops(
        predictions,
        metrics,
        last=chain.hops[-1].name,
        twins=list(chain.twins),
        num_samples=params.num_bootstrap_samples,
        confidence_level=params.confidence_level,
        seed=params.seed,
    )
    return make_hop_table(metrics), comparison


def write_hop_report(table: pd.DataFrame, comparison: dict[str, Any]) -> str:
    """Say in words whether the hops between helped, null results included.

    Args:
        table: `hop_table`.
        comparison: `hop_comparison`.
    """
    return markdown_hop_report(table, comparison)


def _mixing(role: str, chain: ChainParams, reading: SoftTargetsParams) -> Mixing:
    """The weights are those of the first teacher's members; a hop's members weigh alike."""
    from kd_pipeline.soft_targets.ensemble import Mixing

    is_first = chain.learnt_from[role] == FIRST_TEACHER
    return Mixing(reading.mixing, reading.member_weights if is_first else None)


def _train(
    role: str,
    data: tuple[ImageSet, pd.DataFrame, pd.DataFrame],
    training_states: StateFolder,
    chain: ChainParams,
    student: StudentParams,
    views: ViewsParams,
    reading: SoftTargetsParams,
    teacher: Teacher | None,
) -> Trained:
    from kd_pipeline.losses.objective import Objective
    from kd_pipeline.randomness import derive_seed
    from kd_pipeline.training.data import TrainingData
    from kd_pipeline.training.settings import TrainingSettings
    from kd_pipeline.training.students import train_students
    from kd_pipeline.views import ViewPolicy

    hop = chain.hop(role)
    repeated = hop is chain.hops[-1]
    # The last hop and its twins start alike; no hop before starts as they do.
    seed = chain.seed if repeated else derive_seed(chain.seed, "hop", role)
    count = chain.num_replicates if repeated else hop.num_members
    training = (hop.training or student.training).model_dump(mode="json")
    soft_weight = 0.0 if teacher is None else hop.soft_weight
    told = hop.model_dump(mode="json", exclude={"name", "training", "num_members"})
    told |= {"training": training, "soft_weight": soft_weight, "seed": seed}
    told |= {"learnt_from": "labels" if teacher is None else chain.learnt_from[role]}
    told |= {
        "views": views.model_dump(mode="json"),
        "soft_targets": reading.model_dump(mode="json"),
    }
    return train_students(
        TrainingData(*data),
        teacher=teacher,
        objective=Objective(
            soft_weight=soft_weight,
            soft_loss=hop.soft_loss,
            temperature=hop.temperature,
            label_smoothing=hop.label_smoothing,
        ),
        model=hop.model.model_dump(mode="json"),
        settings=TrainingSettings(**training),
        seed=seed,
        num_replicates=count,
        policy=ViewPolicy(**views.policy_arguments()),
        num_views=views.num_views,
        parameters=told,
        states=training_states,
    )
