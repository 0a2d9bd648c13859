"""Looks ahead: whatever one of a run's trainings would refuse is refused before the first."""

from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.errors import ParameterError, StaleArtefactError
from kd_pipeline.training.block_settings import ArmParams, StudentParams, TeacherParams
from kd_pipeline.views.settings import ViewsParams

CHECKPOINTS = ".checkpoints"
SOFT_TARGETS = "soft_targets"
TEACHER = "teacher.checkpoints"
CARD = "card"
_DATA = ("images", "examples", "splits")


def training_nodes(pipeline: Pipeline) -> list[Node]:
    """The nodes that train, in the order in which they run."""
    return [node for node in pipeline.nodes if any(o.endswith(CHECKPOINTS) for o in node.outputs)]


def check_arms(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    """Refuse an arm without a teacher whose block asks for one.

    Raises:
        ParameterError: Naming the arm and the parameter.
    """
    for node in training_nodes(pipeline):
        block = f"params:{node.namespace}"
        has_teacher = {SOFT_TARGETS, TEACHER}.intersection(node.inputs)
        if has_teacher or block not in node.inputs or node.namespace == "teacher":
            continue
        arm = ArmParams.model_validate(catalog.load(block))
        if arm.soft_weight > 0:
            rule = "be 0 for an arm without a teacher"
            raise ParameterError(f"{node.namespace}.soft_weight", rule, arm.soft_weight)


def check_cache(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    """Refuse soft targets on disk that do not match what the run would use them with.

    Only what the run does not make anew is compared. The store is read once here, checksums
    included; a run that begins with the students has little else to wait for.

    Raises:
        StaleArtefactError: If they are missing, damaged or made from something else.
    """
    free = pipeline.inputs()
    # Of every namespace: the arms share one cache, each hop of a chain has its own.
    used = {
        (cache, card)
        for node in training_nodes(pipeline)
        for cache in free.intersection(node.inputs)
        for card in node.inputs
        if cache.rpartition(".")[2] == SOFT_TARGETS and card.rpartition(".")[2] == CARD
    }
    for cache, card in sorted(used):
        try:
            _check_one(cache, card, free, catalog)
        except StaleArtefactError as error:
            raise _of_namespace(cache, error) from error


def _of_namespace(cache: str, error: StaleArtefactError) -> StaleArtefactError:
    """The store knows neither what it is called here nor which node has made it."""
    if cache == SOFT_TARGETS:
        return error
    node = f"{cache.removesuffix(SOFT_TARGETS)}cache_soft_targets"
    told = str(error).replace(f"`{SOFT_TARGETS}`", f"`{cache}`")
    return StaleArtefactError(
        told.replace("--pipelines=soft_target_caching", f"--pipelines=chain --from-nodes={node}")
    )


def _check_one(cache: str, card: str, free: set[str], catalog: CatalogProtocol[Any, Any]) -> None:
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.soft_targets.manifest import check_provenance
    from kd_pipeline.soft_targets.store import check_store
    from kd_pipeline.views import ViewPolicy

    expected: dict[str, Any] = {}
    if card in free and catalog.exists(card):
        expected["teacher_fingerprints"] = catalog.load(card)["fingerprints"]
    if "images" in free and catalog.exists("images"):
        images = catalog.load("images")
        expected |= {
            "class_names": images.class_names,
            "images_fingerprint": images.fingerprint,
        }
    if "splits" in free and catalog.exists("splits"):
        expected["splits_fingerprint"] = split_fingerprint(catalog.load("splits"))
    views = ViewsParams.model_validate(catalog.load("params:views"))
    policy = ViewPolicy(**views.policy_arguments())
    expected |= {"view_policy": policy.description, "num_views": views.num_cached_views()}
    soft_targets = catalog.load(cache)
    check_provenance(soft_targets.manifest.provenance, **expected)
    check_store(soft_targets)


def check_trainings(nodes: list[Node], catalog: CatalogProtocol[Any, Any]) -> None:
    """Build every model, optimiser and schedule that these nodes are to train.

    Raises:
        ParameterError: Naming the block and the parameter.
        CheckpointError: If a given teacher cannot be used.
    """
    from kd_pipeline.tracking.fetch import fetched
    from kd_pipeline.training.checks import check_student, check_teacher
    from kd_pipeline.training.data import TrainingData
    from kd_pipeline.training.settings import TrainingSettings

    asked = {name for node in nodes for name in node.inputs}
    data = TrainingData(*(catalog.load(name) for name in _DATA))
    if "params:teacher" in asked:
        teacher = TeacherParams.model_validate(catalog.load("params:teacher"))
        values = teacher.model_dump(mode="json")
        _check_imported(teacher, catalog)
        with fetched(values["given"]) as given:
            check_teacher(
                data,
                model=values["model"],
                pretrained=values["pretrained"],
                settings=None
                if teacher.training is None
                else TrainingSettings(**values["training"]),
                given=given,
            )
    if "params:chain" in asked:
        from kd_pipeline.hooks.chain_guard import check_hops

        check_hops(data, catalog)
    # The nodes of a chain ask for this block too, but only for how to train.
    if any("params:student" in node.inputs and "params:chain" not in node.inputs for node in nodes):
        student = StudentParams.model_validate(catalog.load("params:student")).model_dump(
            mode="json"
        )
        settings = TrainingSettings(**student["training"])
        check_student(data, model=student["model"], settings=settings)


def _check_imported(teacher: TeacherParams, catalog: CatalogProtocol[Any, Any]) -> None:
    views = ViewsParams.model_validate(catalog.load("params:views"))
    if views.transforms and any(given.kind == "logits" for given in teacher.given):
        rule = "be empty where `teacher.given` are logits, which are of the clean images"
        raise ParameterError("views.transforms", rule, [t.name for t in views.transforms])
