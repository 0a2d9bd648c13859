"""The block of `verify_soft_targets`."""

from kd_pipeline.parameters.base import Params, PositiveInt, Seed


class SoftTargetVerificationParams(Params):
    """`soft_target_verification`: which rows of the cache the teacher labels again."""

    seed: Seed = 0
    num_rows: PositiveInt = 512
    """Spread evenly over ensemble members and views."""
