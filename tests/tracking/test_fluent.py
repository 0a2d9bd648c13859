"""Calls of MLflow within a time: what they return and raise, and that they are not waited for."""

import threading

import pytest

from kd_pipeline.tracking.fluent import within


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_what_work_returns_or_raises_is_returned_or_raised(seconds: float | None) -> None:
    assert within(seconds, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="of its own"):
        within(seconds, lambda: (_ for _ in ()).throw(TimeoutError("of its own")))


def test_work_that_takes_longer_is_not_waited_for() -> None:
    end = threading.Event()
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s, as long as `mlflow\.max_w"):
        within(0.01, end.wait)
    end.set()
