"""The block `evaluation`."""

from typing import Annotated

from pydantic import Field

from kd_pipeline.config import Device, OpenFraction, Params, PositiveInt, Precision, Seed


class EvaluationParams(Params):
    """`evaluation`: how the test set is read and the comparison drawn."""

    seed: Seed = 0
    batch_size: PositiveInt = 1024
    device: Device = "auto"
    precision: Precision = "float32"
    num_bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    confidence_level: OpenFraction = 0.95
    num_calibration_bins: PositiveInt = 15
