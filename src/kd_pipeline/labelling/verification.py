"""Does the cache hold what the teacher says? Random rows are labelled again and compared.

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
A change below the bound cannot be told from noise: verify in float32 what was cached in float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import SoftTargetMismatchError
from kd_pipeline.labelling.predictor import Predictor, open_predictor
from kd_pipeline.models.checkpoint import ModelCheckpoint, check_classes
from kd_pipeline.models.predict import resolve_device, resolve_precision
from kd_pipeline.randomness import derive_seed
from kd_pipeline.soft_targets.manifest import check_provenance
from kd_pipeline.soft_targets.store import SoftTargets, check_store
from kd_pipeline.views import ViewPolicy

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

    @property
    def excess(self) -> NDArray[np.float64]:
        """Difference over tolerance: above 1, or NaN, is a mismatch."""
        return np.asarray(np.abs(self.cached - self.recomputed) / self.tolerance)


def verify_soft_targets(
    soft_targets: SoftTargets,
    teacher: Sequence[ModelCheckpoint],
    images: ImageSet,
    *,
    splits_fingerprint: str,
    policy: ViewPolicy,
    num_views: int,
    seed: int,
    num_rows: int,
    batch_size: int,
    device: str,
    precision: str,
) -> dict[str, Any]:
    """Label random rows again and compare them with the cache.

    Args:
        soft_targets: The cache, dense or of the top k.
        teacher: One checkpoint per member.
        images: The images at hand.
        splits_fingerprint: Of the splits at hand.
        policy: How views are drawn in this run.
        num_views: Views per example in this run.
        seed: Which rows.
        num_rows: How many, spread evenly over members and views.
        batch_size: Images at a time.
        device: `auto`, or a torch device type.
        precision: `auto`, `float32` or `bfloat16`.

    Returns:
        JSON-able: rows, arithmetic, noise, worst_absolute_difference, and `worst`: the logit that
        comes closest to its tolerance, with teacher, view, example_id and class.

    Raises:
        StaleArtefactError: If a part is damaged or missing, or the cache was made from something
            else than what is at hand.
        SoftTargetMismatchError: If a row differs by more than its tolerance.
    """
    for member in teacher:
        check_classes(member, images.class_names, name="teacher.checkpoints")
    check_provenance(
        soft_targets.manifest.provenance,
        class_names=images.class_names,
        teacher_fingerprints=tuple(member.fingerprint for member in teacher),
        images_fingerprint=images.fingerprint,
        splits_fingerprint=splits_fingerprint,
        view_policy=policy.description,
        num_views=num_views,
    )
    check_store(soft_targets)
    partners = soft_targets.example_ids if policy.mixes else None
    draws = draw_rows(soft_targets, seed=seed, num_rows=num_rows)
    arithmetic = coarser_arithmetic(soft_targets.manifest.facts, device, precision)
    compared: list[Compared] = []
    for number, checkpoint in enumerate(teacher):
        mine = [draw for draw in draws if draw.member == number]
        if not mine:
            continue
        predictor = open_predictor(
            checkpoint,
            images,
            batch_size=batch_size,
            device=device,
            precision=precision,
            policy=policy,
            partners=partners,
        )
        compared += [_compare(soft_targets, draw, predictor, NOISE[arithmetic]) for draw in mine]
    report = _report(compared, soft_targets.manifest.provenance.class_names)
    return {**report, "arithmetic": arithmetic, "noise": NOISE[arithmetic], "seed": seed}


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


def coarser_arithmetic(facts: Mapping[str, Any], device: str, precision: str) -> str:
    """The coarser of the arithmetics in which the cache was made and is now verified.

    A cache that does not say on which device it was made may come from any.
    """
    device = resolve_device(device)
    now = _arithmetic(device, resolve_precision(precision, device))
    then = _arithmetic(str(facts.get("device")), str(facts.get("precision")))
    return max(now, then, key=list(NOISE).index)


def _arithmetic(device: str, precision: str) -> str:
    if precision != "float32":
        return "bfloat16"
    return "float32" if device == "cpu" else "tensorfloat32"


def _compare(soft_targets: SoftTargets, draw: Draw, predictor: Predictor, noise: float) -> Compared:
    said = f"verify teacher {draw.member}, view {draw.view}"
    logits = predictor.logits(draw.example_ids, view=draw.view, description=said).double().numpy()
    cached, class_ids = _cached_rows(soft_targets, draw)
    largest = np.abs(logits).max(axis=1, keepdims=True)
    # A row of small logits is as noisy as its neighbours: they come from activations alike.
    noisy = noise * np.maximum(largest, largest.mean()) + HALF_SUBNORMAL
    if class_ids is None:
        columns = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        return Compared(draw, cached, logits, HALF_ROUNDOFF * np.abs(logits) + noisy, columns)
    temperature = float(soft_targets.manifest.encoding.temperature or 1.0)
    listed, tail = split_tail(logits, class_ids, temperature=temperature)
    # The tail moves no further than the logits it sums up, and is rounded once more itself.
    rounding = HALF_ROUNDOFF * np.concatenate([np.abs(listed), np.abs(tail) + largest], axis=1)
    columns = np.concatenate([class_ids, np.full((len(tail), 1), -1)], axis=1)
    both = np.concatenate([listed, tail], axis=1)
    return Compared(draw, cached, both, rounding + noisy, columns)


def split_tail(
    logits: NDArray[np.float64], class_ids: NDArray[np.int64], *, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits [n, k] of the classes listed, and [n, 1] of all others in one.

    Args:
        logits: [n, num_classes].
        class_ids: [n, k].
        temperature: At which the others' probabilities add up.
    """
    others = logits.copy()
    np.put_along_axis(others, class_ids, -np.inf, axis=1)
    tail = temperature * np.logaddexp.reduce(others / temperature, axis=1, keepdims=True)
    return np.take_along_axis(logits, class_ids, axis=1), tail


