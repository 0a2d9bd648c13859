"""Given teachers: classes by name, preprocessing as declared, outputs that are logits."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from safetensors.torch import save_file

from kd_pipeline.errors import CheckpointError, ParameterError
from kd_pipeline.models.checkpoint import (
    ModelCheckpoint,
    build_classifier,
    build_untrained,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)
from kd_pipeline.models.given import FetchedModel, ImagesAtHand, match_classes, read_given
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.settings import Given, Model

PIXELS = torch.randint(
    0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
IMAGES = ImagesAtHand(("low", "middle", "high"), (1, 8, 8), PIXELS)
NAME = "teacher.given[0]"
PLAIN = {"mean": [0.0], "std": [1.0]}
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, *, num_classes=3, last=None):
        super().__init__()
        self.layer, self.last = nn.Linear(64, num_classes), last
    def forward(self, images):
        logits = self.layer(images.flatten(1))
        if self.last == "softmax":
            return logits.softmax(dim=1)
        if self.last == "dropout":
            return nn.functional.dropout(logits, 0.5, training=True)
        return logits / 0 if self.last == "nan" else logits

def number():
    return 3
"""

Write = Callable[..., Any]


def entry(**settings: Any) -> Any:
    """As in YAML, validated."""
    return TypeAdapter(Given).validate_python(settings)


def weights(num_classes: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "layer.weight": torch.randn(num_classes, 64, generator=generator),
        "layer.bias": torch.randn(num_classes, generator=generator),
    }


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Settings of a user's own network, whose module and weights lie in tmp_path."""
    (tmp_path / "users_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    save_file(weights(), tmp_path / "net.safetensors")

    def settings(**changes: Any) -> Any:
        usual = {
            "kind": "module",
            "import_path": "users_nets:Net",
            "file": str(tmp_path / "net.safetensors"),
            "class_names": "images",
            "preprocessing": PLAIN,
        }
        return entry(**(usual | changes))

    return settings


def logits_of(checkpoint: ModelCheckpoint) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = build_classifier(checkpoint)(PIXELS)
    return logits


def by_hand() -> torch.Tensor:
    state = weights()
    return PIXELS.flatten(1).float() / 255 @ state["layer.weight"].T + state["layer.bias"]


def test_a_users_own_network_travels_as_a_checkpoint(module: Write, tmp_path: Path) -> None:
    given = read_given(module(), IMAGES, name=NAME)
    torch.testing.assert_close(logits_of(given), by_hand())
    assert given.facts["costs"]["model/parameters"] == 195
    write_checkpoint(given, tmp_path / "kept")
    kept = read_checkpoint(tmp_path / "kept")
    assert kept.fingerprint == given.fingerprint
    assert torch.equal(logits_of(kept), logits_of(given))


def test_outputs_in_another_order_are_matched_by_name(module: Write, tmp_path: Path) -> None:
    given = read_given(module(class_names=["high", "low", "middle"]), IMAGES, name=NAME)
    assert given.class_names == IMAGES.class_names
    torch.testing.assert_close(logits_of(given), by_hand()[:, [1, 2, 0]])
    write_checkpoint(given, tmp_path / "kept")
    assert torch.equal(logits_of(read_checkpoint(tmp_path / "kept")), logits_of(given))


def test_names_may_be_in_a_file(module: Write, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("high\nlow\n\nmiddle\n")
    setting = {"class_names": None, "class_names_file": str(tmp_path / "names.txt")}
    given = read_given(module(**setting), IMAGES, name=NAME)
    assert given.class_order == (1, 2, 0)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match=r"class_names_file` must be a text file in UTF-8"):
        read_given(module(**setting), IMAGES, name=NAME)
    setting["class_names_file"] = "nowhere.txt"
    with pytest.raises(ParameterError, match=r"class_names_file` must be an existing file"):
        read_given(module(**setting), IMAGES, name=NAME)


def test_unnamed_outputs_are_refused_unless_trusted(module: Write) -> None:
    with pytest.raises(
        ParameterError, match=r"given\[0\]\.class_names` must list .* or be `images`"
    ):
        read_given(module(class_names=None), IMAGES, name=NAME)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["low", "middle"], "2 classes where the images have 3; only in the images: high"),
        (["low", "middle", "top"], "only in the teacher: top; only in the images: high"),
        (["low", "low", "high"], "named twice: low; only in the images: middle"),
    ],
)
def test_other_classes_are_refused_before_the_network_is_made(
    module: Write, names: list[str], message: str
) -> None:
    setting = module(class_names=names, import_path="no_such_module:Net")
    with pytest.raises(CheckpointError, match=f"must have the images' classes: {message}"):
        read_given(setting, IMAGES, name=NAME)


