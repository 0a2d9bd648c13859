"""Checksums of what stages hand on: whatever is read was written so.

JSON holds the SHA-256 of its own values. Other files have their CRC-32 in a JSON or a file beside
them: it misses no damage within 32 neighbouring bits and one in four billion of any other, in half
the time of SHA-256. Both are against accidents; neither is a signature.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 2**20


def file_checksum(file: Path | IO[bytes]) -> str:
    """CRC-32 of a file's bytes from its position on, 8 hex digits."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return file_checksum(opened)
    checksum = 0
    while block := file.read(_BLOCK_BYTES):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def checked_dumps(
    data: Mapping[str, Any], *, indent: int | None = None, allow_nan: bool = False
) -> str:
    """Write plain data as JSON that ends with its own checksum, under `sha256`."""
    # The digest is of what will be read back: JSON turns keys that are numbers into text.
    with_checksum = {**data, "sha256": _digest(json.loads(json.dumps(data)))}
    return json.dumps(with_checksum, indent=indent, allow_nan=allow_nan)


def checked_loads(text: str | bytes) -> dict[str, Any]:
    """Read such JSON back.

    Raises:
        ValueError: If it is no JSON, or its checksum differs.
        TypeError: If it is JSON, but no object.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError("it is no JSON object")
    if data.pop("sha256", None) != _digest(data):
        raise ValueError("it is damaged: its checksum differs")
    return data


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
