"""The block `evaluation`."""

from typing import Annotated

from pydantic import Field

from kd_pipeline.config import Computing, OpenFraction, PositiveInt, Seed, at_most


class EvaluationParams(Computing):
    """`evaluation`: how the test set is read and the comparison drawn."""

    seed: Seed = 0
    """Of the bootstrap."""
    num_bootstrap_samples: Annotated[
        int, Field(ge=100), at_most(10**6, "all are in memory, and p-values need no more")
    ] = 10_000
    confidence_level: OpenFraction = 0.95
    """Of every interval."""
    num_calibration_bins: Annotated[PositiveInt, at_most(10_000, "most would be empty")] = 15
    """Equal-width bins of confidence for the expected calibration error."""
