"""Refusal of artefacts on disk that were made from other inputs than those at hand.

Facts go by the same names everywhere: `class_names`, `images`, `splits` and `labels`
(fingerprints), `teacher` (one fingerprint per ensemble member), `view_policy`, `num_views`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kd_pipeline.errors import StaleArtefactError

_WORDS = {
    "class_names": "class names",
    "view_policy": "view policy",
    "num_views": "number of views",
}


def check_provenance(
    artefact: str, made_from: Mapping[str, Any], at_hand: Mapping[str, Any], *, remedy: str
) -> None:
    """Refuse an artefact that was made from other inputs than those at hand.

    Args:
        artefact: Its name in the catalog.
        made_from: The facts saved with it.
        at_hand: The facts of this run that are compared.
        remedy: End of the message: what the user can do.

    Raises:
        StaleArtefactError: Naming everything that differs, with both values.
    """
    if found := differences(made_from, at_hand, left="artefact", right="this run"):
        raise StaleArtefactError(
            f"`{artefact}` do not match this run's {' and '.join(found)}; {remedy}"
        )


def differences(
    made_from: Mapping[str, Any], at_hand: Mapping[str, Any], *, left: str, right: str
) -> list[str]:
    """Describe each fact in `at_hand` that differs from `made_from`, with both values.

    Args:
        made_from: A fact missing here differs.
        at_hand: The facts that are compared. A tuple equals a list of the same items.
        left: Name of the values of `made_from` in the text.
        right: Name of the values of `at_hand`.
    """
    return [
        f"{_WORDS.get(name, name)} ({left} {_short(made_from.get(name))}, {right} {_short(value)})"
        for name, value in at_hand.items()
        if _plain(made_from.get(name)) != _plain(value)
    ]


def _plain(value: object) -> object:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value))


def _short(value: object) -> str:
    text = "none stated" if value is None else str(_plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


@cache
def package_digest() -> str:
    """16 hex digits over the source of this package."""
    folder, code = Path(__file__).parent, hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        code.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return code.hexdigest()
