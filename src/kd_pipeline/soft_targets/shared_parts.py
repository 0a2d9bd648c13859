"""Parts of a store in the making, on object storage: another machine goes on where one was ended.

A part is sent as soon as it is made. Which store they are of is stated by the head of its manifest,
put beside them by the first process: where there is none, so that of several one does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_pipeline.checksums import checked_dumps, checked_loads
from kd_pipeline.errors import StaleArtefactError
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.soft_targets.manifest import Manifest, Part
from kd_pipeline.soft_targets.store import MANIFEST_FILE

PLAN_FILE = ".plan.json"
"""Head of the store that is made, put there by the first process that makes it."""


@dataclass(frozen=True)
class SharedParts:
    """What `PartsFolder` asks of object storage."""

    mirror: Mirror
    folder: Path
    """Where parts are made on this disk."""
    finished: Path
    """Where the store is moved once it is whole."""

    def begin(self, manifest: Manifest, parts: Sequence[Part], *, alone: bool) -> None:
        """Agree on the store to make, and fetch these parts of it, and the finished one.

        Args:
            manifest: Of the store.
            parts: Those that this process will make.
            alone: Parts of another store are removed then; they are of an interrupted run.

        Raises:
            StaleArtefactError: If not alone, and others have begun another store.
        """
        head, plan = checked_dumps(manifest.head()).encode(), self.folder / PLAN_FILE
        begun = checked_loads(self.mirror.keep_first(plan, head))
        if found := manifest.differences_from(begun, left="others", right="this one"):
            if not alone:
                raise StaleArtefactError(
                    f"others have begun another store in {self.mirror.store.uri}: "
                    f"{' and '.join(found)}; give all shards the same settings, or run without "
                    "shards to begin anew"
                )
            self.mirror.clear(self.folder)
            self.mirror.keep_first(plan, head)
        self.fetch_finished(manifest)
        self.bring(parts)

    def fetch_finished(self, manifest: Manifest) -> None:
        """Fetch the finished store if it is the one of this manifest."""
        text = self.mirror.read(self.finished / MANIFEST_FILE)
        try:
            same = text is not None and Manifest.from_text(text.decode()).head() == manifest.head()
        except (ValueError, TypeError):
            same = False
        if same:
            self.mirror.pull(self.finished, strict=False)

    def bring(self, parts: Iterable[Part]) -> None:
        """Fetch those parts that are there and not here."""
        self.mirror.bring(self.folder, [part.file for part in parts])

    def names(self) -> set[str]:
        """Files of the parts that are there."""
        return self.mirror.names(self.folder)

    def keep(self, part: Part) -> None:
        """Send a part that was made."""
        self.mirror.keep(self.folder / part.file)

    def publish(self) -> None:
        """Send the finished store, its listing last, and remove what it was made from."""
        self.mirror.push(self.finished)
        self.mirror.clear(self.folder)
