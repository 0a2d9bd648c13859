"""The block `soft_targets`: how a cache is read, and a teacher's fitted temperatures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from kd_pipeline.config import Params
from kd_pipeline.errors import ParameterError

Kind = Literal["geometric", "arithmetic"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CALIBRATION = "soft_targets.teacher_calibration"
_REMEDY = "; run soft_target_caching again"
Weights = tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...]


@dataclass(frozen=True)
class Calibration:
    """Temperatures at which a teacher's NLL on the labelled validation rows is least."""

    temperatures: Mapping[Kind, float]
    """By average of the members, each taken at temperature 1; all alike for a single member."""
    shares: tuple[float, ...]
    """Of the members in these averages."""
    num_examples: int


class SoftTargetsParams(Params):
    """`soft_targets`: how cached members become one teacher. Another way costs no forward pass."""

    ensemble_average: Kind = "geometric"
    """geometric: softmax of the mean logits; arithmetic: mean of the tempered probabilities."""
    member_weights: Weights | None = None
    """One per member of the teacher, in order; null weighs all alike. They need not add up to 1."""
    tail: Literal["ghost", "uniform"] = "ghost"
    """Of a top-k cache: one bucket for all other classes, or their mass spread evenly."""

    teacher_calibration: Literal["temperature"] | None = None
    """temperature: divide the teacher's logits by the one that fits it best on validation (Guo et
    al. 2017, arXiv:1706.04599); several members are averaged at temperature 1 first."""

    @field_validator("member_weights")
    @classmethod
    def _one_counts(cls, weights: Weights | None) -> Weights | None:
        if weights is not None and sum(weights) == 0:
            raise ValueError(f"must not be all 0, got {list(weights)}")
        return weights

    def shares(self, num_members: int) -> tuple[float, ...]:
        """Each member's share of the average, adding up to 1.

        Raises:
            ParameterError: If there is not one weight per member.
        """
        weights = self.member_weights
        if weights is None:
            return (1 / num_members,) * num_members
        if len(weights) != num_members:
            rule = f"have one weight for each of the teacher's {num_members} members"
            raise ParameterError("soft_targets.member_weights", rule, list(weights))
        total = sum(weights)
        return tuple(weight / total for weight in weights)

    def fitted_temperature(
        self, calibration: Calibration | None, *, is_top_k: bool, num_members: int
    ) -> float | None:
        """By what a teacher's averaged logits are divided; None where they are read as they are.

        Raises:
            ParameterError: If no temperature was fitted to this average, or the logits are the top
                k, whose tail holds at one temperature only.
        """
        if self.teacher_calibration is None:
            return None
        if is_top_k:
            rule = "be null with a top-k cache, whose tail holds at one temperature only"
            raise ParameterError(CALIBRATION, rule, self.teacher_calibration)
        if calibration is None:
            rule = "be null for soft targets without a temperature fitted on validation" + _REMEDY
            raise ParameterError(CALIBRATION, rule, self.teacher_calibration)
        if self.shares(num_members) != tuple(calibration.shares):
            fitted = [round(share, 4) for share in calibration.shares]
            rule = f"be those that the teacher's temperature was fitted with, {fitted}" + _REMEDY
            raise ParameterError("soft_targets.member_weights", rule, self.member_weights)
        return calibration.temperatures[self.ensemble_average]

    def describe(self, num_members: int) -> dict[str, Any]:
        """Kind and shares of the average, JSON-able: equal ones average alike."""
        return {"kind": self.ensemble_average, "shares": list(self.shares(num_members))}
