"""Augmented views as a pure function of (policy, example, view), rendered a batch at a time.

A view is drawn by counter-based hashing, so there is nothing to store: the teacher labels view v
of an example, and the student later sees the very same pixels, in any batch, order or process.
"""

from kd_pipeline.views.mixing import MixedWith
from kd_pipeline.views.policy import (
    ViewPolicy,
    mixing_of,
    render_views,
    view_parameters,
)
from kd_pipeline.views.transforms import TRANSFORMS

__all__ = [
    "TRANSFORMS",
    "MixedWith",
    "ViewPolicy",
    "mixing_of",
    "render_views",
    "view_parameters",
]
