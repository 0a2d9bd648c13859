"""How long the parts of a cache took to make, in a file beside the store.

It is not in the store: the same logits give the same bytes there, whatever they took. Seconds are
kept by a part's SHA-256, so that a part that is reused keeps those of its making. A file has a JSON
object a line: a line is added for each part, and the rest is not read for that. Shards write a file
each, and are read together.
"""

import glob
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from kd_pipeline.soft_targets.manifest import Part


def add_seconds(store: Path, part: Part, seconds: float, shard: str = "") -> None:
    """Note what a part took, in the file of its shard."""
    file = _file(store, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as opened:
        # The end of a line first: a killed process may have left half of one.
        opened.write(f"\n{json.dumps({part.sha256: seconds})}".encode())


def keep_seconds(store: Path, parts: Iterable[Part]) -> None:
    """Forget all parts but these, and bring them into one file."""
    digests = {part.sha256 for part in parts}
    kept = {digest: s for digest, s in _read_all(store).items() if digest in digests}
    _file(store).write_bytes(json.dumps(kept).encode())
    for file in _files(store):
        if file != _file(store):
            file.unlink(missing_ok=True)


def total_seconds(store: Path, parts: Sequence[Part]) -> float | None:
    """What these parts took together; None if that of any is not on record."""
    known = _read_all(store)
    taken = [known[part.sha256] for part in parts if part.sha256 in known]
    return sum(taken) if len(taken) == len(parts) else None


def _file(store: Path, shard: str = "") -> Path:
    return store.parent / f".{store.name}.seconds{'.' * bool(shard)}{shard}.json"


def _files(store: Path) -> list[Path]:
    return sorted(store.parent.glob(f".{glob.escape(store.name)}.seconds*.json"))


def _read_all(store: Path) -> dict[str, float]:
    return {digest: s for file in _files(store) for digest, s in _read(file).items()}


def _read(file: Path) -> dict[str, float]:
    """Seconds by SHA-256, without lines that are damaged: no result rests on them."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return {}
    return {digest: seconds for line in lines for digest, seconds in _read_line(line).items()}


def _read_line(line: bytes) -> dict[str, float]:
    try:
        found = json.loads(line)
        return {str(digest): float(seconds) for digest, seconds in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
