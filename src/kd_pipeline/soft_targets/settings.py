"""The block `soft_targets`: how a cache is read."""

from typing import Annotated, Literal

from pydantic import Field

from kd_pipeline.config import Params


class SoftTargetsParams(Params):
    """`soft_targets`: how cached members are mixed and a tail is read. Costs no forward pass."""

    mixing: Literal["geometric", "arithmetic"] = "geometric"
    """geometric: softmax of the mean logits; arithmetic: mean of the tempered probabilities."""
    member_weights: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] | None = None
    """One per member of the teacher; null weighs all alike."""
    tail: Literal["ghost", "uniform"] = "ghost"
    """Of a top-k cache: one bucket for all other classes, or their mass spread evenly."""
