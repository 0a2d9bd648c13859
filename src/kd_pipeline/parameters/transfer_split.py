"""The block `transfer_split`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.parameters.base import OpenFraction, Params, PositiveInt, Seed


class TeacherShare(Params):
    """Which labelled examples train the teacher: a number per class or a share of the pool."""

    labels_per_class: PositiveInt | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.labels_per_class is None) == (self.fraction is None):
            raise ValueError("give exactly one of `labels_per_class` and `fraction`")
        return self


class TransferShare(Params):
    """Which examples the student learns from."""

    relation: Literal["equal", "overlapping", "disjoint"] = "overlapping"
    """equal: the teacher's examples; overlapping: drawn from the whole pool; disjoint: from the
    pool without the teacher's examples."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    labelled: bool = False
    """Whether the students may use the labels of transfer examples that the teacher did not
    train on. The teacher's own labels are always open to them: the baseline gets every label
    that the teacher had."""
    excluded_classes: tuple[str, ...] = ()


class TransferSplitParams(Params):
    """`transfer_split`: who sees which example, by seed and example id."""

    seed: Seed = 0
    test_fraction: OpenFraction = 0.2
    """Share of the images taken as the test set where the source brings none."""
    validation_fraction: OpenFraction = 0.1
    """Share of the remaining images."""
    teacher: TeacherShare
    transfer: TransferShare = TransferShare()
