"""The blocks of soft-target caching."""

from kd_pipeline.parameters.base import Device, Params, PositiveInt, Precision


class SoftTargetCachingParams(Params):
    """`soft_target_caching`: how the teacher labels the transfer set."""

    batch_size: PositiveInt = 512
    device: Device = "auto"
    precision: Precision = "float32"
