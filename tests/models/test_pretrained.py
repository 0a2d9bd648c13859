"""Pretrained weights: torchvision's own names or a local file; only the head may start afresh."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.architectures import build_network
from kd_pipeline.models.pretrained import (
    adopt_weights,
    freeze_all_but_last,
    layers_with_weights,
    load_weights,
    read_state,
)
from kd_pipeline.models.settings import Pretrained


def network(classes: int = 3, name: str = "small_cnn", channels: int = 1) -> nn.Module:
    arguments: dict[str, Any] = {"channels": [4, 8]} if name == "small_cnn" else {}
    return build_network(name, shape=(channels, 16, 16), num_classes=classes, arguments=arguments)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_gives_all_but_the_head(tmp_path: Path, suffix: str) -> None:
    given = network(classes=1000)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(given.state_dict(), path)
    else:
        torch.save({"state_dict": given.state_dict()}, path)
    mine = network(classes=3)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    weights = load_weights("small_cnn", Pretrained(file=str(path)))
    fresh = adopt_weights(mine, weights.state, same_classes=False)
    assert fresh == layers_with_weights(mine)[-1] == ["9.weight", "9.bias"]
    for name, value in mine.state_dict().items():
        assert torch.equal(value, (before if name in fresh else given.state_dict())[name])


def test_a_head_of_the_same_classes_is_kept() -> None:
    given, mine = network(), network()
    assert adopt_weights(mine, given.state_dict(), same_classes=True) == []
    assert torch.equal(mine.state_dict()["9.weight"], given.state_dict()["9.weight"])


def test_a_head_of_equal_size_but_other_classes_starts_afresh() -> None:
    given, mine = network(), network()
    assert adopt_weights(mine, given.state_dict(), same_classes=False) == ["9.weight", "9.bias"]


def test_torchvision_weights_give_all_but_the_head() -> None:
    given = network(classes=1000, name="resnet18", channels=3)
    mine = network(classes=3, name="resnet18", channels=3)
    assert adopt_weights(mine, given.state_dict(), same_classes=False) == ["fc.weight", "fc.bias"]


class RunsCode:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    torch.save({"0.weight": RunsCode(witness)}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(RunsCode(witness), 2))
    for file in ("bad.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="cannot be read without running code"):
            read_state(tmp_path / file)
    assert not witness.exists()
    # The bait works: a careless reader would have made the file.
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert witness.exists()


@pytest.mark.parametrize("old_format", [True, False])
def test_a_damaged_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, old_format: bool
) -> None:
    """Of 200 damages some lie in the numbers themselves: those give a state dict of same names."""
    state, file, rng = network().state_dict(), tmp_path / "bad.pth", np.random.default_rng(0)
    torch.save(state, file, _use_new_zipfile_serialization=not old_format)
    whole, refused = file.read_bytes(), 0
    for cut in (True, False) * 100:
        content = bytearray(whole)
        if cut:
            del content[rng.integers(len(content)) :]
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        try:
            assert len(read_state(file)) == len(state)
        except CheckpointError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_body_that_does_not_fit_is_refused() -> None:
    given = network().state_dict()
    given["0.weight"] = torch.zeros(5, 1, 3, 3)
    del given["1.bias"]
    with pytest.raises(
        CheckpointError, match=r"Missing .*1\.bias(?s:.*)size mismatch for 0\.weight"
    ):
        adopt_weights(network(), given, same_classes=True)


@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_var", "9.bias"])
def test_a_missing_tensor_alone_is_refused(name: str) -> None:
    given = network().state_dict()
    del given[name]
    with pytest.raises(CheckpointError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        adopt_weights(network(), given, same_classes=True)


def test_torchvision_weights_by_enum_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real enum; only the download is replaced, by a state dict made here."""
    import torchvision

    enum = torchvision.models.get_model_weights("squeezenet1_1")
    state = torchvision.models.get_model("squeezenet1_1", weights=None).state_dict()
    monkeypatch.setattr(enum, "get_state_dict", lambda *a, **k: state)
    weights = load_weights("squeezenet1_1", Pretrained(weights="IMAGENET1K_V1"))
    assert weights.class_names is not None
    assert weights.class_names[0] == "tench"
    assert weights.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mine = network(classes=4, name="squeezenet1_1", channels=3)
    fresh = adopt_weights(mine, weights.state, same_classes=False)
    assert fresh == ["classifier.1.weight", "classifier.1.bias"]


def test_unknown_weights_and_files_are_named(tmp_path: Path) -> None:
    message = "`pretrained.weights` must be weights of resnet50, got 'V9'; legal: IMAGENET1K_V1"
    with pytest.raises(ParameterError, match=message):
        load_weights("resnet50", Pretrained(weights="V9"))
    with pytest.raises(ParameterError, match="null for small_cnn, which torchvision has no"):
        load_weights("small_cnn", Pretrained(weights="DEFAULT"))
    with pytest.raises(ParameterError, match=r"`pretrained\.file` must be an existing file"):
        load_weights("resnet50", Pretrained(file=str(tmp_path / "none.pth")))


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"state_dict": SimpleNamespace(a=1)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        load_weights("resnet18", Pretrained(file=str(tmp_path / "bad.pth")))


def test_only_the_last_layers_train() -> None:
    model = network()
    freeze_all_but_last(model, 2)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"5.weight", "5.bias", "9.weight", "9.bias"}
    with pytest.raises(ParameterError, match="be at most the 5 layers that have weights"):
        freeze_all_but_last(model, 99)


def test_a_file_is_normalised_as_its_architecture_usually_is(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    pretrained = Pretrained(file=str(tmp_path / "net.safetensors"))
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert load_weights("resnet18", pretrained).normalisation == imagenet
    assert load_weights("small_cnn", pretrained).normalisation is None
    assert load_weights("resnet18", pretrained).class_names is None
