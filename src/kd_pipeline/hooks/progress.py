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
    """Shows how far one loop is, how fast it runs and how long it will take."""

    def __init__(self, description: str, *, total: int, unit: str) -> None:
        """Begin at nothing done."""
        self.description = description
        self._total = total
        self._unit = unit
        self._started_at = self._logged_at = time.monotonic()
        self._bar: tqdm[Any] | None = _bar(description, total, unit) if _on_terminal() else None

    def advance(self, done: int, detail: str = "") -> None:
        """Show how much is done by now, and a detail beside."""
        if self._bar is not None:
            self._bar.set_postfix_str(detail, refresh=False)
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) - self._logged_at >= LINE_EVERY_SECONDS:
            self._logged_at = now
            logger.info("%s", self._line(done, now - self._started_at, detail))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, seconds: float, detail: str) -> str:
        speed = done / seconds
        left = f", {(self._total - done) / speed:.0f} s left" if speed else ""
        ending = f", {detail}" if detail else ""
        counts = f"{done}/{self._total} {self._unit}, {speed:.3g} {self._unit}/s"
        return f"  {self.description}: {counts}{left}{ending}"


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _bar(description: str, total: int, unit: str) -> "tqdm[Any]":
    from tqdm import tqdm

    return tqdm(
        desc=f"  {description}",
        total=total,
        unit=f" {unit}",
        delay=BAR_DELAY_SECONDS,
        leave=False,
        dynamic_ncols=True,
        # Else a long detail leaves the bar no room at all.
        bar_format="{l_bar}{bar:12}{r_bar}",
    )
