"""A bar on a terminal, a line now and then elsewhere."""

import io
import logging
import sys

import pytest

from kd_pipeline.hooks import progress
from kd_pipeline.hooks.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([100.0, 110.0, 140.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        shown = Progress("replicate 0", total=100, unit="epochs")
        for done in (10, 20, 30):
            shown.advance(done, "loss 0.5")
        shown.close()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["  replicate 0: 20/100 epochs, 0.5 epochs/s, 160 s left, loss 0.5"]


def test_a_terminal_gets_a_bar_with_speed_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "BAR_DELAY_SECONDS", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("decode images", total=4, unit="images")
    assert shown._bar is not None
    shown._bar.mininterval = 0
    for done in (1, 2, 3):
        shown.advance(done, "fine")
    text = terminal.getvalue()
    assert "decode images" in text
    assert "3/4" in text
    assert "images/s" in text
    assert "fine" in text
    shown.close()
    assert terminal.getvalue().endswith("\r")  # the bar is wiped


def test_what_is_over_soon_needs_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("replicate 0", total=2, unit="epochs")
    shown.advance(1)
    shown.close()
    assert "replicate" not in terminal.getvalue()
