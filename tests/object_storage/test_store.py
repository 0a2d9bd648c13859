"""Requests to object storage: what is refused before a run, how long that takes, what is shown."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.errors import ObjectStorageError
from kd_pipeline.object_storage.store import ObjectStore, connect

KEYS = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
URI = "s3://bucket/some/prefix"


@pytest.fixture
def store(object_server: Any) -> ObjectStore:
    return connect(URI, 2.0)


def refusal(store: ObjectStore) -> str:
    """The one line that a user sees."""
    with pytest.raises(ObjectStorageError) as refused:
        store.check()
    text = str(refused.value)
    assert "the-secret" not in text
    assert "the-key-id" not in text
    assert refused.value.__cause__ is None
    assert "\n" not in text
    return text


def test_a_store_that_can_all_is_left_as_it_was(store: ObjectStore, object_server: Any) -> None:
    object_server.objects["some/prefix/a"] = b"1"
    store.check()
    assert object_server.objects == {"some/prefix/a": b"1"}


def test_objects_are_written_read_listed_and_removed(
    store: ObjectStore, object_server: Any, tmp_path: Path
) -> None:
    store.write("a/b", b"12345")
    assert object_server.objects == {"some/prefix/a/b": b"12345"}
    assert store.read("a/b") == b"12345"
    assert store.read("a") is None
    assert store.has("a/b")
    assert not store.has("a")
    store.fetch("a/b", tmp_path / "b", 5)
    assert (tmp_path / "b").read_bytes() == b"12345"
    store.write("a/b/c", b"")
    assert store.sizes("a") == {"a/b": 5, "a/b/c": 0}
    assert store.sizes("a", recursive=False) == {"a/b": 5}
    store.delete(["a/b", "missing"])
    assert store.sizes("a") == {"a/b/c": 0}


def test_an_object_is_put_once(store: ObjectStore) -> None:
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    assert store.read("a") == b"1"


def test_a_store_that_overwrites_what_is_there_is_refused(
    store: ObjectStore, object_server: Any
) -> None:
    object_server.conditional = False
    text = refusal(store)
    assert text.startswith(f"object storage {URI} at {object_server.url} must refuse to put")
    assert not object_server.objects


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("NoSuchBucket", "the bucket is not there"),
        ("SignatureDoesNotMatch", "the secret key is not that of the access key"),
        ("InvalidAccessKeyId", "the access key is unknown there"),
        ("AccessDenied", "these credentials may not do that"),
        ("Whatever", "it answered Whatever"),
    ],
)
def test_what_a_server_refuses_is_told_in_a_line_without_its_answer(
    store: ObjectStore, object_server: Any, code: str, reason: str
) -> None:
    object_server.refusal = code
    assert refusal(store) == f"object storage {URI} at {object_server.url}: {reason}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and answers nothing."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "closed"])
def test_a_server_that_does_not_answer_is_named_after_a_bounded_wait(
    object_server: Any, silent: str, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    endpoint = silent if is_silent else "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    started = time.monotonic()
    assert refusal(connect(URI, 0.3)).endswith(f"{endpoint}: the server does not answer")
    assert time.monotonic() - started < 10


def test_credentials_in_the_endpoint_are_not_shown(
    object_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://the-key-id:the-secret@127.0.0.1:1")
    assert "at http://127.0.0.1:1: the server does not answer" in refusal(connect(URI, 0.3))


@pytest.mark.parametrize("missing", [["AWS_ACCESS_KEY_ID"], KEYS], ids=["one", "both"])
def test_missing_credentials_are_named(
    object_server: Any, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # A machine without a role.
    with pytest.raises(ObjectStorageError, match="no credentials: AWS_ACCESS_KEY_ID and"):
        connect(URI, 0.3).check()
