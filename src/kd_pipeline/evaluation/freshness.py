"""The refusal of stale checkpoints: each must be made from the data at hand."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.evaluation.roles import LABELS, TEACHER, intermediate_students
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.provenance import check_provenance
from kd_pipeline.soft_targets.settings import SoftTargetsParams

logger = logging.getLogger(__name__)

Students = Mapping[str, Sequence[ModelCheckpoint]]
"""The replicates of each student, by its name, in the order of the report."""

_OTHERS = ", or the pipeline that trains it from there on"
_RERUN_TEACHER = "run `kedro run --pipelines=distill --from-nodes=teacher.train_teacher`"
_RERUN_STUDENTS = f"run `kedro run --pipelines=student_distillation`{_OTHERS}"
_RERUN_CACHE = f"run `kedro run --pipelines=soft_target_caching,student_distillation`{_OTHERS}"


def check_fresh(
    teacher_fingerprints: Sequence[str],
    teacher_checkpoints: Sequence[ModelCheckpoint],
    students: Students,
    at_hand: Mapping[str, Any],
    soft_targets: SoftTargetsParams,
) -> None:
    """Refuse checkpoints of other images, splits, classes or another teacher.

    A teacher given without record of its data gives a warning only, as do imported logits, of
    which there is a fingerprint and no checkpoint. `at_hand` is the provenance of this run's data.

    Raises:
        StaleArtefactError: Naming the artefact, what differs and what to run again.
    """
    for member, checkpoint in enumerate(teacher_checkpoints):
        _check_teacher(f"{TEACHER}.checkpoints[{member}]", checkpoint, at_hand)
    if not teacher_checkpoints:
        _warn_of_unknown_data("teacher.given")
    sources = find_sources(teacher_fingerprints, students)
    fingerprints = {LABELS: [], TEACHER: list(teacher_fingerprints)}
    for student, replicates in students.items():
        for replicate, checkpoint in enumerate(replicates):
            name = f"{student}.checkpoints[{replicate}]"
            check_provenance(name, _made_from(checkpoint), at_hand, remedy=_RERUN_STUDENTS)
            _check_source(name, checkpoint, fingerprints[sources[student]], soft_targets)
        fingerprints[student] = [checkpoint.fingerprint for checkpoint in replicates]
    intermediate = intermediate_students(sources)
    check_paired({name: students[name] for name in students if name not in intermediate})


def find_sources(teacher_fingerprints: Sequence[str], students: Students) -> dict[str, str]:
    """The role that each student learnt from, by the fingerprints among its facts.

    Fingerprints that fit neither the teacher nor an earlier student count as the teacher, so that
    `check_fresh` refuses them.
    """
    found, roles = {}, {TEACHER: list(teacher_fingerprints)}
    for student, replicates in students.items():
        learnt_from = _teacher_of(replicates[0]) if replicates else []
        named = next((role for role, those in roles.items() if those == learnt_from), TEACHER)
        found[student] = named if learnt_from else LABELS
        roles[student] = [checkpoint.fingerprint for checkpoint in replicates]
    return found


def _check_teacher(name: str, checkpoint: ModelCheckpoint, at_hand: Mapping[str, Any]) -> None:
    if not {"images", "splits"} & checkpoint.facts.keys():
        _warn_of_unknown_data(name)
        at_hand = {"class_names": at_hand["class_names"]}
    check_provenance(name, _made_from(checkpoint), at_hand, remedy=_RERUN_TEACHER)


def _warn_of_unknown_data(name: str) -> None:
    unknown = "that the test images are not among them cannot be verified"
    logger.warning("`%s` has no record of its training data: %s", name, unknown)


def _check_source(
    name: str, checkpoint: ModelCheckpoint, fingerprints: list[str], soft_targets: SoftTargetsParams
) -> None:
    """Refuse another teacher, or the same one with its members averaged otherwise."""
    made_from = {"teacher": _teacher_of(checkpoint)}
    check_provenance(name, made_from, {"teacher": fingerprints}, remedy=_RERUN_CACHE)
    if (average := checkpoint.facts.get("teacher_ensemble")) is not None:
        key = "ensemble average (`soft_targets`)"
        expected = soft_targets.describe(len(fingerprints))
        check_provenance(name, {key: average}, {key: expected}, remedy=_RERUN_STUDENTS)


def _made_from(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    return {**checkpoint.facts, "class_names": list(checkpoint.class_names)}


def _teacher_of(checkpoint: ModelCheckpoint) -> list[str]:
    return list(checkpoint.facts.get("teacher", []))


def check_paired(students: Students) -> None:
    """Refuse students that differ, replicate by replicate, in more than what they learnt from.

    Raises:
        StaleArtefactError: Naming two students and what differs.
    """
    if not students:
        return
    counts = {name: len(replicates) for name, replicates in students.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise StaleArtefactError(
            "all students must have the same number of replicates, at least one, to be compared "
            f"in pairs, got {found}; {_RERUN_STUDENTS}"
        )
    reference, *others = students
    for name, replicate in itertools.product(others, range(counts[reference])):
        pair = (name, reference)
        ours, theirs = (students[one][replicate].facts.get("shared", {}) for one in pair)
        if differing := [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]:
            both = " and ".join(f"`{one}.checkpoints[{replicate}]`" for one in pair)
            raise StaleArtefactError(
                f"{both} must be trained alike to be compared, got another "
                f"{' and '.join(differing)}; {_RERUN_STUDENTS}"
            )
