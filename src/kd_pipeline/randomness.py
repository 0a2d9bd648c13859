"""Counter-based randomness: every draw is a pure function of its keys, never of global state.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") maps a
64-bit counter to 64 pseudorandom bits. Keyed by seed, stream and example id, a draw is the same on
any worker, in any order, after any restart.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def derive_seed(seed: int, *keys: object) -> int:
    """Derive an independent seed in [0, 2**63) from a seed and any JSON-able keys."""
    text = json.dumps([seed, *keys], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_bits(example_ids: Tensor, *, stream: int | Tensor) -> Tensor:
    """Draw 64 pseudorandom bits per example id.

    Args:
        example_ids: int64, any shape, any device.
        stream: Seed of this family of draws, from `derive_seed`; or several, int64 of a shape
            that broadcasts with that of the ids.

    Returns:
        int64 of the same shape; all 64 bits are random, the sign included.
    """
    state = _mix(example_ids * _GOLDEN_GAMMA + stream)
    # A second round, so that streams that differ by a multiple of the gamma do not overlap.
    return _mix(state + _GOLDEN_GAMMA ^ stream)


def uniform(example_ids: Tensor, *, stream: int) -> Tensor:
    """Draw one uniform number in [0, 1) per example id, float64, of the same shape."""
    return _shift_right(random_bits(example_ids, stream=stream), 11).double() * 2.0**-53


def shuffled_order(example_ids: Tensor, *, stream: int | Tensor) -> Tensor:
    """Positions that shuffle example ids into an order that does not depend on their storage order.

    Args:
        example_ids: int64 [num_examples], unique.
        stream: Seed of this shuffle, from `derive_seed`; or those of several, int64 [shuffles, 1].

    Returns:
        int64 [num_examples], a permutation of the positions; or [shuffles, num_examples].
    """
    by_id = torch.argsort(example_ids)
    keys = random_bits(example_ids[by_id], stream=stream)
    return by_id[torch.argsort(keys, stable=True)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a fixed global torch seed; the old random state is restored after it."""
    devices = range(torch.cuda.device_count())
    # Without a GPU, `torch.manual_seed` only notes for each kind of device where it was called.
    set_seed = torch.manual_seed if devices else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=devices):
        set_seed(seed)
        yield


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 is arithmetic, it copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
