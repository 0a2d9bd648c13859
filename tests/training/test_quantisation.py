"""Fine-tuning for int8: simulates what is exported, mends what rounding breaks, resumes exactly."""

import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.images import ImageSet
from kd_pipeline.errors import ParameterError, TrainingDivergedError
from kd_pipeline.events import EpochEnded, Event, listening
from kd_pipeline.losses.settings import ObjectiveParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.checkpoint import build_untrained, snapshot
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.preprocessing import Preprocessing
from kd_pipeline.models.pretrained import freeze_all_but_last, layers_with_weights
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.training.checks import check_student
from kd_pipeline.training.engine import TrainingPlan, train_classifier
from kd_pipeline.training.quantisation import (
    FakeQuantised,
    fake_quantise,
    fine_tune,
    fine_tuning_plan,
    with_weights,
)
from kd_pipeline.training.rows import Rows
from kd_pipeline.training.settings import Quantisation, StudentParams, Training

NUM_TRAINING_ROWS = 800
MODEL = Model(name="small_cnn", arguments={"channels": [8, 8], "dropout": 0.1})
PREPROCESSING = Preprocessing((1, 8, 8), (0.3,), (0.4,))
CLASS_NAMES = tuple("0123456789")
INT8 = Quantisation(name="int8")


def digits(part: slice) -> Rows:
    """Some of scikit-learn's digits, 1 x 8 x 8."""
    found = load_digits()
    pixels = (found.images[part] * 255 / 16).astype(np.uint8)[:, None]
    images = ImageSet(np.arange(len(pixels)), pixels, CLASS_NAMES)
    labels = torch.from_numpy(found.target[part])
    return Rows(images.reader(images.example_ids, device="cpu", budget=MemoryBudget(2**20)), labels)


def all_pixels(rows: Rows) -> Tensor:
    return rows.pixels(torch.arange(len(rows)))


@pytest.fixture(scope="module")
def plan() -> TrainingPlan:
    training = {
        "num_epochs": 8,
        "batch_size": 32,
        "optimiser": {"arguments": {"lr": 0.01}},
        "evaluate_every": 8,
        "checkpoint_every": 1,
        "device": "cpu",
        "precision": "float32",
    }
    return TrainingPlan(
        rows=digits(slice(NUM_TRAINING_ROWS)),
        validation=digits(slice(NUM_TRAINING_ROWS, None)),
        objective=ObjectiveParams(),
        training=Training(**training),
        steps_per_epoch=NUM_TRAINING_ROWS // 32,
        seed=1,
    )


