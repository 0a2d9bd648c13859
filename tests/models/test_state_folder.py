"""Training states: nested values come back as they were, and a damaged state is not used."""

from pathlib import Path

import pytest
import torch

from kd_pipeline.models import state_folder
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.object_storage.mirror import Mirror
from kd_pipeline.object_storage.store import ObjectStore


def test_nested_states_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(3)
    state = {
        "tensors": {"a": shared, "b": shared, "bf16": torch.ones(2, dtype=torch.bfloat16)},
        "integer keys": {0: {"step": torch.tensor(3.0)}, 1: None},
        "plain": [1, 2.5, "x", None, True, float("nan")],
        "strided": torch.arange(6).view(2, 3).t(),
    }
    folder = StateFolder(tmp_path / "states")
    folder.save("key", state)
    loaded = folder.load("key")
    assert loaded is not None
    assert torch.equal(loaded["tensors"]["a"], shared)
    assert torch.equal(loaded["strided"], state["strided"])
    assert list(loaded["integer keys"]) == [0, 1]
    assert loaded["plain"][:5] == state["plain"][:5]
    assert loaded["tensors"]["bf16"].dtype == torch.bfloat16


def test_an_unknown_key_has_no_state_and_clearing_forgets_all(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "states")
    assert folder.load("key") is None
    folder.save("key", {"a": 1})
    folder.clear()
    assert folder.load("key") is None
    folder.clear()


def test_what_was_used_is_kept_for_this_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path / "states")
    folder.keep_used(0.0)
    folder.save("finished", {"a": 1})
    folder.keep_used(0.0)
    folder.save("interrupted", {"a": 2})
    assert (folder.load("finished"), folder.load("interrupted")) == ({"a": 1}, {"a": 2})
    monkeypatch.setattr(state_folder, "package_digest", lambda: "other code")
    assert folder.load("finished") is None
    assert folder.load("interrupted") == {"a": 2}
    folder.save("finished", {"a": 3})  # Trained anew: interrupted until it is kept.
    assert folder.load("finished") == {"a": 3}
    (tmp_path / "states/finished/complete.json").write_text("[]")
    assert folder.load("finished") is None


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_a_damaged_state_is_named_and_counts_as_none(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = StateFolder(tmp_path)
    folder.save("key", {"a": torch.ones(3), "b": 1.5, "c": float("nan")})
    assert folder.load("key") is not None
    content = bytearray((tmp_path / "key" / file).read_bytes())
    at = content.index(b"1.5") if file == "state.json" else len(content) - 1
    content[at] ^= 1
    (tmp_path / "key" / file).write_bytes(content)
    assert folder.load("key") is None
    assert f"the interrupted training in {tmp_path / 'key'} is damaged" in caplog.text


def test_a_state_is_there_on_another_machine_until_it_is_cleared(tmp_path: Path) -> None:
    stores = pytest.importorskip("obstore.store")
    backend = stores.MemoryStore()

    def folder_of(machine: str) -> StateFolder:
        mirror = Mirror(tmp_path / machine, ObjectStore(backend, "s3://bucket/x"))
        return StateFolder(tmp_path / machine / "states", mirror)

    one, other = folder_of("one"), folder_of("other")
    assert other.load("key") is None
    one.save("key", {"epoch": 1})
    one.save("key", {"epoch": 2})
    assert other.load("key") == {"epoch": 2}
    one.save("key", {"epoch": 3})
    assert other.load("key") == {"epoch": 2}  # Its own, from which training ends the same.
    other.keep_used(0.0)
    assert folder_of("late").load("key") is None