def test_a_head_of_another_size_is_refused(module: Write, tmp_path: Path) -> None:
    save_file(weights(4), tmp_path / "net.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"given\[0\]` cannot be built: .* do not fit module:.* 3 classes(?s:.*)size mismatch",
    ):
        read_given(module(), IMAGES, name=NAME)
    with pytest.raises(CheckpointError, match=r"logits of shape \(6, 3\) .* got \(6, 4\)"):
        read_given(module(arguments={"num_classes": 4}), IMAGES, name=NAME)


def test_weights_are_loaded_strictly(module: Write, tmp_path: Path) -> None:
    torch.save(weights() | {"more": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="Unexpected key"):
        read_given(module(file=str(tmp_path / "net.pth")), IMAGES, name=NAME)


def test_weights_of_another_precision_become_the_networks(module: Write, tmp_path: Path) -> None:
    half = {name: value.half() for name, value in weights().items()}
    save_file(half, tmp_path / "net.safetensors")
    given = read_given(module(), IMAGES, name=NAME)
    assert {value.dtype for value in given.state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("softmax", "got probabilities that sum to 1: take the layer before the softmax"),
        ("dropout", "for an image alone than among others: the model was saved in train mode"),
        ("nan", "got NaN or infinity"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(module: Write, last: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_given(module(arguments={"last": last}), IMAGES, name=NAME)


@pytest.mark.parametrize("path", ["no_such_module:Net", "users_nets:Missing", "users_nets:number"])
def test_an_import_path_that_makes_no_network_is_refused(module: Write, path: str) -> None:
    with pytest.raises(ParameterError, match=r"`teacher\.given\[0\]\.import_path` must"):
        read_given(module(import_path=path), IMAGES, name=NAME)


def test_a_network_of_another_size_is_refused(module: Write) -> None:
    with pytest.raises(CheckpointError, match=r"cannot score images of shape \(1, 16, 16\)"):
        read_given(module(preprocessing=PLAIN | {"input_size": 16}), IMAGES, name=NAME)


def test_colours_are_never_made_grey(module: Write) -> None:
    coloured = ImagesAtHand(IMAGES.class_names, (3, 8, 8), PIXELS.repeat(1, 3, 1, 1))
    with pytest.raises(ParameterError, match="one mean for each of the images' 3 channels"):
        read_given(module(), coloured, name=NAME)


def own_checkpoint() -> ModelCheckpoint:
    model = Model(name="mlp", arguments={"hidden": []})
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.5,))
    classifier = build_untrained(model, preprocessing, num_classes=3, seed=0)
    class_names = ("high", "low", "middle")
    return snapshot(classifier, model, class_names=class_names, facts={"images": "1f"})


def test_our_own_checkpoint_of_permuted_classes_is_put_in_order(tmp_path: Path) -> None:
    trained = own_checkpoint()
    write_checkpoint(trained, tmp_path / "given")
    setting = entry(kind="checkpoint", folder=str(tmp_path / "given"))
    given = read_given(setting, IMAGES, name=NAME)
    assert torch.equal(logits_of(given), logits_of(trained)[:, [1, 2, 0]])
    assert given.fingerprint != trained.fingerprint
    # Adopted again, for images in yet another order: the orders compose.
    write_checkpoint(given, tmp_path / "again")
    other = ImagesAtHand(("middle", "high", "low"), IMAGES.shape, PIXELS)
    again = read_given(entry(kind="checkpoint", folder=str(tmp_path / "again")), other, name=NAME)
    assert torch.equal(logits_of(again), logits_of(trained)[:, [2, 0, 1]])


def test_a_checkpoint_that_names_a_function_is_refused_at_once(tmp_path: Path) -> None:
    hostile = ModelCheckpoint(
        architecture="module:os:system",
        arguments={"command": f"touch {tmp_path / 'ran'}"},
        class_names=IMAGES.class_names,
        preprocessing=Preprocessing((1, 8, 8), (0.5,), (0.5,)),
        state={"weight": torch.zeros(1)},
    )
    write_checkpoint(hostile, tmp_path / "given")
    setting = entry(kind="checkpoint", folder=str(tmp_path / "given"))
    with pytest.raises(
        ParameterError, match=r"`teacher\.given\[0\]\.import_path` must name a class"
    ):
        read_given(setting, IMAGES, name=NAME)
    assert not (tmp_path / "ran").exists()


def onnx_file(
    folder: Path, *, dtype: int = TensorProto.FLOAT, side: int | str = 8, outputs: int = 3
) -> str:
    matrix = np.random.default_rng(0).normal(size=(64, outputs)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("images", dtype, ["batch", 1, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(matrix, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return str(folder / "net.onnx")


def test_an_onnx_teacher_travels_as_a_checkpoint(tmp_path: Path) -> None:
    setting = entry(
        kind="onnx",
        file=onnx_file(tmp_path),
        class_names=["high", "low", "middle"],
        preprocessing={"mean": [0.5], "std": [0.25]},
    )
    given = read_given(setting, IMAGES, name=NAME)
    write_checkpoint(given, tmp_path / "kept")
    (tmp_path / "net.onnx").unlink()
    kept = read_checkpoint(tmp_path / "kept")
    matrix = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    expected = ((PIXELS.flatten(1).numpy() / 255 - 0.5) / 0.25) @ matrix
    np.testing.assert_allclose(logits_of(kept), expected[:, [1, 2, 0]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "graph", "error", "message"),
    [
        ({"preprocessing": None}, {}, ParameterError, r"preprocessing` must be what the graph"),
        (
            {},
            {"dtype": TensorProto.UINT8},
            ParameterError,
            "be left out: the graph takes uint8 pixels",
        ),
        (
            {"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]}},
            {},
            ParameterError,
            "one mean for each of the graph's 1 channels",
        ),
        (
            {"preprocessing": PLAIN | {"input_size": 16}},
            {},
            ParameterError,
            r"input_size` must be the graph's own size \(8, 8\) or null",
        ),
        ({}, {"outputs": 4}, CheckpointError, r"logits of shape \(6, 3\) .* got \(6, 4\)"),
        ({"file": "nowhere.onnx"}, {}, ParameterError, "file` must be an existing file"),
    ],
)
def test_an_onnx_teacher_that_does_not_suit_is_refused(
    tmp_path: Path, changes: Any, graph: Any, error: type[Exception], message: str
) -> None:
    usual = {"file": onnx_file(tmp_path, **graph), "class_names": "images", "preprocessing": PLAIN}
    with pytest.raises(error, match=message):
        read_given(entry(kind="onnx", **(usual | changes)), IMAGES, name=NAME)


