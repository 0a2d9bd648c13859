"""How long the parts of a cache took to make, in a file beside the store.

It is not in the store: the same logits give the same bytes there, whatever they took. Seconds are
kept by a part's SHA-256, so that a part that is reused keeps those of its making.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kd_pipeline.soft_targets.manifest import Part


def add_seconds(store: Path, part: Part, seconds: float) -> None:
    """Note what a part took."""
    _write(store, _read(store) | {part.sha256: seconds})


def keep_seconds(store: Path, parts: Iterable[Part]) -> None:
    """Forget all parts but these."""
    digests = {part.sha256 for part in parts}
    _write(store, {digest: s for digest, s in _read(store).items() if digest in digests})


def total_seconds(store: Path, parts: Sequence[Part]) -> float | None:
    """What these parts took together; None if that of any is not on record."""
    known = _read(store)
    taken = [known[part.sha256] for part in parts if part.sha256 in known]
    return sum(taken) if len(taken) == len(parts) else None


def _file(store: Path) -> Path:
    return store.parent / f".{store.name}.seconds.json"


def _read(store: Path) -> dict[str, float]:
    """Seconds by SHA-256; none where the file is missing or half-written: no result rests on it."""
    try:
        found = json.loads(_file(store).read_bytes())
        return {str(digest): float(seconds) for digest, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(store: Path, seconds: Mapping[str, float]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    _file(store).write_text(json.dumps(seconds), encoding="utf-8")
