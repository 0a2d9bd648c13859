"""How long the parts of a cache took to make, in a file beside the store.

It is not in the store: the same logits give the same bytes there, whatever they took. Seconds are
kept by a part's SHA-256, so that a part that is reused keeps those of its making. The file has a
JSON object a line: a line is added for each part, by all shards, and the rest is not read for that.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from kd_pipeline.soft_targets.manifest import Part


def add_seconds(store: Path, part: Part, seconds: float) -> None:
    """Note what a part took."""
    file = _file(store)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as opened:
        # The end of a line first: a killed process may have left half of one.
        opened.write(f"\n{json.dumps({part.sha256: seconds})}".encode())


def keep_seconds(store: Path, parts: Iterable[Part]) -> None:
    """Forget all parts but these."""
    known, digests = _read(store), [part.sha256 for part in parts]
    kept = {digest: known[digest] for digest in digests if digest in known}
    _file(store).write_bytes(json.dumps(kept).encode())


def total_seconds(store: Path, parts: Sequence[Part]) -> float | None:
    """What these parts took together; None if that of any is not on record."""
    known = _read(store)
    taken = [known[part.sha256] for part in parts if part.sha256 in known]
    return sum(taken) if len(taken) == len(parts) else None


def _file(store: Path) -> Path:
    return store.parent / f".{store.name}.seconds.json"


def _read(store: Path) -> dict[str, float]:
    """Seconds by SHA-256, without lines that are damaged: no result rests on them."""
    try:
        lines = _file(store).read_bytes().splitlines()
    except OSError:
        return {}
    return {digest: seconds for line in lines for digest, seconds in _read_line(line).items()}


def _read_line(line: bytes) -> dict[str, float]:
    try:
        found = json.loads(line)
        return {str(digest): float(seconds) for digest, seconds in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
