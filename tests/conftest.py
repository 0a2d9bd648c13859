"""Shared by all tests: quiet threads, small images, a count of faults, a server of objects."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

from kd_pipeline.data.images import ImageSet

if TYPE_CHECKING:
    from kd_pipeline.data.dataset import LabelledImages
    from kd_pipeline.models.checkpoint import ModelCheckpoint
    from kd_pipeline.soft_targets.store import SoftTargets

# Tests run on busy machines: a slow one is not a wrong one.
settings.register_profile("house", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("house")
torch.set_num_threads(1)

FAULTS_PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
_FAULT = re.compile(r"^\|.*\| (survived|refused) \|.*\| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that docs/faults.md names with `fault`, and note the outcome it states."""
    rows = _FAULT.findall(FAULTS_PAGE.read_text(encoding="utf-8"))
    outcomes = {(file, function): outcome for outcome, file, function in rows}
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        name = getattr(item, "originalname", item.name)
        if (outcome := outcomes.get((file, name))) is not None:
            item.add_marker("fault")
            item.user_properties.append(("fault", outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many faults were tried, and how they ended; a failed test is a wrong end."""
    ends: Counter[str] = Counter()
    for status in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(status):
            # The report of a module that could not be collected has none.
            for key, outcome in getattr(report, "user_properties", ()):
                if key == "fault":
                    ends[outcome if status == "passed" else "wrong"] += 1
    if ends:
        counts = ", ".join(f"{end} {ends[end]}" for end in ("survived", "refused", "wrong"))
        terminalreporter.write_line(f"faults: tried {ends.total()}, {counts}")


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """120 grey images of 8 by 8: three classes told apart by which third is bright."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (120, 1, 8, 8), dtype=np.uint8)
    for position in range(120):
        start = 3 * (position % 3)
        pixels[position, :, start : start + 2] += 100
    return ImageSet(np.arange(0, 240, 2), pixels, ("low", "middle", "high"))


@pytest.fixture(scope="session")
def examples(images: ImageSet) -> pd.DataFrame:
    """The table that goes with `images`."""
    labels = np.arange(120) % 3
    return pd.DataFrame(
        {
            "example_id": images.example_ids,
            "label": pd.array(labels, dtype="Int64"),
            "class_name": [images.class_names[label] for label in labels],
            "source": [f"image {i}" for i in images.example_ids],
            "partition": "pool",
            "content_hash": [f"{i:x}" for i in images.example_ids],
        }
    )


@pytest.fixture(scope="session")
def splits(images: ImageSet, examples: pd.DataFrame) -> pd.DataFrame:
    """Four labels per class for the teacher, the pool as transfer set."""
    from kd_pipeline.data.settings import TransferSplitParams
    from kd_pipeline.data.splits import split_examples

    params = TransferSplitParams(
        test_fraction=0.3, validation_fraction=0.1, teacher={"labels_per_class": 4}
    )
    return split_examples(examples, images.class_names, params)


@pytest.fixture(scope="session")
def data(images: ImageSet, examples: pd.DataFrame, splits: pd.DataFrame) -> "LabelledImages":
    """Images, examples and splits together."""
    from kd_pipeline.data.dataset import LabelledImages

    return LabelledImages(images, examples, splits)


@pytest.fixture(scope="session")
def untrained(images: ImageSet) -> "Callable[..., ModelCheckpoint]":
    """Make a checkpoint of a network with initial weights, dropout and batch norm.

    Called with a seed; `class_names`, `shape` and the `facts` may differ from those of `images`.
    """
    from kd_pipeline.models.checkpoint import build_untrained, snapshot
    from kd_pipeline.models.preprocessing import Preprocessing
    from kd_pipeline.models.settings import Model

    model = Model(name="small_cnn", arguments={"channels": [4, 8], "dropout": 0.5})

    def make(
        seed: int = 0,
        *,
        class_names: tuple[str, ...] = images.class_names,
        shape: tuple[int, int, int] = (1, 8, 8),
        **facts: Any,
    ) -> "ModelCheckpoint":
        preprocessing = Preprocessing(shape, (0.5,) * shape[0], (0.3,) * shape[0])
        made = build_untrained(model, preprocessing, num_classes=len(class_names), seed=seed)
        return snapshot(made, model, class_names=class_names, facts=facts)

    return make


@pytest.fixture(scope="session")
def fitted(data: "LabelledImages") -> "Callable[[ModelCheckpoint, int], ModelCheckpoint]":
    """Train a checkpoint for some steps, each on all of the transfer set."""
    from kd_pipeline.models.checkpoint import build_classifier, copy_state

    ids = data.ids("transfer")
    pixels, labels = data.images.take(ids), data.labels_of(ids)

    def fit(checkpoint: "ModelCheckpoint", num_steps: int) -> "ModelCheckpoint":
        classifier = build_classifier(checkpoint).train()
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=0.02)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(num_steps):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(classifier(pixels), labels).backward()
                optimiser.step()
        return replace(checkpoint, state=copy_state(classifier.network))

    return fit


MakeCache = Callable[..., "SoftTargets"]


@pytest.fixture(scope="session")
def make_cache() -> MakeCache:
    """A cache of the transfer set by a teacher that is right with a logit of 6.

    Called with a folder, images and splits; `logits`, `encoding`, `facts` and `rows_per_part` go
    to the store, whatever else there is changes its provenance.
    """
    from kd_pipeline.data.splits import ids_with_role, split_fingerprint
    from kd_pipeline.soft_targets.manifest import Provenance
    from kd_pipeline.soft_targets.store import write_soft_targets
    from kd_pipeline.views import ViewPolicy

    def make(
        folder: Path, images: ImageSet, splits: pd.DataFrame, *, logits: Any = None, **changes: Any
    ) -> "SoftTargets":
        ids = ids_with_role(splits, "transfer")
        right = np.eye(3, dtype=np.float32)[images.positions(ids) % 3] * 6
        storing = {
            k: changes.pop(k) for k in changes.keys() & {"encoding", "facts", "rows_per_part"}
        }
        provenance: dict[str, Any] = {
            "class_names": images.class_names,
            "teacher_fingerprints": ("t",),
            "images_fingerprint": images.fingerprint,
            "splits_fingerprint": split_fingerprint(splits),
            "view_policy": ViewPolicy().description,
            "num_views": 1,
            **changes,
        }
        members, views = len(provenance["teacher_fingerprints"]), provenance["num_views"]
        return write_soft_targets(
            folder,
            [[right] * views] * members if logits is None else logits,
            ids,
            provenance=Provenance(**provenance),
            **storing,
        )

    return make


class ObjectServer(ThreadingHTTPServer):
    """As much of S3 as the project asks for, in memory: one bucket named `bucket`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.objects: dict[str, bytes] = {}
        self.conditional = True
        """Whether If-None-Match is heeded."""
        self.refusal = ""
        """Code of an error with which all requests are answered."""
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: ObjectServer

    def do_GET(self) -> None:
        self._key()
        if self.path.count("/") == 1:  # A list, less what is in deeper folders where asked so.
            prefix = dict(parse_qsl(urlsplit(self.path).query)).get("prefix", "")
            keys = [key for key in sorted(self.server.objects) if key.startswith(prefix)]
            if "delimiter=" in self.path:
                keys = [key for key in keys if "/" not in key.removeprefix(prefix)]
            date = "<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>0</ETag>"
            found = "".join(
                f"<Contents><Key>{key}</Key><Size>{len(self.server.objects[key])}</Size>{date}"
                "</Contents>"
                for key in keys
            )
            self._answer(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())
        elif (content := self.server.objects.get(self._key())) is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, last = int(span[1]), int(span[2])
            total = {"Content-Range": f"bytes {start}-{last}/{len(content)}"}
            self._answer(206, content[start : last + 1], **total)
        else:
            self._answer(200, content)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        content, key = self.rfile.read(int(self.headers["Content-Length"])), self._key()
        asked = self.headers.get("If-None-Match") == "*" and self.server.conditional
        if asked and key in self.server.objects:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            if not self.server.refusal:
                self.server.objects[key] = content
            self._answer(200, b"")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._key(), None)
        self._answer(204, b"")

    def do_POST(self) -> None:  # Removes several.
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        keys = re.findall(rb"<Key>(.*?)</Key>", asked)
        for key in keys:
            self.server.objects.pop(key.decode(), None)
        removed = b"".join(b"<Deleted><Key>%b</Key></Deleted>" % key for key in keys)
        self._answer(200, b"<DeleteResult>%b</DeleteResult>" % removed)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        if self.server.refusal:
            # As AWS does it, which quotes the key.
            key = self.headers.get("Authorization", "")
            status = 404 if self.server.refusal == "NoSuchBucket" else 403
            content = f"<Error><Code>{self.server.refusal}</Code><Key>{key}</Key></Error>".encode()
        self.send_response(status)
        for name, value in {
            "ETag": '"0"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            **headers,
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def object_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server of object storage, which the environment names, with credentials."""
    pytest.importorskip("obstore")
    with ObjectServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