def test_a_graph_of_fixed_size_gets_views_of_that_size(tmp_path: Path) -> None:
    large = ImagesAtHand(IMAGES.class_names, (1, 16, 16), PIXELS.repeat(1, 1, 2, 2))
    setting = entry(
        kind="onnx", file=onnx_file(tmp_path), class_names="images", preprocessing=PLAIN
    )
    assert read_given(setting, large, name=NAME).preprocessing.shape == (1, 8, 8)


def test_an_onnx_model_fetched_from_mlflow_needs_no_names(tmp_path: Path) -> None:
    fetched = FetchedModel(Path(onnx_file(tmp_path)), "onnx", ("high", "middle", "low"))
    setting = entry(kind="mlflow", uri="models:/teacher/1", preprocessing=PLAIN)
    given = read_given(setting, IMAGES, name=NAME, fetched=fetched)
    matrix = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    expected = PIXELS.flatten(1).numpy() / 255 @ matrix[:, [2, 1, 0]]
    np.testing.assert_allclose(logits_of(given), expected, rtol=1e-3, atol=1e-4)
    assert given.facts["given"]["uri"] == "models:/teacher/1"


def test_a_checkpoint_fetched_from_mlflow_keeps_its_facts(tmp_path: Path) -> None:
    trained = own_checkpoint()
    write_checkpoint(trained, tmp_path / "own")
    fetched = FetchedModel(tmp_path / "own", "checkpoint", trained.class_names)
    setting = entry(kind="mlflow", uri="models:/teacher/1")
    given = read_given(setting, IMAGES, name=NAME, fetched=fetched)
    assert torch.equal(logits_of(given), logits_of(trained)[:, [1, 2, 0]])
    assert given.facts["images"] == "1f"
    setting = entry(kind="mlflow", uri="models:/teacher/1", preprocessing=PLAIN)
    with pytest.raises(ParameterError, match=r"given\[0\]\.preprocessing` must be left out"):
        read_given(setting, IMAGES, name=NAME, fetched=fetched)


