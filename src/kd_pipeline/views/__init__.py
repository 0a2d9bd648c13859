"""Augmented views as a pure function of (policy, example, view), rendered a batch at a time.

Views are drawn by counter-based hashing: the teacher labels view v of an example, and the student
is trained on the same pixels, in any batch, order or process, with nothing stored.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kd_pipeline.views.policy import ViewPolicy

if TYPE_CHECKING:
    from kd_pipeline.views.renderer import DrawnViews, ViewRenderer, render
else:

    def __getattr__(name: str) -> object:
        """Import on first use: settings of this package must not cost an import of torch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.renderer"), name)


__all__ = ["DrawnViews", "ViewPolicy", "ViewRenderer", "render"]
