"""Nothing stale is measured: every checkpoint must be made from the data at hand."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.models.checkpoint import ModelCheckpoint

logger = logging.getLogger(__name__)

_TEACHER = "teacher"
_RERUN_TEACHER = "kedro run --pipelines=distill --from-nodes=teacher.train_teacher"
_RERUN_STUDENTS = "kedro run --pipelines=student_distillation"
_RERUN_CACHE = "kedro run --pipelines=soft_target_caching,student_distillation"


def check_fresh(
    teacher: Sequence[ModelCheckpoint],
    students: Mapping[str, Sequence[ModelCheckpoint]],
    *,
    images: str,
    splits: str,
    class_names: Sequence[str],
    learnt_from: Mapping[str, str] | None = None,
    paired: Sequence[str] | None = None,
    rerun: str = _RERUN_STUDENTS,
    mixture: Mapping[str, Any] | None = None,
) -> None:
    """Refuse checkpoints of other images, splits, classes or another teacher.

    Args:
        teacher: Its members. One without facts was given from outside: that is only warned of.
        students: The replicates of each arm.
        images: Fingerprint of the images at hand.
        splits: Fingerprint of the splits at hand.
        class_names: Of the images at hand.
        learnt_from: The role that each arm has learnt from; the teacher where it is not named.
        paired: The arms that are compared in pairs; None is all of them.
        rerun: The command that trains all students again.
        mixture: How the teacher's members are mixed at hand, as `Mixing.described` says.

    Raises:
        StaleArtefactError: It names the artefact and what to run again.
    """
    expected = {"images": images, "splits": splits}
    for member, checkpoint in enumerate(teacher):
        name = f"{_TEACHER}.checkpoints[{member}]"
        _check_classes(name, checkpoint, class_names, _RERUN_TEACHER)
        if expected.keys() & checkpoint.facts.keys():
            _check_facts(name, checkpoint, expected, _RERUN_TEACHER)
        else:
            logger.warning(
                "`%s` does not say what it was trained on: that it never saw the test images "
                "cannot be verified",
                name,
            )
    models = {_TEACHER: teacher, **students}
    for arm, replicates in students.items():
        source = (learnt_from or {}).get(arm, _TEACHER)
        fingerprints = [member.fingerprint for member in models[source]]
        again = rerun if learnt_from else _RERUN_CACHE
        for replicate, checkpoint in enumerate(replicates):
            name = f"{arm}.checkpoints[{replicate}]"
            _check_classes(name, checkpoint, class_names, rerun)
            _check_facts(name, checkpoint, expected, rerun)
            _check_teacher(name, checkpoint, fingerprints, again)
            if source == _TEACHER and mixture is not None:
                _check_mixing(name, checkpoint, mixture, rerun)
    compared = {arm: students[arm] for arm in (students if paired is None else paired)}
    _check_replicates(compared, rerun)
    _check_paired(compared, rerun)


def _check_classes(
    name: str, checkpoint: ModelCheckpoint, class_names: Sequence[str], rerun: str
) -> None:
    if tuple(checkpoint.class_names) != tuple(class_names):
        raise _stale(name, "class names", list(class_names), list(checkpoint.class_names), rerun)


def _check_facts(
    name: str, checkpoint: ModelCheckpoint, expected: Mapping[str, str], rerun: str
) -> None:
    for fact, value in expected.items():
        if checkpoint.facts.get(fact) != value:
            raise _stale(name, fact, value, checkpoint.facts.get(fact), rerun)


def _check_teacher(
    name: str, checkpoint: ModelCheckpoint, fingerprints: list[str], rerun: str
) -> None:
    """An arm that learns from labels alone has no teacher, so none that could be stale."""
    learnt_from = list(checkpoint.facts.get("teacher", []))
    if learnt_from and learnt_from != fingerprints:
        raise _stale(name, "teacher", fingerprints, learnt_from, rerun)


def _check_mixing(
    name: str, checkpoint: ModelCheckpoint, mixture: Mapping[str, Any], rerun: str
) -> None:
    """Members mixed otherwise are another teacher, which nobody has learnt from."""
    learnt_from = checkpoint.facts.get("teacher_mixing")
    if learnt_from is not None and learnt_from != mixture:
        raise _stale(name, "mixture of members (`soft_targets`)", mixture, learnt_from, rerun)


def _check_replicates(students: Mapping[str, Sequence[ModelCheckpoint]], rerun: str) -> None:
    counts = {arm: len(replicates) for arm, replicates in students.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = ", ".join(f"{arm} {count}" for arm, count in counts.items())
        raise StaleArtefactError(
            "every arm must have the same number of replicates, at least one, to be compared in "
            f"pairs, got {found}; run `{rerun}`"
        )


def _check_paired(students: Mapping[str, Sequence[ModelCheckpoint]], rerun: str) -> None:
    """Arms that were trained under different settings say nothing of distillation."""
    reference, *others = students
    for arm in others:
        for replicate, (ours, theirs) in enumerate(
            zip(students[arm], students[reference], strict=True)
        ):
            shared = [checkpoint.facts.get("shared", {}) for checkpoint in (ours, theirs)]
            differing = [
                k for k in {**shared[0], **shared[1]} if shared[0].get(k) != shared[1].get(k)
            ]
            if differing:
                raise StaleArtefactError(
                    f"`{arm}.checkpoints[{replicate}]` and `{reference}.checkpoints[{replicate}]` "
                    f"must be trained alike to be compared, got another {' and '.join(differing)}; "
                    f"run `{rerun}`"
                )


def _stale(name: str, fact: str, expected: object, found: object, rerun: str) -> StaleArtefactError:
    made_from: Any = "none stated" if found is None else found
    return StaleArtefactError(
        f"`{name}` must be made from the {fact} at hand ({expected}), got {made_from}; "
        f"run `{rerun}`"
    )
