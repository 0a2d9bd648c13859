"""Checks ahead of a run: what one of its nodes would refuse later is refused before the first.

What a node trains, and what it learns from, is read off the pipeline's wiring.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kd_pipeline.config import Params
from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.provenance import check_provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams
from kd_pipeline.views.settings import ViewsParams

if TYPE_CHECKING:
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.soft_targets.manifest import Manifest
    from kd_pipeline.soft_targets.store import SoftTargets

Catalog = CatalogProtocol[Any, Any]
Block = TypeVar("Block", bound=Params)

_TEACHER = "teacher"
_CHECKPOINTS = ".checkpoints"
_CACHING = "params:soft_target_caching"
_SEARCH = ".search"


@dataclass(frozen=True)
class StudentNode:
    """A node that trains students."""

    name: str
    """Of the student, its namespace and its block of parameters."""
    cache: str | None
    """The soft targets that it learns from, by their name in the catalog."""
    card: str | None
    """The card of the teacher that must have made them."""
    live: bool
    """Whether the teacher labels beside it, as `soft_target_caching` says."""
    counts_teacher: bool
    """Whether it takes from the teacher only how much that computes."""
    teaches: bool
    """Whether another student may learn from it."""


def training_nodes(pipeline: Pipeline) -> list[Node]:
    """The nodes that train, in the order in which they run; those of a sweep train many times."""
    ends = (_CHECKPOINTS, _SEARCH)
    return [node for node in pipeline.nodes if any(o.endswith(ends) for o in node.outputs)]


def student_nodes(pipeline: Pipeline) -> list[StudentNode]:
    """Those that train students."""
    found = []
    for node in training_nodes(pipeline):
        if node.namespace == _TEACHER:
            continue
        by_kind = {name.rpartition(".")[2]: name for name in node.inputs}
        name = str(node.namespace)
        found.append(
            StudentNode(
                name,
                by_kind.get("soft_targets"),
                by_kind.get("card"),
                live=_CACHING in node.inputs,
                counts_teacher="checkpoints" in by_kind and _CACHING not in node.inputs,
                teaches=f"{name}.card" in node.outputs,
            )
        )
    return found


def load_block(catalog: Catalog, name: str, kind: type[Block]) -> Block:
    """A block of parameters as its typed settings."""
    return kind.model_validate(catalog.load(f"params:{name}"))


def check_settings(pipeline: Pipeline, catalog: Catalog) -> None:
    """Refuse settings that fit no run of this pipeline, each by itself legal.

    Raises:
        ParameterError: Naming the block and the parameter.
    """
    students = student_nodes(pipeline)
    arms = {one.name: load_block(catalog, one.name, ArmParams) for one in students}
    for student in students:
        _check_arm(student, arms[student.name])
    _check_labels_of_mixed_images(arms, catalog)
    made = {name for name in pipeline.all_outputs() if name.rpartition(".")[2] == "soft_targets"}
    if made or any(student.cache for student in students):
        load_block(catalog, "views", ViewsParams).num_cached_views()
    if made:
        caching = load_block(catalog, "soft_target_caching", SoftTargetCachingParams)
        for student in students:
            if student.cache in made and caching.temperature is not None:
                check_top_k(student.name, arms[student.name], caching.temperature)
        _check_members(made, arms, caching, catalog)
    makes_teacher = _TEACHER in {node.namespace for node in training_nodes(pipeline)}
    if makes_teacher or any(student.live for student in students):
        _check_given_logits(students, catalog)
    _check_countable(students, catalog)
    if exports_models(pipeline, catalog):
        _check_export(pipeline, catalog)


def exports_models(pipeline: Pipeline, catalog: Catalog) -> bool:
    """Whether this run exports the models that it trains."""
    nodes = [node for node in pipeline.nodes if "exported_models" in node.outputs]
    if not any(name.endswith(_CHECKPOINTS) for node in nodes for name in node.inputs):
        return False  # The stage by itself checks as its first step.
    return load_block(catalog, "model_export", ModelExportParams).enabled


def _check_export(pipeline: Pipeline, catalog: Catalog) -> None:
    from kd_pipeline.export.jobs import TEACHER_TARGETS
    from kd_pipeline.export.targets import check_installed

    params = load_block(catalog, "model_export", ModelExportParams)
    node = next(node for node in pipeline.nodes if "exported_models" in node.outputs)
    roles = [n.removesuffix(_CHECKPOINTS) for n in node.inputs if n.endswith(_CHECKPOINTS)]
    for role in params.models:
        if role not in roles:
            rule = "be models of this run"
            raise ParameterError("model_export.models", rule, role, legal=roles)
    if params.source is not None:
        rule = "be null in a whole run: `kedro run --pipelines=model_export` exports other models"
        raise ParameterError("model_export.source", rule, params.source.kind)
    measures_teacher = _TEACHER in params.models
    check_installed([*params.targets, *(TEACHER_TARGETS if measures_teacher else ())])
    if measures_teacher and (unfit := _without_network(catalog)):
        rule = "leave out a teacher that is a graph or logits, of which there is no network"
        raise ParameterError("model_export.models", rule, unfit[0])


def _without_network(catalog: Catalog) -> list[str]:
    given = load_block(catalog, _TEACHER, TeacherParams).given
    return [one.kind for one in given if one.kind in ("onnx", "logits")]


def _check_countable(students: list[StudentNode], catalog: Catalog) -> None:
    counting = [student.name for student in students if student.counts_teacher]
    if counting and (unfit := _without_network(catalog)):
        rule = f"be of a network, whose cost gives {counting[0]} its number of epochs"
        raise ParameterError("teacher.given.kind", rule, unfit[0])


def _check_arm(student: StudentNode, arm: ArmParams) -> None:
    if not student.cache and not student.live and arm.soft_weight > 0:
        rule = "be 0 for an arm without a teacher"
        raise ParameterError(f"{student.name}.soft_weight", rule, arm.soft_weight)
    if not student.teaches and arm.own_settings:
        rule = "be null for a student that is compared: all of those share that of `student`"
        name = arm.own_settings[0]
        raise ParameterError(f"{student.name}.{name}", rule, getattr(arm, name))


def _check_labels_of_mixed_images(arms: dict[str, ArmParams], catalog: Catalog) -> None:
    needing = [name for name, arm in arms.items() if arm.soft_loss.record.needs_labels]
    if needing and load_block(catalog, "views", ViewsParams).policy.mixes:
        rule = "be one that needs no labels where views mix two images"
        loss = arms[needing[0]].soft_loss.name
        raise ParameterError(f"{needing[0]}.soft_loss", rule, loss)


def check_top_k(name: str, arm: ArmParams, cached_at: float) -> None:
    """Refuse an arm that a top-k cache of this temperature cannot serve."""
    try:
        arm.check_top_k(cached_at=cached_at)
    except ParameterError as error:
        raise error.within(name) from error


def _check_members(
    made: set[str], arms: dict[str, ArmParams], caching: SoftTargetCachingParams, catalog: Catalog
) -> None:
    """Whether the members of each teacher whose cache is made can be averaged as asked."""
    num_members = load_block(catalog, _TEACHER, TeacherParams).num_members
    soft_targets = load_block(catalog, "soft_targets", SoftTargetsParams)
    weights = soft_targets.member_weights
    if caching.top_k is not None:
        soft_targets.fitted_temperature(None, is_top_k=True, num_members=num_members)
    if caching.top_k is not None and num_members > 1:
        rule = "be null for a teacher of several members: a top-k cache cannot be averaged"
        raise ParameterError("soft_target_caching.top_k", rule, caching.top_k)
    soft_targets.shares(num_members)
    for name in sorted(cache.rpartition(".")[0] for cache in made if "." in cache):
        if weights is not None:
            rule = f"be null where {name} teaches too: the weights are those of one teacher"
            raise ParameterError("soft_targets.member_weights", rule, list(weights))
        arm = arms[name] if name in arms else load_block(catalog, name, ArmParams)
        student = load_block(catalog, "student", StudentParams).for_arm(arm)
        if caching.top_k is not None and student.num_replicates > 1:
            rule = "be 1 where `soft_target_caching.top_k` is set: such caches cannot be averaged"
            raise ParameterError(f"{name}.num_replicates", rule, student.num_replicates)


def _check_given_logits(students: list[StudentNode], catalog: Catalog) -> None:
    if not load_block(catalog, _TEACHER, TeacherParams).given_logits:
        return
    if live := [student.name for student in students if student.live]:
        rule = f"be a model where {live[0]} learns from a live teacher: logits need no pixels"
        raise ParameterError("teacher.given.kind", rule, "logits")
    transforms = load_block(catalog, "views", ViewsParams).transforms
    if transforms:
        rule = "be empty where `teacher.given` are logits, which are of the clean images"
        raise ParameterError("views.transforms", rule, [one.name for one in transforms])


def check_caches(pipeline: Pipeline, catalog: Catalog) -> None:
    """Refuse soft targets on disk that do not match what the run would use them with.

    Only what the run does not make anew is compared. A store is read once here, checksums
    included; a run that begins with the students has little else to wait for.

    Raises:
        StaleArtefactError: If they are missing, damaged or made from something else.
        ParameterError: If they do not hold what a student asks for.
    """
    free = pipeline.inputs()
    used: dict[str, list[StudentNode]] = {}
    for student in student_nodes(pipeline):
        if student.cache is not None and student.cache in free:
            used.setdefault(student.cache, []).append(student)
    for cache, students in sorted(used.items()):
        manifest = _check_cache(cache, students[0].card, free, catalog)
        params = load_block(catalog, "soft_targets", SoftTargetsParams)
        params.shares(manifest.num_members)
        manifest.fitted_temperature(params)
        if manifest.encoding.temperature is not None:
            for student in students:
                arm = load_block(catalog, student.name, ArmParams)
                check_top_k(student.name, arm, manifest.encoding.temperature)


def _check_cache(cache: str, card: str | None, free: set[str], catalog: Catalog) -> "Manifest":
    from kd_pipeline.data.splits import split_fingerprint
    from kd_pipeline.soft_targets.store import check_store

    views = load_block(catalog, "views", ViewsParams)
    at_hand: dict[str, Any] = {
        "view_policy": views.policy.description,
        "num_views": views.num_cached_views(),
    }
    if card is not None and card in free and catalog.exists(card):
        at_hand["teacher"] = catalog.load(card)["fingerprints"]
        _check_code(card, catalog)
    if "images" in free and catalog.exists("images"):
        images = catalog.load("images")
        at_hand |= {"class_names": images.class_names, "images": images.fingerprint}
    if "splits" in free and catalog.exists("splits"):
        at_hand["splits"] = split_fingerprint(catalog.load("splits"))
    soft_targets: SoftTargets = catalog.load(cache)
    soft_targets.check(at_hand, name=cache)
    if card is not None and "teacher" in at_hand:
        _check_labels(card, free, catalog)
    check_store(soft_targets)
    return soft_targets.manifest


def _check_code(card: str, catalog: Catalog) -> None:
    """Refuse to serve the logits of a kept teacher whose code computes others by now."""
    from kd_pipeline.import_path import MODULE
    from kd_pipeline.models.checkpoint import build_classifier

    checkpoints = card.removesuffix(".card") + _CHECKPOINTS
    if any(name.startswith(MODULE) for name in catalog.load(card)["architectures"]):
        # Without its files a teacher cannot have changed: students train from its cache alone.
        for checkpoint in catalog.load(checkpoints) if catalog.exists(checkpoints) else []:
            build_classifier(checkpoint)


def _check_labels(card: str, free: set[str], catalog: Catalog) -> None:
    """Refuse a teacher that was trained on other labels: evaluation would, after the students."""
    from kd_pipeline.data.dataset import LabelledImages

    made_from = catalog.load(card).get("labels")
    names = ("images", "examples", "splits")
    if made_from is None or not all(name in free and catalog.exists(name) for name in names):
        return
    labels = LabelledImages(*map(catalog.load, names)).labelled_provenance["labels"]
    remedy = f"--from-nodes={_training_node(card.rpartition('.')[0])} makes it anew"
    check_provenance(card, {"labels": made_from}, {"labels": labels}, remedy=remedy)


def check_checkpoints(pipeline: Pipeline, catalog: Catalog) -> None:
    """Refuse a run that reads models which no earlier run has left.

    Raises:
        CheckpointError: Naming them in the catalog.
    """
    for name in sorted(pipeline.inputs()):
        if name.endswith(_CHECKPOINTS) and not catalog.exists(name):
            node = _training_node(name.removesuffix(_CHECKPOINTS))
            raise CheckpointError(
                f"`{name}` must be there for this run: --from-nodes={node} makes it"
            )


def _training_node(role: str) -> str:
    return f"{role}.train_{'teacher' if role == _TEACHER else 'student'}"


def check_trainings(nodes: list[Node], catalog: Catalog, *, exports: bool = False) -> None:
    """Build every model, optimiser and schedule that these nodes are to train.

    With `exports`, also export each kind of model that the run is to export, untrained.

    Raises:
        ExportError: If a model cannot be exported, or its file would be too large.
        ParameterError: Naming the block and the parameter.
        CheckpointError: If a given teacher cannot be used.
        DataError: If logits computed elsewhere leave out examples of the transfer set.
    """
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.training.checks import check_views

    data = LabelledImages(*(catalog.load(name) for name in ("images", "examples", "splits")))
    names = [str(node.namespace) for node in nodes]
    views = load_block(catalog, "views", ViewsParams)
    check_views(data, views.transforms, block="views")
    if _TEACHER in names:
        _check_teacher(data, catalog)
    if students := [name for name in names if name != _TEACHER]:
        _check_students(data, students, catalog)
    if exports:
        _check_exports(data, catalog)


def _check_exports(data: "LabelledImages", catalog: Catalog) -> None:
    from kd_pipeline.export.jobs import check_exportable
    from kd_pipeline.training.initial import initial_model

    params = load_block(catalog, "model_export", ModelExportParams)
    student = load_block(catalog, "student", StudentParams)
    arms = [load_block(catalog, role, ArmParams) for role in params.models if role != _TEACHER]
    own = (student.for_arm(arm) for arm in arms)
    kinds = {(one.model.model_dump_json(), one.pretrained): one for one in own}
    for one in kinds.values():
        initial = initial_model(data, one.model, one.pretrained, data.ids("validation"))
        check_exportable(initial(0), one.model, data, params)


def _check_teacher(data: "LabelledImages", catalog: Catalog) -> None:
    from kd_pipeline.labelling.members import read_given_logits
    from kd_pipeline.soft_targets.encoding import Encoding
    from kd_pipeline.tracking.fetch import fetched
    from kd_pipeline.training.checks import check_teacher, check_views

    caching = load_block(catalog, "soft_target_caching", SoftTargetCachingParams)
    Encoding(caching.top_k, caching.temperature).check(len(data.images.class_names))
    params = load_block(catalog, _TEACHER, TeacherParams)
    if params.given_logits:
        read_given_logits(params.given_logits, data)
        return
    check_views(data, params.transforms, block=_TEACHER)
    with fetched(params.given, catalog.load("tracking_store")) as models:
        check_teacher(data, params, models)


def _check_students(data: "LabelledImages", names: list[str], catalog: Catalog) -> None:
    from kd_pipeline.training.checks import check_arm, check_shared_loss, check_student

    student = load_block(catalog, "student", StudentParams)
    check_student(data, student)
    student = student.model_copy(update={"quantisation": None})  # Teaching ones stay in float.
    for name in names:
        arm = load_block(catalog, name, ArmParams)
        check_arm(data, arm, block=name)
        check_shared_loss(student.for_arm(arm), arm, block=name)
        if arm.own_settings:
            check_student(data, student.for_arm(arm), block=name)
