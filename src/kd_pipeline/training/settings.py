"""How a model is trained, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingSettings:
    """The domain's twin of the `training` block in YAML; the names are the same."""

    num_epochs: int
    batch_size: int = 64
    optimiser: Mapping[str, Any] = field(default_factory=lambda: {"name": "AdamW", "arguments": {}})
    schedule: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "constant", "arguments": {}, "warmup_fraction": 0.0}
    )
    max_gradient_norm: float | None = None
    max_weight_norm: float | None = None
    early_stopping: Mapping[str, Any] | None = None
    checkpoint_every: int = 10
    evaluate_every: int = 1
    device: str = "cpu"
    precision: str = "float32"
    memory_budget_mb: int = 4096

    @property
    def memory_budget_bytes(self) -> int:
        """More pixels or soft targets than this are read from disk, batch by batch."""
        return self.memory_budget_mb * 2**20
