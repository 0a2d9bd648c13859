"""The block `soft_targets`: how a cache is read."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kd_pipeline.config import Params
from kd_pipeline.errors import ParameterError

Weights = tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...]


class SoftTargetsParams(Params):
    """`soft_targets`: how cached members become one teacher. Another way costs no forward pass."""

    ensemble_average: Literal["geometric", "arithmetic"] = "geometric"
    """geometric: softmax of the mean logits; arithmetic: mean of the tempered probabilities."""
    member_weights: Weights | None = None
    """One per member of the teacher, in order; null weighs all alike. They need not add up to 1."""
    tail: Literal["ghost", "uniform"] = "ghost"
    """Of a top-k cache: one bucket for all other classes, or their mass spread evenly."""

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

    def describe(self, num_members: int) -> dict[str, Any]:
        """Kind and shares of the average, JSON-able: equal ones average alike."""
        return {"kind": self.ensemble_average, "shares": list(self.shares(num_members))}