@pytest.fixture(scope="module")
def trained(plan: TrainingPlan, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    classifier = build_untrained(MODEL, PREPROCESSING, num_classes=10, seed=0)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Other than torch's defaults, which torchao sets them to.
            module.eps, module.momentum = 1e-3, 0.15
    states = StateFolder(tmp_path_factory.mktemp("states"))
    train_classifier(classifier, plan, states=states, key="float")
    return classifier


@pytest.fixture(scope="module")
def simulation(trained: Classifier) -> Classifier:
    return fake_quantise(trained)


def simulate(simulation: Classifier, classifier: Classifier, pixels: Tensor) -> Classifier:
    """Post-training quantisation: ranges measured on pixels, weights as they are."""
    from torchao.quantization.pt2e import disable_observer, enable_observer

    simulated = with_weights(simulation, classifier).eval()
    simulated.apply(enable_observer)
    with torch.no_grad():
        for batch in pixels.split(64):
            simulated(batch)
    return simulated.apply(disable_observer)


def fine_tuned(
    simulation: Classifier,
    classifier: Classifier,
    plan: TrainingPlan,
    folder: Path,
    quantisation: Quantisation = INT8,
) -> Classifier:
    """The classifier with fine-tuned weights, in float."""
    after = fine_tuning_plan(plan, quantisation, epochs_before=8)
    state, _ = fine_tune(simulation, classifier, after, states=StateFolder(folder), key="k")
    tuned = copy.deepcopy(classifier)
    tuned.network.load_state_dict(state)
    return tuned.eval()


def with_unequal_channels(classifier: Classifier) -> Classifier:
    """The same function, computed with activations of which some channels are 200 times others.

    ReLU and max pooling commute with a positive scale per channel (Nagel et al. 2019,
    arXiv:1906.04721), but one range for all channels leaves the small ones few of int8's steps.
    """
    scaled = copy.deepcopy(classifier)
    layers = scaled.network
    assert isinstance(layers, nn.Sequential)
    norm, convolution = layers[1], layers[4]
    scales = torch.logspace(0, 2.3, 8)
    with torch.no_grad():
        norm.weight.mul_(scales)
        norm.bias.mul_(scales)
        convolution.weight.div_(scales[None, :, None, None])
    return scaled


def accuracy(classifier: Callable[[Tensor], Tensor], rows: Rows) -> float:
    with torch.no_grad():
        logits = classifier(all_pixels(rows))
    return float((logits.argmax(dim=1) == rows.labels).double().mean())


def test_without_rounding_the_simulation_is_the_network(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan
) -> None:
    from torchao.quantization.pt2e import disable_fake_quant

    exact = with_weights(simulation, trained).apply(disable_fake_quant)
    pixels = all_pixels(plan.validation)[:5]
    torch.testing.assert_close(exact.eval()(pixels), trained.eval()(pixels), rtol=1e-5, atol=1e-5)
    rounded = simulate(simulation, trained, all_pixels(plan.rows))
    assert (rounded(pixels) - trained(pixels)).abs().max() > 1e-3


def test_modes_switch_dropout_batch_norm_and_ranges(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan
) -> None:
    pixels = all_pixels(plan.rows)[:8]
    simulated = with_weights(simulation, trained).train()
    simulated(pixels)  # Ranges exist from here on.
    for mode in (False, True):
        simulated.train(mode)
        before = {name: value.clone() for name, value in simulated.state_dict().items()}
        logits = simulated(pixels // 2)
        changed = {n for n, v in simulated.state_dict().items() if not torch.equal(v, before[n])}
        changed = {name for name in changed if not name.endswith("num_batches_tracked")}
        assert torch.equal(simulated(pixels // 2), logits) is not mode
        assert any(name.endswith("max_val") for name in changed) is mode
        assert any(name.endswith("running_mean") for name in changed) is mode
    assert simulated.eval()(pixels[:1]).shape == (1, 10)


def test_frozen_layers_stay_as_they_are_while_the_others_are_fine_tuned(
    trained: Classifier, plan: TrainingPlan, tmp_path: Path
) -> None:
    """As in the training in float: neither weights nor the statistics of batch norm move."""
    frozen = copy.deepcopy(trained)
    freeze_all_but_last(frozen.network, 1)
    one_epoch = Quantisation(name="int8", num_epochs=1)
    tuned = fine_tuned(fake_quantise(frozen), frozen, plan, tmp_path, one_epoch)
    after, before = tuned.network.state_dict(), trained.network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == set(layers_with_weights(trained.network)[-1])


def test_batch_norm_moves_by_its_own_momentum(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan
) -> None:
    pixels = 255 - all_pixels(plan.rows)[:64]  # Far from the statistics so far.
    simulated = with_weights(simulation, trained).train()
    images = torch.addcmul(trained.shift, pixels.float(), trained.scale / 255)
    mean = trained.network[0](images).mean(dim=(0, 2, 3))  # type: ignore[operator, index]
    before = simulated.network.graph.get_buffer("1.running_mean").clone()  # type: ignore[operator, union-attr]
    simulated(pixels)
    after = simulated.network.graph.get_buffer("1.running_mean")  # type: ignore[operator, union-attr]
    torch.testing.assert_close(after, before + 0.15 * (mean - before), rtol=0.02, atol=0.02)


def test_gradients_reach_every_weight(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan
) -> None:
    simulated = with_weights(simulation, trained).train()
    nn.functional.cross_entropy(
        simulated(all_pixels(plan.rows)[:64]), plan.rows.labels[:64]
    ).backward()
    for name, parameter in simulated.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fine_tuning_mends_what_rounding_breaks(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan, tmp_path: Path
) -> None:
    scaled, pixels = with_unequal_channels(trained).eval(), all_pixels(plan.rows)
    in_float = accuracy(scaled, plan.validation)
    before = accuracy(simulate(simulation, scaled, pixels), plan.validation)
    ten_epochs = Quantisation(name="int8", num_epochs=10)
    tuned = fine_tuned(simulation, scaled, plan, tmp_path, ten_epochs)
    after = accuracy(simulate(simulation, tuned, pixels), plan.validation)
    assert before < in_float - 0.3  # Measured: 0.84 in float, 0.35 and 0.79 in int8.
    assert after > before + 0.3


def test_onnxruntime_computes_what_was_simulated(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan, tmp_path: Path
) -> None:
    from kd_pipeline.export.onnx_files import TARGET
    from kd_pipeline.export.target import ExportJob

    tuned = fine_tuned(simulation, trained, plan, tmp_path / "states")
    calibration, pixels = all_pixels(plan.rows), all_pixels(plan.validation)
    checkpoint = snapshot(tuned, MODEL, class_names=CLASS_NAMES, facts={})
    files = TARGET.export(ExportJob(checkpoint, (1, 8, 8), calibration, tmp_path))
    path = next(file.path for file in files if file.precision == "int8")
    exported = torch.from_numpy(TARGET.open(path, 1)(pixels.numpy()))
    with torch.no_grad():
        simulated = simulate(simulation, tuned, calibration)(pixels)
    agreement = (exported.argmax(dim=1) == simulated.argmax(dim=1)).double().mean()
    assert agreement > 0.95
    assert (exported - simulated).abs().mean() < 0.06 * simulated.std()


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_after(epoch: int) -> AbstractContextManager[None]:
    def listener(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            raise KilledError

    return listening(listener)


def test_a_kill_and_the_rest_equal_an_unbroken_fine_tuning_bit_for_bit(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan, tmp_path: Path
) -> None:
    short = Quantisation(name="int8", num_epochs=3)
    arguments = (simulation, trained, plan)
    unbroken = fine_tuned(*arguments, tmp_path / "a", short).network.state_dict()
    with kill_after(8 + 2), pytest.raises(KilledError):
        fine_tuned(*arguments, tmp_path / "b", short)
    epochs: list[int] = []
    with listening(lambda event: epochs.append(getattr(event, "epoch", 0))):
        resumed = fine_tuned(*arguments, tmp_path / "b", short).network.state_dict()
    assert epochs == [9, 10, 11]
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    original = trained.network.state_dict()
    assert not torch.equal(unbroken["0.weight"], original["0.weight"])
    assert torch.equal(unbroken["1.num_batches_tracked"], original["1.num_batches_tracked"])


def test_a_loss_that_is_not_finite_ends_it(
    simulation: Classifier, trained: Classifier, plan: TrainingPlan, tmp_path: Path
) -> None:
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match="became NaN while int8 was simulated"):
        fine_tuned(simulation, broken, plan, tmp_path)


def test_only_length_learning_rate_precision_and_seed_differ(plan: TrainingPlan) -> None:
    in_bfloat16 = plan.training.model_copy(update={"precision": "bfloat16"})
    plan = replace(plan, training=in_bfloat16)
    ours = fine_tuning_plan(plan, Quantisation(name="int8", num_epochs=2), epochs_before=8)
    assert ours.training.num_epochs == 2
    assert ours.training.optimiser.arguments == {"lr": pytest.approx(0.001)}
    assert ours.training.precision == "float32"
    assert ours.seed != plan.seed
    back = {"seed": plan.seed, "training": plan.training, "epochs_before": 0, "metrics_group": None}
    assert replace(ours, **back) == plan
    kept = {"num_epochs", "optimiser", "schedule", "precision"}
    assert ours.training.model_dump(exclude=kept) == plan.training.model_dump(exclude=kept)


@pytest.mark.parametrize(("stop", "weight"), [(1.0, 0.8), (0.5, 0.0)])
def test_fine_tuning_keeps_the_weight_of_the_soft_term_at_which_the_training_ended(
    plan: TrainingPlan, stop: float, weight: float
) -> None:
    schedule = {"warmup_fraction": 0.5, "stop_fraction": stop}
    objective = ObjectiveParams(soft_weight=0.8, soft_weight_schedule=schedule)
    after = fine_tuning_plan(replace(plan, objective=objective), INT8, epochs_before=8)
    assert after.objective == ObjectiveParams(soft_weight=weight)
    # Stopped early, before the soft weight did.
    early = fine_tuning_plan(replace(plan, objective=objective), INT8, epochs_before=4)
    assert early.objective == ObjectiveParams(soft_weight=0.8)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits if images.sum() > 0 else -logits


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(images.flatten(1)).relu()))
        return logits


def test_a_network_that_cannot_be_quantised_is_named() -> None:
    branching = Classifier(_Branching(), PREPROCESSING)
    with pytest.raises(ParameterError, match="`quantisation` must be null for a network that ca"):
        fake_quantise(branching)
    nothing = Classifier(nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)), PREPROCESSING)
    with pytest.raises(ParameterError, match="without an operator that can be quantised"):
        fake_quantise(nothing)


def test_tied_weights_keep_all_their_names() -> None:
    network = _Tied()
    exported = torch.export.export(network, (torch.zeros(2, 1, 8, 8),)).module()
    graph = FakeQuantised(exported)  # type: ignore[arg-type]
    state = graph.state_of(copy.deepcopy(network))
    assert set(state) == set(network.state_dict())
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1)
    for name, value in graph.state_of(network).items():
        torch.testing.assert_close(value, state[name] + 1)


def test_missing_packages_are_named_before_anything_trains(
    data: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    monkeypatch.setitem(sys.modules, package, None)
    student = StudentParams(
        model={"name": "mlp"}, training={"num_epochs": 1, "device": "cpu"}, quantisation="int8"
    )
    install = r"installed: pip install 'kd_pipeline\[executorch\]'"
    with pytest.raises(ParameterError, match=f"`student.quantisation` must have .* {install}"):
        check_student(data, student)
    check_student(data, student.model_copy(update={"quantisation": None}))
