"""Settings of object storage."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from pydantic import Field, field_validator

from kd_pipeline.config import Params, PositiveFloat

_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/?#@]+)*/?")


class ObjectStorageParams(Params):
    """`object_storage.yml`."""

    folders: Mapping[str, str] = Field(default_factory=dict)
    """Folders of the project, and the URI below which each is kept; none keeps all on this disk."""
    max_wait_seconds: PositiveFloat = 60.0
    """How long a request to a server that does not answer is repeated."""

    @field_validator("folders")
    @classmethod
    def _named(cls, folders: Mapping[str, str]) -> Mapping[str, str]:
        for folder, uri in folders.items():
            path = PurePosixPath(folder)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"must name folders inside the project, got {folder!r}")
            if not _URI.fullmatch(uri):
                # Not shown: what is no such URI may hold a key.
                raise ValueError(
                    f"must have s3://<bucket>/<prefix> for {folder}, with credentials in the "
                    "environment, got something else"
                )
        return folders
