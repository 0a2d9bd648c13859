"""What the project's Kedro datasets share: each keeps its data in one folder."""

from pathlib import Path
from typing import Any


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
