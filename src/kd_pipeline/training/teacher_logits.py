"""Where the teacher's logits of a batch come from: a cache, or the teacher itself.

The training loop asks for them in one way and does not know which it is.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.losses.top_k import TopKLogits, spread_tail
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.soft_targets.ensemble import Mixing, mix_logits
from kd_pipeline.soft_targets.gathering import GatheredTargets

OfStep = Callable[[int, Tensor], Tensor | TopKLogits]
"""From a step of the chunk, and the pixels that the student is shown in it, to the teacher's
logits on these very views: float32 [batch, num_classes], or its top k."""


class TeacherLogits(Protocol):
    """One interface for both sources."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able: equal ones give equal logits."""

    def chunk(self, rows: Tensor, passes: Tensor) -> OfStep:
        """Get ready for some steps.

        Args:
            rows: Positions among the training rows, int64 [steps, batch].
            passes: How often each example was seen before, of the same shape.
        """


class CachedLogits:
    """Read from a cache: an example's pass number p is shown view p mod num_views."""

    def __init__(
        self,
        targets: GatheredTargets,
        position_of_row: Tensor,
        *,
        identity: Mapping[str, Any],
        device: str,
        tail: str = "ghost",
        temperature: float | None = None,
    ) -> None:
        """Hold what was gathered for some training rows.

        Args:
            targets: In memory, or mapped from a file that only the rows of a chunk are read from.
            position_of_row: int64 [num_rows]: where in `targets` each training row is; anywhere
                for one without a soft target.
            identity: Equal ones give equal logits.
            device: Of the student.
            tail: `ghost` or `uniform`, for a top-k cache.
            temperature: The one that a top-k cache is tied to.
        """
        self.identity = identity
        self._device, self._tail = device, tail
        self._num_classes = targets.num_classes
        self._num_views, self._num_examples = targets.logits.shape[:2]
        self._logits = self._flat(targets.logits)
        self._top: tuple[Tensor, Tensor, float] | None = None
        ids, tails = targets.class_ids, targets.tail_logits
        if ids is not None and tails is not None and temperature is not None:
            self._top = self._flat(ids), self._flat(tails), temperature
        self._position_of_row = position_of_row.to(self._logits.device)

    def _flat(self, values: NDArray[Any]) -> Tensor:
        """[num_views x num_examples, ...]: one gather per batch. Mapped values stay on disk."""
        # torch indexes no uint16: the bits are kept, and read back in `chunk`.
        values = values.view(np.int16) if values.dtype == np.uint16 else values
        flat = torch.from_numpy(values).flatten(0, 1)
        return flat if isinstance(values, np.memmap) else flat.to(self._device)

    def chunk(self, rows: Tensor, passes: Tensor) -> OfStep:
        """Gather the targets of all these steps at once."""
        home = self._logits.device
        rows, views = rows.to(home), passes.to(home) % self._num_views
        at = views * self._num_examples + self._position_of_row[rows]
        logits = self._gathered(self._logits, at).float()
        if self._top is None:
            return lambda step, _pixels: logits[step]
        class_ids = self._gathered(self._top[0], at).long() & 0xFFFF
        tails, temperature = self._gathered(self._top[1], at).float(), self._top[2]

        def of_step(step: int, _pixels: Tensor) -> Tensor | TopKLogits:
            top = TopKLogits(class_ids[step], logits[step], tails[step], temperature)
            if self._tail == "ghost":
                return top
            return spread_tail(top, num_classes=self._num_classes)

        return of_step

    def _gathered(self, values: Tensor, at: Tensor) -> Tensor:
        return values[at].to(self._device)


@dataclass(frozen=True)
class LiveLogits:
    """A teacher running beside the student, in eval mode and without gradients."""

    identity: Mapping[str, Any]
    members: Sequence[Classifier]
    """In eval mode and on the device."""
    mixing: Mixing
    temperature: float
    autocast: Callable[[], AbstractContextManager[Any]]
    """The precision in which the teacher computes."""

    def chunk(self, rows: Tensor, passes: Tensor) -> OfStep:  # noqa: ARG002 - one interface
        """There is nothing to get ready: the pixels decide."""
        return self._of_step

    def _of_step(self, _step: int, pixels: Tensor) -> Tensor:
        # Not inference_mode: the loss saves the teacher's logits for its backward pass.
        with torch.no_grad(), self.autocast():
            logits = torch.stack([member(pixels).float() for member in self.members])
            return mix_logits(logits, mixing=self.mixing, temperature=self.temperature)
