"""What a cache of soft targets was made from, and the refusal of one that does not match."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kd_pipeline.errors import StaleArtefactError

FORMAT = "kd_pipeline soft targets"


@dataclass(frozen=True)
class Provenance:
    """Everything that the soft targets depend on."""

    class_names: tuple[str, ...]
    teacher_fingerprints: tuple[str, ...]
    """One per ensemble member, in the order of the `teacher` column."""
    images_fingerprint: str
    splits_fingerprint: str
    view_policy: Mapping[str, Any]
    """As `ViewPolicy.description` gives it."""
    num_views: int


@dataclass(frozen=True)
class Manifest:
    """Provenance and layout of a store; written last, so that a store without one is unfinished."""

    provenance: Provenance
    num_rows: int
    dtype: str = "float16"
    parts: tuple[Mapping[str, Any], ...] = ()
    """Each with `file`, `num_rows`, `size_bytes` and `sha256`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Not checked: agreement of the teacher with the labels, seconds taken, precision."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Manifest":
        """Read plain data back; KeyError or TypeError where it is not a manifest."""
        provenance = dict(data["provenance"])
        provenance["class_names"] = tuple(provenance["class_names"])
        provenance["teacher_fingerprints"] = tuple(provenance["teacher_fingerprints"])
        return cls(
            provenance=Provenance(**provenance),
            num_rows=data["num_rows"],
            dtype=data["dtype"],
            parts=tuple(data["parts"]),
            facts=data["facts"],
        )


_WHAT = {
    "class_names": "class names",
    "teacher_fingerprints": "teacher",
    "images_fingerprint": "images",
    "splits_fingerprint": "splits",
    "view_policy": "view policy",
    "num_views": "number of views",
}


def check_provenance(cached: Provenance, **expected: object) -> None:
    """Refuse soft targets that were made from something else.

    Args:
        cached: From the store's manifest.
        expected: What the run has, by the names of `Provenance`'s fields.

    Raises:
        StaleArtefactError: Naming everything that differs, with both values.
    """
    differences = []
    for name, value in expected.items():
        found = getattr(cached, name)
        if _plain(found) != _plain(value):
            what = _WHAT[name]
            differences.append(f"{what} (cached {_short(found)}, this run {_short(value)})")
    if differences:
        raise StaleArtefactError(
            f"`soft_targets` do not match this run's {' and '.join(differences)}; "
            "cache them anew: kedro run --pipelines=soft_target_caching"
        )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _short(value: object) -> str:
    text = str(value if not isinstance(value, tuple) else list(value))
    return text if len(text) <= 80 else text[:77] + "..."
