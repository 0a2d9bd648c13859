"""Looks ahead: whatever one of a run's trainings would refuse is refused before the first."""

from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.errors import ParameterError
from kd_pipeline.parameters import ArmParams, StudentParams, TeacherParams, ViewsParams

CHECKPOINTS = ".checkpoints"
SOFT_TARGETS = "soft_targets"
TEACHER_CARD = "teacher.card"
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
        if SOFT_TARGETS in node.inputs or block not in node.inputs or node.namespace == "teacher":
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
    if SOFT_TARGETS not in pipeline.inputs() or not training_nodes(pipeline):
        return
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.data.views import ViewPolicy
    from kd_pipeline.soft_targets.manifest import check_provenance

    expected: dict[str, Any] = {}
    free = pipeline.inputs()
    if TEACHER_CARD in free and catalog.exists(TEACHER_CARD):
        expected["teacher_fingerprints"] = catalog.load(TEACHER_CARD)["fingerprints"]
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
    expected |= {"view_policy": policy.description, "num_views": views.num_views}
    check_provenance(catalog.load(SOFT_TARGETS).manifest.provenance, **expected)


def check_trainings(nodes: list[Node], catalog: CatalogProtocol[Any, Any]) -> None:
    """Build every model, optimiser and schedule that these nodes are to train.

    Raises:
        ParameterError: Naming the block and the parameter.
        CheckpointError: If a given teacher cannot be used.
    """
    from kd_pipeline.training.checks import check_student, check_teacher
    from kd_pipeline.training.settings import TrainingSettings
    from kd_pipeline.training.students import TrainingData

    asked = {name for node in nodes for name in node.inputs}
    data = TrainingData(*(catalog.load(name) for name in _DATA))
    if "params:teacher" in asked:
        teacher = TeacherParams.model_validate(catalog.load("params:teacher"))
        values = teacher.model_dump(mode="json")
        check_teacher(
            data,
            model=values["model"],
            pretrained=values["pretrained"],
            settings=None if teacher.training is None else TrainingSettings(**values["training"]),
            checkpoints=values["checkpoints"],
        )
    if "params:student" in asked:
        student = StudentParams.model_validate(catalog.load("params:student")).model_dump(
            mode="json"
        )
        settings = TrainingSettings(**student["training"])
        check_student(data, model=student["model"], settings=settings)