def _cached_rows(
    soft_targets: SoftTargets, draw: Draw
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """The drawn rows of a cache in order, with the tail as last column if there is one."""
    logits, class_ids = [], []
    for part in soft_targets.parts(member=draw.member, view=draw.view):
        rows = np.flatnonzero(np.isin(part.example_ids, draw.example_ids))
        values = part.logits[rows].astype(np.float64)
        if part.class_ids is not None and part.tail_logits is not None:
            class_ids.append(part.class_ids[rows].astype(np.int64))
            values = np.concatenate([values, part.tail_logits[rows, None]], axis=1)
        logits.append(values)
    return np.concatenate(logits), np.concatenate(class_ids) if class_ids else None


def _report(compared: Iterable[Compared], class_names: tuple[str, ...]) -> dict[str, Any]:
    num_rows = num_wrong = 0
    largest, worst_excess, worst = 0.0, -1.0, {}
    for some in compared:
        # NaN compares with nothing: it must count as infinitely far off.
        excess = np.nan_to_num(some.excess, nan=np.inf)
        num_rows += len(excess)
        num_wrong += int((excess > 1).any(axis=1).sum())
        largest = max(largest, float(np.abs(some.cached - some.recomputed).max()))
        row, column = np.unravel_index(excess.argmax(), excess.shape)
        if excess[row, column] > worst_excess:
            worst_excess = float(excess[row, column])
            worst = _describe(some, int(row), int(column), class_names)
    if num_wrong:
        raise SoftTargetMismatchError(
            "`soft_targets` must hold what the teacher says, got {cached:.5g} for {class!r} where "
            "it says {recomputed:.5g} (tolerance {tolerance:.2g}), teacher {teacher}, view {view}, "
            "example {example_id}".format(**worst)
            + f"; {num_wrong} of the {num_rows} rows compared differ; "
            "cache them anew: kedro run --pipelines=soft_target_caching"
        )
    return {"rows": num_rows, "worst_absolute_difference": largest, "worst": worst}


def _describe(
    some: Compared, row: int, column: int, class_names: tuple[str, ...]
) -> dict[str, Any]:
    class_id = int(some.columns[row, column])
    return {
        "teacher": some.draw.member,
        "view": some.draw.view,
        "example_id": int(some.draw.example_ids[row]),
        "class": class_names[class_id] if class_id >= 0 else "the tail",
        "cached": float(some.cached[row, column]),
        "recomputed": float(some.recomputed[row, column]),
        "absolute_difference": float(abs(some.cached - some.recomputed)[row, column]),
        "tolerance": float(some.tolerance[row, column]),
    }
