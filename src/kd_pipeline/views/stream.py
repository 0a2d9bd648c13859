"""One transform's random draws: a pure function of seed, position in the policy and row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_pipeline.randomness import derive_seed, random_bits, uniform


@dataclass(frozen=True)
class Stream:
    """Uniform draws of the transform at one position of a policy."""

    keys: Tensor
    """int64 [batch]: one key per row, made of example id and view."""
    seed: int
    position: int

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw from [low, high), float64 [batch]; each name is a stream of its own."""
        return low + (high - low) * uniform(self.keys, stream=self._stream(name))

    def uniforms(self, name: str, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw `count` times per row, float64 [batch, count]."""
        stream = self._stream(name)
        # A row counts from its own hash on: two rows' counters overlap with probability near 0.
        bits = random_bits(self.keys, stream=stream)
        counters = bits.unsqueeze(-1) + torch.arange(count, device=bits.device)
        return low + (high - low) * uniform(counters, stream=stream)

    def happens(self, name: str, probability: float) -> Tensor:
        """Draw bool [batch], true with this probability."""
        return self.uniform(name) < probability

    def choices(self, name: str, num_choices: int, count: int) -> Tensor:
        """Draw int64 [batch, count], uniformly in [0, num_choices)."""
        return (self.uniforms(name, count) * num_choices).to(torch.int64)

    def _stream(self, name: str) -> int:
        return derive_seed(self.seed, "views", self.position, name)