def test_a_library_that_knows_several_names_is_matched_by_the_one_that_fits() -> None:
    declared = [["n1", "n2"], ["cat", "dog"]]
    assert match_classes(declared, ("dog", "cat"), name=NAME) == (1, 0)
    assert match_classes(declared, ("n1", "n2"), name=NAME) is None


def test_a_teacher_whose_code_has_changed_is_another_one(module: Write, tmp_path: Path) -> None:
    """The weights are the same, and what `forward` does with them is not."""
    setting = module()
    given = read_given(setting, IMAGES, name=NAME)
    write_checkpoint(given, tmp_path / "kept")
    file = tmp_path / "users_nets.py"
    file.write_text(file.read_text() + "\n# mended\n")
    again = read_given(setting, IMAGES, name=NAME)
    assert again.fingerprint != given.fingerprint
    with pytest.raises(CheckpointError, match="the code of module:users_nets:Net has changed"):
        build_classifier(read_checkpoint(tmp_path / "kept"))


@pytest.mark.parametrize("computes", ["images * 1.01", "images.float() * 1.01"])
def test_a_teacher_whose_helper_has_changed_is_another_one(
    computes: str, module: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file is the same. The second helper makes the network fail in float64."""
    helper, setting = tmp_path / "users_helper.py", module(import_path="users_other:Other")
    body = "from users_helper import scaled\nfrom users_nets import Net\n\n"
    body += "class Other(Net):\n    def forward(self, images):\n"
    (tmp_path / "users_other.py").write_text(
        body + "        return super().forward(scaled(images))"
    )

    def write_helper(returned: str) -> None:
        helper.write_text(f"def scaled(images):\n    return {returned}\n")
        for name in ("users_other", "users_helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    write_helper(computes.replace("1.01", "1.0"))
    given = read_given(setting, IMAGES, name=NAME)
    write_checkpoint(given, tmp_path / "kept")
    assert read_given(setting, IMAGES, name=NAME).fingerprint == given.fingerprint
    build_classifier(read_checkpoint(tmp_path / "kept"))
    write_helper(computes)
    assert read_given(setting, IMAGES, name=NAME).code == given.code
    assert read_given(setting, IMAGES, name=NAME).fingerprint != given.fingerprint
    with pytest.raises(CheckpointError, match=r"users_other:Other has changed since"):
        build_classifier(read_checkpoint(tmp_path / "kept"))


def test_the_code_of_a_class_is_where_it_is_written(
    module: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where it is imported from."""
    (tmp_path / "users_shop.py").write_text("from users_nets import Net")
    monkeypatch.delitem(sys.modules, "users_shop", raising=False)
    given = read_given(module(import_path="users_shop:Net"), IMAGES, name=NAME)
    assert given.code == read_given(module(), IMAGES, name=NAME).code


def test_a_kept_teacher_whose_code_is_missing_is_refused_by_its_import_path(
    module: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read_given(module(), IMAGES, name=NAME)
    (tmp_path / "users_nets.py").unlink()
    monkeypatch.delitem(sys.modules, "users_nets")
    importlib.invalidate_caches()
    with pytest.raises(ParameterError, match=r"`import_path` must .*No module named 'users_nets'"):
        build_classifier(given)
