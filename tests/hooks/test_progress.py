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
    clock = iter([100.0, 110.0, 130.0, 140.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        shown = Progress("replicate 0", total=100, unit="epochs")
        for done in (10, 20, 30, 40):
            shown.advance(done, "loss 0.5")
        shown.close()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["  replicate 0: 20/100 epochs, 0.5 epochs/s, 160 s left, loss 0.5"]


@pytest.mark.parametrize("replayed", [(40,), (38, 39, 40)])
def test_what_an_earlier_run_had_done_counts_for_no_speed(
    replayed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([100.0, *(100.1 for _ in replayed), 140.1])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        shown = Progress("replicate 0", total=100, unit="epochs")
        for done in (*replayed, 41):
            shown.advance(done)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["  replicate 0: 41/100 epochs, 0.025 epochs/s, 2360 s left"]


def test_a_loop_whose_first_step_is_long_shows_it_without_a_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([100.0, 140.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        Progress("replicate 0", total=100, unit="epochs").advance(1)
    assert [record.getMessage() for record in caplog.records] == ["  replicate 0: 1/100 epochs"]


def test_a_terminal_gets_a_bar_with_speed_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "BAR_DELAY_SECONDS", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress("decode images", total=4, unit="images")
    shown.advance(1, "fine")
    assert shown._bar is not None
    shown._bar.mininterval = 0
    for done in (2, 3):
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
