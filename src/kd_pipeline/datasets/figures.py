"""Figures as PNG files that can be read back, for pages that hold them."""

from pathlib import Path

from kedro_datasets.matplotlib import MatplotlibDataset

from kd_pipeline.errors import DataError


class FigureDataset(MatplotlibDataset):  # type: ignore[misc] # kedro-datasets has no types
    """`matplotlib.MatplotlibDataset` that loads what it has written, as the bytes of a PNG file."""

    def load(self) -> bytes:
        """The file's content.

        Raises:
            DataError: If it is missing.
        """
        file = Path(self._filepath)
        if not file.is_file():
            raise DataError(f"{file} is missing: run the stage that draws it")
        return file.read_bytes()
