"""Where trials are kept: the journal, or the server of OPTUNA_STORAGE, refused by name."""

import socket
from pathlib import Path

import pytest

from kd_pipeline.errors import DataError, ParameterError
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.sweep.storage import JOURNAL, SERVER, check_installed, mend_journal, storage_errors
from kd_pipeline.sweep.study import open_study

PARAMS = SweepParams(parameters={"student.training.batch_size": {"choices": [16, 32]}})


def test_a_server_of_another_kind_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SERVER, "mysql://ada:s3cret@host/trials")
    rule = r"`OPTUNA_STORAGE` must begin with postgresql\+psycopg://, got 'mysql:'"
    with pytest.raises(ParameterError, match=rule) as caught:
        check_installed()
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_away_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="the extra `postgresql` is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv(SERVER, f"postgresql+psycopg://ada:s3cret@127.0.0.1:{port}/trials")
        check_installed()
        with pytest.raises(DataError) as caught, storage_errors():
            open_study(tmp_path, "arm", PARAMS)
    server = f"postgresql+psycopg://ada:***@127.0.0.1:{port}/trials"
    assert f"the trials at {server} cannot be reached" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / JOURNAL).exists()


def test_a_whole_journal_is_left_as_it_is_and_unlocked(tmp_path: Path) -> None:
    open_study(tmp_path, "arm", PARAMS)
    content = (tmp_path / JOURNAL).read_bytes()
    mend_journal(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
