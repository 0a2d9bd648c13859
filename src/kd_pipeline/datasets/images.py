"""Kedro dataset for an ImageSet: a folder of two arrays and a description."""

import shutil

import numpy as np
from kedro.io import AbstractDataset

from kd_pipeline.atomic import replace_folder
from kd_pipeline.checksums import checked_dumps, checked_loads, file_checksum
from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.pixel_store import scratch_file
from kd_pipeline.datasets.folder import InFolder
from kd_pipeline.errors import DataError

_PIXELS = "pixels.npy"
_IDS = "example_ids.npy"
_ABOUT = "images.json"


class ImageSetDataset(InFolder, AbstractDataset[ImageSet, ImageSet]):
    """A folder with `pixels.npy`, `example_ids.npy` and `images.json`.

    The folder is written whole or not at all. Pixels are mapped into memory copy-on-write: what a
    run writes into them does not reach the file. They are verified when they are first opened, and
    again only if the file was written since.

    Example catalog entry::

        images:
          type: kd_pipeline.datasets.images.ImageSetDataset
          filepath: data/02_intermediate/images
    """

    _verified: tuple[int, ...] = ()
    """Inode, size and time of the pixels whose checksum was right."""

    def save(self, data: ImageSet) -> None:
        """Write the folder; a scratch file that holds the pixels is moved, not copied."""
        fingerprint = data.fingerprint
        with replace_folder(self._filepath) as folder:
            np.save(folder / _IDS, data.example_ids, allow_pickle=False)
            scratch = scratch_file(data.pixels)
            if scratch is None:
                np.save(folder / _PIXELS, data.pixels, allow_pickle=False)
            else:
                shutil.move(scratch, folder / _PIXELS)
                (folder / _PIXELS).chmod((folder / _IDS).stat().st_mode)
            about = {
                "class_names": data.class_names,
                "shape": data.pixels.shape,
                "fingerprint": fingerprint,
                "crc32": {name: file_checksum(folder / name) for name in (_PIXELS, _IDS)},
            }
            (folder / _ABOUT).write_text(checked_dumps(about, indent=2) + "\n", encoding="utf-8")

    def load(self) -> ImageSet:
        """Map the pixels into memory.

        Raises:
            DataError: If the folder is missing or damaged.
        """
        if not self._filepath.is_dir():
            raise DataError(f"{self._filepath} is missing: run the pipeline data_ingest to make it")
        try:
            return self._read_folder()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._filepath} is damaged ({error}): delete it and run "
                "`kedro run --pipelines=data_ingest`"
            ) from error

    def _read_folder(self) -> ImageSet:
        try:
            about = checked_loads((self._filepath / _ABOUT).read_bytes())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{_ABOUT}: {error}") from error
        self._verify(about["crc32"])
        pixels = np.load(self._filepath / _PIXELS, mmap_mode="c", allow_pickle=False)
        ids = np.load(self._filepath / _IDS, allow_pickle=False)
        # The stored fingerprint: computing it would read all pixels at every load.
        return ImageSet(ids, pixels, tuple(about["class_names"]), str(about["fingerprint"]))

    def _verify(self, checksums: dict[str, str]) -> None:
        stat = (self._filepath / _PIXELS).stat()
        found = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for name in (_IDS,) if found == self._verified else (_IDS, _PIXELS):
            if file_checksum(self._filepath / name) != checksums[name]:
                raise ValueError(f"the checksum of {name} differs")
        self._verified = found

    def _exists(self) -> bool:
        return (self._filepath / _ABOUT).is_file()
