"""What the project's Kedro datasets share: each keeps its data in one folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset, DatasetError

if TYPE_CHECKING:
    from kd_pipeline.object_storage.mirror import Mirror


class InFolder:
    """First base of a dataset, before `AbstractDataset`.

    Not itself an `AbstractDataset`: Kedro would wrap the inherited `__init__` twice, and record
    wrong arguments for `catalog.to_config`.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Keep data in the folder `filepath`; `metadata` is for Kedro-Viz."""
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class FolderDataset(InFolder, AbstractDataset[None, Path]):
    """Loads the path of a folder, which need not exist yet; there is nothing to save."""

    mirror: "Mirror | None" = None
    """As `FetchesItself`."""

    def load(self) -> Path:
        """The path; what object storage has of it, or in it, is here by then."""
        if self.mirror is not None:
            self.mirror.pull(self._filepath, strict=False)  # Not each folder is an artefact.
            self.mirror.pull_all_in(self._filepath)
        return self._filepath

    def save(self, data: None) -> None:  # noqa: ARG002 (the base class names it)
        """Refuse: nodes write into the folder themselves."""
        raise DatasetError("a folder is written by the nodes that take its path")

    def _exists(self) -> bool:
        return True
