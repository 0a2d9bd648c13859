"""What a cache of soft targets was made from, and the refusal of one that does not match."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.soft_targets.encoding import Encoding

FORMAT = "kd_pipeline soft targets"
DTYPE = "float16"


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
class Part:
    """One file of a store: a shard of the examples in one view of one member."""

    member: int
    view: int
    shard: int
    num_rows: int
    size_bytes: int = 0
    sha256: str = ""

    @property
    def file(self) -> str:
        """Its name in the store's folder."""
        return f"part-t{self.member:03d}-v{self.view:05d}-s{self.shard:05d}.parquet"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the file's name for people."""
        return {"file": self.file, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Part":
        """Read plain data back; KeyError or TypeError where it is no part."""
        return cls(**{name: value for name, value in data.items() if name != "file"})


@dataclass(frozen=True)
class Manifest:
    """Provenance and layout of a store; written last, so that a store without one is unfinished.

    It holds no times, places or names of machines: the same logits give the same bytes.
    """

    provenance: Provenance
    encoding: Encoding
    num_examples: int
    example_ids_digest: str
    """SHA-256 of the ascending ids."""
    rows_per_part: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Not compared with a run: precision, the teacher's label smoothing."""
    parts: tuple[Part, ...] = ()

    @property
    def num_rows(self) -> int:
        """Over all members and views."""
        return self.num_examples * self.num_members * self.provenance.num_views

    @property
    def num_members(self) -> int:
        """Of the teacher."""
        return len(self.provenance.teacher_fingerprints)

    def head(self) -> dict[str, Any]:
        """What is known before the first part is written, as JSON gives it back."""
        head = {"format": FORMAT, "dtype": DTYPE, "num_rows": self.num_rows}
        own = {k: v for k, v in vars(self).items() if k not in {"parts", "facts"}}
        own |= {"provenance": asdict(self.provenance), "encoding": asdict(self.encoding)}
        plain: dict[str, Any] = json.loads(json.dumps({**head, **own, "facts": dict(self.facts)}))
        return plain

    def layout(self) -> list[Part]:
        """Every part that the store consists of, not yet written, in order."""
        num_shards = max(1, -(-self.num_examples // self.rows_per_part))
        return [
            Part(member, view, shard, num_rows=len(self.rows_of(shard)))
            for member in range(self.num_members)
            for view in range(self.provenance.num_views)
            for shard in range(num_shards)
        ]

    def rows_of(self, shard: int) -> range:
        """Positions of a shard's examples among all."""
        start = shard * self.rows_per_part
        return range(start, min(start + self.rows_per_part, self.num_examples))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.head(), "parts": [part.as_dict() for part in self.parts]}

    def as_text(self) -> str:
        """The file's text: it ends with its own checksum."""
        return seal(self.as_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Manifest":
        """Read plain data back; KeyError, TypeError or ValueError where it is not a manifest."""
        if data["format"] != FORMAT:
            raise ValueError(f"the format is {data['format']!r}, not {FORMAT!r}")
        provenance = dict(data["provenance"])
        provenance["class_names"] = tuple(provenance["class_names"])
        provenance["teacher_fingerprints"] = tuple(provenance["teacher_fingerprints"])
        return cls(
            provenance=Provenance(**provenance),
            encoding=Encoding(**data["encoding"]),
            num_examples=data["num_examples"],
            example_ids_digest=data["example_ids_digest"],
            rows_per_part=data["rows_per_part"],
            facts=data["facts"],
            parts=tuple(Part.from_dict(part) for part in data["parts"]),
        )

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Read a file's text back; KeyError, TypeError or ValueError where it is damaged."""
        manifest = cls.from_dict(unseal(text))
        if manifest.as_text() != text:
            raise ValueError("it is damaged: it is not as it was written")
        return manifest


def seal(data: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Write plain data as JSON that ends with its own checksum, under `sha256`."""
    sealed = {**data, "sha256": _digest(data)}
    return json.dumps(sealed, indent=indent, allow_nan=False)


def unseal(text: str | bytes) -> dict[str, Any]:
    """Read sealed JSON back.

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


def digest_of_ids(example_ids: NDArray[np.int64]) -> str:
    """SHA-256 of example ids, the same on every machine."""
    little_endian = np.ascontiguousarray(example_ids, dtype="<i8")
    return hashlib.sha256(little_endian.data).hexdigest()


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


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
    differences = describe_differences(
        vars(cached), expected, left="cached", right="this run", names=expected
    )
    if differences:
        raise StaleArtefactError(
            f"`soft_targets` do not match this run's {' and '.join(differences)}; "
            "cache them anew: kedro run --pipelines=soft_target_caching"
        )


def describe_differences(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    left: str,
    right: str,
    names: Sequence[str] | Mapping[str, Any],
) -> list[str]:
    """Say in words which of these values differ, with both values."""
    return [
        f"{_WHAT.get(name, name)} ({left} {_short(one.get(name))}, "
        f"{right} {_short(other.get(name))})"
        for name in names
        if _plain(one.get(name)) != _plain(other.get(name))
    ]


def describe_other_head(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in words how a part's head differs from the one that its manifest asks for."""
    flat = [{**head.get("provenance", {}), **head} for head in (found, wanted)]
    names = [name for name in flat[1] if name != "provenance"]
    return describe_differences(flat[0], flat[1], left="part", right="manifest", names=names)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _short(value: object) -> str:
    text = str(value if not isinstance(value, tuple) else list(value))
    return text if len(text) <= 80 else text[:77] + "..."
