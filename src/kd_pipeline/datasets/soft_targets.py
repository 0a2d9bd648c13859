"""Kedro dataset for the parquet store of soft targets."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset

if TYPE_CHECKING:  # pyarrow costs a second at start-up, and nothing here validates parameters.
    from kd_pipeline.soft_targets.store import SoftTargets


class SoftTargetsDataset(AbstractDataset["SoftTargets", "SoftTargets"]):
    """`SoftTargets` in a folder of parquet parts with a manifest, checked when read."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Keep the store in the folder `filepath`."""
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> "SoftTargets":
        """Read the store and check every part against the manifest."""
        from kd_pipeline.soft_targets.store import read_soft_targets

        return read_soft_targets(Path(self._filepath))

    def save(self, data: "SoftTargets") -> None:
        """Replace the store as a whole."""
        from kd_pipeline.soft_targets.store import write_soft_targets

        write_soft_targets(data, Path(self._filepath))

    def _exists(self) -> bool:
        return Path(self._filepath, "manifest.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
