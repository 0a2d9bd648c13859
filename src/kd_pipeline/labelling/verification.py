"""The comparison of a cache with its teacher: random rows are labelled again.

A cached logit differs from a new one by two things, and each has its bound:

1. *Rounding to float16*, at most 2^-11 of the logit's size (half a unit in its last place; below
   2^-14, where float16 has no exponents left, 2^-25).
2. *Noise of the forward pass*: the same sums in another order, as another batch size, thread
   count or device brings, and what the arithmetic rounds. It is proportional to the activations
   and not to the single logit, so it is bounded by a share of the largest logit of the row. That
   share is `NOISE`, of the coarser of the two arithmetics, then and now.

Measured on a CPU as a share of a row's largest logit, worst row of six architectures (small_cnn,
mlp, cifar_resnet, ResNet-18, MobileNetV3-small, DenseNet-121) with initial weights, and of the
first five trained briefly: another batch size in float32 2^-19; bfloat16 against float32 2^-5, of
the trained ones 2^-6. Errors thus grow to 2^4 times the unit roundoff of bfloat16 (2^-9). The same
growth makes 2^-7 of TensorFloat-32's (2^-11), in which GPUs convolve by default where float32 is
asked for; that share is derived and not measured. Each bound is at least twice these, so that an
honest cache passes; a row of another example or view, or of another teacher, is off by far more.
A change below the bound passes as noise: verify in float32 what was cached in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.errors import SoftTargetMismatchError
from kd_pipeline.labelling.members import Member, Predictor, check_members, open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams, SoftTargetVerificationParams
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.randomness import derive_seed
from kd_pipeline.soft_targets.store import SoftTargets, check_store
from kd_pipeline.teacher_logits import TeacherLogits, tail_logit, with_tail
from kd_pipeline.views.settings import ViewsParams

HALF_ROUNDOFF = 2.0**-11
HALF_SUBNORMAL = 2.0**-25
NOISE = {"float32": 2.0**-12, "tensorfloat32": 2.0**-6, "bfloat16": 2.0**-4}
"""Share of a row's largest logit that the forward pass may be off by, from fine to coarse."""


@dataclass(frozen=True)
class Draw:
    """Rows of one member and view that are to be labelled again."""

    member: int
    view: int
    example_ids: NDArray[np.int64]
    """[n], ascending."""


