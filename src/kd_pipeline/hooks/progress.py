"""A bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

BAR_DELAY_SECONDS = 1.0
"""What is done sooner needs no bar."""
LINE_EVERY_SECONDS = 30.0


class Progress:
    """Shows how far one loop is, how fast it runs and how long it will take.

    What an earlier run had done comes with the first calls of `advance`, and counts for no speed.
    """

    def __init__(self, description: str, *, total: int, unit: str) -> None:
        """Begin at nothing done."""
        self.description = description
        self._total = total
        self._unit = unit
        self._started_at = self._logged_at = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar: tqdm[Any] | None = None

    def advance(self, done: int, detail: str = "") -> None:
        """Show how much is done by now, and a detail beside."""
        now = time.monotonic()
        if self._first is None or now - self._started_at < BAR_DELAY_SECONDS:
            self._first = now, done
            self.close()
            self._bar = self._new_bar(done, now - self._started_at) if sys.stderr.isatty() else None
        if self._bar is not None:
            self._bar.set_postfix_str(detail, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._logged_at >= LINE_EVERY_SECONDS:
            self._logged_at = now
            logger.info("%s", self._line(done, now, detail))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, now: float, detail: str) -> str:
        started_at, before = self._first or (self._started_at, 0)
        counts, ending = f"{done}/{self._total} {self._unit}", f", {detail}" if detail else ""
        if done > before:
            speed = (done - before) / (now - started_at)
            counts += f", {speed:.3g} {self._unit}/s, {(self._total - done) / speed:.0f} s left"
        return f"  {self.description}: {counts}{ending}"

    def _new_bar(self, done: int, waited: float) -> "tqdm[Any]":
        from tqdm import tqdm

        return tqdm(
            desc=f"  {self.description}",
            initial=done,
            total=self._total,
            unit=f" {self._unit}",
            delay=max(0.0, BAR_DELAY_SECONDS - waited),
            leave=False,
            dynamic_ncols=True,
            # Else a long detail leaves the bar no room at all.
            bar_format="{l_bar}{bar:12}{r_bar}",
        )
