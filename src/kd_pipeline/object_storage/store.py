"""The requests that a mirror makes of object storage: bounded waits, errors in a line, no secrets.

Credentials, region and endpoint are those of the environment: `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, or the role of the machine.
"""

import importlib.util
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_pipeline.errors import ObjectStorageError, SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Backend

_BLOCK_BYTES = 16 * 2**20
"""Fetched by one request, which has a time limit; also the parts of an upload."""
_CONNECT_SECONDS = 5.0
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_NO_CREDENTIALS = re.compile(r"/latest/(api/token|meta-data)|http://169\.254\.170\.|Missing\w+Key")
"""One of two keys is set; or none, and the machine's role was asked for them."""
_REASONS = {
    "NoSuchBucket": "the bucket is not there",
    "SignatureDoesNotMatch": "the secret key is not that of the access key",
    "InvalidAccessKeyId": "the access key is unknown there",
    "AccessDenied": "these credentials may not do that",
}


class ObjectStore:
    """Objects below one URI, by name."""

    def __init__(self, backend: "Backend", uri: str, endpoint: str = "") -> None:
        """Wrap a store of obstore; `uri` and `endpoint` are for messages."""
        self._backend = backend
        self.uri = uri.rstrip("/")
        self._named = _name(self.uri, endpoint)

    def check(self) -> None:
        """Refuse a store that cannot be read, written, or asked to put only what is not there.

        Raises:
            ObjectStorageError: Naming the URI, the endpoint and what is wrong.
        """
        import obstore

        with self._in_a_line():
            # First: some servers make a bucket when something is put into it.
            next(iter(obstore.list(self._backend, chunk_size=1)), None)
        probe = f".put-if-absent-{secrets.token_hex(8)}"
        try:
            if not (self.put_if_absent(probe, b"1") and not self.put_if_absent(probe, b"2")):
                raise ObjectStorageError(
                    f"{self._named} must refuse to put an object that is there (If-None-Match) "
                    "and does not: two runs could overwrite each other's artefacts unseen"
                )
        finally:
            self.delete([probe])

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        import obstore

        with self._in_a_line():
            try:
                return bytes(obstore.get(self._backend, name).bytes())
            except FileNotFoundError:
                return None

    def fetch(self, name: str, target: Path, size_bytes: int) -> None:
        """Write an object's content to a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        import obstore

        with self._in_a_line(), target.open("wb") as file:
            for start in range(0, size_bytes, _BLOCK_BYTES):
                end = min(start + _BLOCK_BYTES, size_bytes)
                file.write(obstore.get_range(self._backend, name, start=start, end=end))

    def write(self, name: str, content: bytes | Path) -> None:
        """Put an object, or replace it; it appears whole or not at all."""
        import obstore

        with self._in_a_line():
            # Four blocks in memory at a time.
            obstore.put(self._backend, name, content, chunk_size=_BLOCK_BYTES, max_concurrency=4)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Put an object where there is none: of processes that try at once, one does.

        Returns:
            Whether it was put.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._in_a_line():
            try:
                obstore.put(self._backend, name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        import obstore

        with self._in_a_line():
            if names:
                obstore.delete(self._backend, list(names))

    def sizes(self, folder: str, *, recursive: bool = True) -> dict[str, int]:
        """Objects below a folder, with their bytes."""
        import obstore

        with self._in_a_line():
            if recursive:
                found = [one for batch in obstore.list(self._backend, folder) for one in batch]
            else:
                found = list(obstore.list_with_delimiter(self._backend, folder)["objects"])
        return {one["path"]: one["size"] for one in found}

    def has(self, name: str) -> bool:
        """Whether there is an object of this very name."""
        import obstore

        with self._in_a_line():
            try:
                obstore.head(self._backend, name)
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        """Turn obstore's errors, which quote whole answers, into the reason alone."""
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            # `from None`: answers of servers may quote keys, and a traceback would show them.
            raise ObjectStorageError(f"{self._named}: {_reason(str(error))}") from None


def connect(uri: str, max_wait_seconds: float) -> ObjectStore:
    """Open the store below a URI; nothing is requested yet.

    Raises:
        ObjectStorageError: If only one of two keys is set.
        SettingsError: If obstore is not installed.
    """
    if importlib.util.find_spec("obstore") is None:
        raise SettingsError(
            "`object_storage.folders` needs obstore: pip install 'kd_pipeline[object_storage]'"
        )
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    endpoint = next((os.environ[n] for n in _ENDPOINT_VARIABLES if os.environ.get(n)), "")
    shown, wait = _without_secrets(endpoint) or "AWS", timedelta(seconds=max_wait_seconds)
    given: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    try:
        backend = S3Store.from_url(
            uri,
            client_options={
                "connect_timeout": min(wait, timedelta(seconds=_CONNECT_SECONDS)),
                "timeout": wait,
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": 10, "retry_timeout": wait},
            **given,
        )
    except BaseError as error:
        raise ObjectStorageError(f"{_name(uri, shown)}: {_reason(str(error))}") from None
    return ObjectStore(backend, uri, shown)


def _name(uri: str, endpoint: str) -> str:
    return f"object storage {uri}" + (f" at {endpoint}" if endpoint else "")


def _without_secrets(endpoint: str) -> str:
    return re.sub(r"//[^/@]*@", "//", endpoint)


def _reason(text: str) -> str:
    if _NO_CREDENTIALS.search(text):
        return (
            "no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and this "
            "machine has no role that gives any"
        )
    if code := re.search(r"<Code>(\w+)</Code>", text):
        return _REASONS.get(code[1], f"it answered {code[1]}")
    if status := re.search(r"status code: (\d+ [\w ]+)", text):
        return f"it answered {status[1]}"
    if "error sending request" in text or "timed out" in text.lower():
        return "the server does not answer"
    return text.partition("\n")[0][:300]