@dataclass(frozen=True)
class Compared:
    """Rows of one draw, cached and labelled again; the last axis is the columns compared."""

    draw: Draw
    cached: NDArray[np.float64]
    recomputed: NDArray[np.float64]
    tolerance: NDArray[np.float64]
    columns: NDArray[np.int64]
    """[n, columns], the class of each, -1 for the tail of a top-k cache."""

    @cached_property
    def difference(self) -> NDArray[np.float64]:
        """Absolute."""
        return np.asarray(np.abs(self.cached - self.recomputed))

    @cached_property
    def excess(self) -> NDArray[np.float64]:
        """Difference over tolerance: above 1 is a mismatch. NaN is infinitely far off."""
        return np.nan_to_num(self.difference / self.tolerance, nan=np.inf)

    def describe_worst(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The logit that comes closest to its tolerance, or is furthest beyond it."""
        at = np.unravel_index(self.excess.argmax(), self.excess.shape)
        class_id = int(self.columns[at])
        return {
            "teacher": self.draw.member,
            "view": self.draw.view,
            "example_id": int(self.draw.example_ids[at[0]]),
            "class": class_names[class_id] if class_id >= 0 else "the tail",
            "cached": float(self.cached[at]),
            "recomputed": float(self.recomputed[at]),
            "absolute_difference": float(self.difference[at]),
            "tolerance": float(self.tolerance[at]),
        }


def verify_soft_targets(
    soft_targets: SoftTargets,
    teacher: Sequence[Member],
    data: LabelledImages,
    params: SoftTargetVerificationParams,
    caching: SoftTargetCachingParams,
    views: ViewsParams,
) -> dict[str, Any]:
    """Label random rows again and compare them with the cache.

    Returns:
        JSON-able: rows, arithmetic, noise, worst_absolute_difference, and `worst`: the logit that
        comes closest to its tolerance, with teacher, view, example_id and class.

    Raises:
        StaleArtefactError: If a part is damaged or missing, or the cache was made from something
            else than what is at hand.
        CheckpointError: As `check_members`.
        SoftTargetMismatchError: If a row differs by more than its tolerance.
    """
    check_members(teacher, data)
    made_with = {"view_policy": views.policy.description, "num_views": views.num_cached_views()}
    fingerprints = [member.fingerprint for member in teacher]
    soft_targets.check({**data.provenance, **made_with, "teacher": fingerprints})
    check_store(soft_targets)
    arithmetic = coarser_arithmetic(soft_targets.manifest.facts, caching)
    noise, ids = NOISE[arithmetic], soft_targets.example_ids
    draws = draw_rows(soft_targets, seed=params.seed, num_rows=params.num_rows)
    compared: list[Compared] = []
    for number, of_member in groupby(draws, key=attrgetter("member")):
        predictor = open_predictor(teacher[number], data, ids, caching, policy=views.policy)
        compared += [_compare(soft_targets, draw, predictor, noise) for draw in of_member]
    report = _report(compared, data.images.class_names)
    return {**report, "arithmetic": arithmetic, "noise": noise, "seed": params.seed}


def draw_rows(soft_targets: SoftTargets, *, seed: int, num_rows: int) -> list[Draw]:
    """Draw rows at random, as evenly over members and views as their number allows.

    Where there are more members and views than rows, some are left out at random.

    Returns:
        By member and view; no row twice, and all rows where `num_rows` is at least their number.
    """
    provenance = soft_targets.manifest.provenance
    members, views = len(provenance.teacher_fingerprints), provenance.num_views
    ids = soft_targets.example_ids
    generator = np.random.default_rng(derive_seed(seed, "soft_target_verification"))
    quota, rest = divmod(min(num_rows, members * views * len(ids)), members * views)
    with_one_more = set(generator.permutation(members * views)[:rest].tolist())
    draws = []
    for cell in range(members * views):
        count = quota + (cell in with_one_more)
        if count:
            picked = generator.choice(len(ids), size=count, replace=False)
            draws.append(Draw(cell // views, cell % views, ids[np.sort(picked)]))
    return draws


def coarser_arithmetic(facts: Mapping[str, Any], computing: Computing) -> str:
    """The coarser of the arithmetics in which the cache was made and is now verified."""
    device = resolve_device(computing.device)
    now = _arithmetic(device, resolve_precision(computing.precision, device))
    then = _arithmetic(str(facts.get("device")), str(facts.get("precision")))
    return max(now, then, key=list(NOISE).index)


def _arithmetic(device: str, precision: str) -> str:
    if precision != "float32":
        return "bfloat16"
    return "float32" if device == "cpu" else "tensorfloat32"


def _compare(soft_targets: SoftTargets, draw: Draw, predictor: Predictor, noise: float) -> Compared:
    description = f"verify teacher {draw.member}, view {draw.view}"
    rows = np.searchsorted(soft_targets.example_ids, draw.example_ids)
    logits = predictor.logits(rows, view=draw.view, description=description).double()
    cached = _cached_rows(soft_targets, draw)
    largest = logits.abs().amax(dim=1, keepdim=True)
    # A row of small logits is as noisy as its neighbours: they come from activations alike.
    noisy = noise * torch.maximum(largest, largest.mean()) + HALF_SUBNORMAL
    if cached.class_ids is None:
        columns = torch.arange(logits.shape[1]).expand(logits.shape)
        rounding = HALF_ROUNDOFF * logits.abs()
        return _compared(draw, cached.logits, logits, rounding + noisy, columns)
    temperature = float(soft_targets.manifest.encoding.temperature or 1.0)
    tail = tail_logit(logits, cached.class_ids, temperature=temperature)[:, None]
    listed = logits.gather(1, cached.class_ids)
    # The tail moves no further than the logits it sums up, and is rounded once more itself.
    rounding = HALF_ROUNDOFF * torch.cat([listed.abs(), tail.abs() + largest], dim=1)
    columns = torch.cat([cached.class_ids, torch.full_like(tail, -1, dtype=torch.int64)], dim=1)
    recomputed = torch.cat([listed, tail], dim=1)
    return _compared(draw, with_tail(cached), recomputed, rounding + noisy, columns)


def _compared(draw: Draw, *columns: torch.Tensor) -> Compared:
    return Compared(draw, *(values.numpy() for values in columns))


def _cached_rows(soft_targets: SoftTargets, draw: Draw) -> TeacherLogits[torch.Tensor]:
    """The drawn rows of a cache in order: float64 logits and int64 class ids."""
    found = [
        part.rows[np.isin(part.example_ids, draw.example_ids)]
        for part in soft_targets.parts(member=draw.member, view=draw.view)
    ]
    columns = zip(*((r.logits, r.class_ids, r.tail_logits) for r in found), strict=True)
    logits, *top_k = (_widened(np.concatenate(c)) for c in columns if c[0] is not None)
    return TeacherLogits(logits, *top_k)


def _widened(values: NDArray[Any]) -> torch.Tensor:
    wide = np.float64 if values.dtype.kind == "f" else np.int64
    return torch.from_numpy(values.astype(wide))


def _report(compared: Sequence[Compared], class_names: Sequence[str]) -> dict[str, Any]:
    num_rows = sum(len(some.excess) for some in compared)
    num_wrong = sum(int((some.excess > 1).any(axis=1).sum()) for some in compared)
    worst = max(compared, key=lambda some: some.excess.max()).describe_worst(class_names)
    if num_wrong:
        raise SoftTargetMismatchError(
            "`soft_targets` must hold the teacher's logits, got {cached:.5g} for {class!r} where "
            "it gives {recomputed:.5g} (tolerance {tolerance:.2g}), teacher {teacher}, "
            "view {view}, example {example_id}".format(**worst)
            + f"; {num_wrong} of the {num_rows} rows compared differ; "
            "cache them anew: kedro run --pipelines=soft_target_caching"
        )
    largest = max(float(some.difference.max()) for some in compared)
    return {"rows": num_rows, "worst_absolute_difference": largest, "worst": worst}
