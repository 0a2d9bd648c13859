"""What a cache of soft targets was made from, and which parts it has."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kd_pipeline.checksums import checked_dumps, checked_loads
from kd_pipeline.provenance import differences
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.settings import Calibration, SoftTargetsParams

FORMAT = "kd_pipeline soft targets"
_FACTS = {
    "teacher_fingerprints": "teacher",
    "images_fingerprint": "images",
    "splits_fingerprint": "splits",
}
"""The names that `kd_pipeline.provenance` uses for these fields of a manifest."""


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

    def facts(self) -> dict[str, Any]:
        """By the names of `kd_pipeline.provenance`, JSON-able."""
        return _as_facts(json.loads(json.dumps(asdict(self))))


@dataclass(frozen=True)
class Part:
    """One file of a store: a shard of the examples in one view of one member."""

    member: int
    view: int
    shard: int
    num_rows: int
    size_bytes: int = 0
    sha256: str = ""
    """Empty as long as it is not written."""

    @property
    def file(self) -> str:
        """Its name in the store's folder."""
        return f"part-t{self.member:03d}-v{self.view:05d}-s{self.shard:05d}.parquet"

    @property
    def place(self) -> dict[str, int]:
        """Where it belongs in a store."""
        return {"member": self.member, "view": self.view, "shard": self.shard}


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
    calibration: Calibration | None = None
    """What was fitted on validation beside the labelling; no part depends on it."""
    parts: tuple[Part, ...] = ()

    @cached_property
    def part_at(self) -> Mapping[tuple[int, int, int], Part]:
        """The parts by member, view and shard."""
        return {(part.member, part.view, part.shard): part for part in self.parts}

    @property
    def num_members(self) -> int:
        """Of the teacher, one fingerprint each."""
        return len(self.provenance.teacher_fingerprints)

    @property
    def num_rows(self) -> int:
        """Over all members and views."""
        return self.num_examples * self.num_members * self.provenance.num_views

    @property
    def num_shards(self) -> int:
        """Parts of each view of each member."""
        return -(-self.num_examples // self.rows_per_part)

    def fitted_temperature(self, params: SoftTargetsParams) -> float | None:
        """`SoftTargetsParams.fitted_temperature` of this store."""
        is_top_k = self.encoding.top_k is not None
        return params.fitted_temperature(
            self.calibration, is_top_k=is_top_k, num_members=self.num_members
        )

    def rows_of(self, shard: int) -> slice:
        """Positions of a shard's examples among all."""
        start = shard * self.rows_per_part
        return slice(start, min(start + self.rows_per_part, self.num_examples))

    def layout(self) -> list[Part]:
        """Every part that the store consists of, not yet written, in order."""
        spans = [self.rows_of(shard) for shard in range(self.num_shards)]
        return [
            Part(member, view, shard, num_rows=span.stop - span.start)
            for member in range(self.num_members)
            for view in range(self.provenance.num_views)
            for shard, span in enumerate(spans)
        ]

    def head(self) -> dict[str, Any]:
        """All that can be stated before the first part is written, as JSON gives it back."""
        return dict(self._head)

    @cached_property
    def _head(self) -> dict[str, Any]:  # Compared with that of every part that is read.
        head = {"format": FORMAT, "dtype": "float16", "num_rows": self.num_rows}
        head |= asdict(replace(self, parts=()))
        del head["parts"], head["calibration"]
        plain: dict[str, Any] = json.loads(json.dumps(head))
        return plain

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = self.calibration
        fitted = {} if found is None else {"calibration": json.loads(json.dumps(asdict(found)))}
        parts = [{"file": p.file, **asdict(p)} for p in self.parts]
        return {**self.head(), **fitted, "parts": parts}

    def as_text(self) -> str:
        """The file's text: JSON that ends with its own checksum."""
        return checked_dumps(self.as_dict(), indent=2) + "\n"

    def differences_from(
        self, head: Mapping[str, Any], *, left: str = "part", right: str = "manifest"
    ) -> list[str]:
        """How the head that is stored in a part differs from this manifest's, in words."""
        heads = (head, self.head())
        found, wanted = (_as_facts({**one.get("provenance", {}), **one}) for one in heads)
        del wanted["provenance"]
        return differences(found, wanted, left=left, right=right)

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Read a file's text back; TypeError or ValueError where it is damaged."""
        manifest = TypeAdapter(cls).validate_python(checked_loads(text))
        if manifest.as_text() != text:
            raise ValueError("it is damaged: it is not as it was written")
        return manifest


def digest_of_ids(example_ids: NDArray[np.int64]) -> str:
    """SHA-256 of example ids, the same on every machine."""
    little_endian = np.ascontiguousarray(example_ids, dtype="<i8")
    return hashlib.sha256(little_endian.data).hexdigest()


def _as_facts(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {_FACTS.get(name, name): value for name, value in plain.items()}
