"""Quantisation-aware training: fine-tune a trained network while its int8 form is simulated."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_pipeline.errors import ParameterError, TrainingDivergedError
from kd_pipeline.models.checkpoint import copy_state, tensors_digest
from kd_pipeline.models.classifier import Classifier
from kd_pipeline.models.libraries import quiet_export, require
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.randomness import derive_seed
from kd_pipeline.training.engine import TrainingPlan, TrainingRecord, train_classifier
from kd_pipeline.training.optimisation import scale_lr
from kd_pipeline.training.settings import Quantisation, Schedule

EXTRA = "executorch"
_BATCH_NORM = torch.ops.aten.batch_norm.default


class FakeQuantised(nn.Module):
    """A network whose weights and activations are rounded to int8's steps in float32.

    Gradients pass through the rounding as if it were not there. Batch norm is folded into the
    convolution before it when weights are rounded, as in the int8 model (Jacob et al. 2017,
    arXiv:1712.05877, §3). In train mode the ranges of activations follow the batches, in eval mode
    they stay.
    """

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        """Wrap a graph prepared by torchao, exported in train mode."""
        super().__init__()
        self.graph = graph
        self._switch(mode=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, num_classes].

        Raises:
            TrainingDivergedError: If a weight or an activation is NaN: it has no range.
        """
        try:
            logits: Tensor = self.graph(images)
        except RuntimeError as error:
            if "zero_point" not in str(error):
                raise
            raise TrainingDivergedError(
                "weights or activations became NaN while int8 was simulated; lower "
                "`student.quantisation.lr_factor`"
            ) from error
        return logits

    def train(self, mode: bool = True) -> "FakeQuantised":
        """Switch dropout, batch norm and the observers of ranges.

        Graphs hold the mode as an argument of each operator and refuse `train`. torchao's own
        switch would set every momentum and epsilon of batch norm to torch's defaults.
        """
        if mode != self.training:
            self._switch(mode=mode)
            pt2e = require("torchao.quantization.pt2e", extra=EXTRA)
            self.graph.apply(pt2e.enable_observer if mode else pt2e.disable_observer)
            self.training = mode
        return self

    def _switch(self, *, mode: bool) -> None:
        """Set the mode of dropout and batch norm; norms of frozen layers keep their statistics."""
        for node in self.graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.dropout.default
        ):
            node.update_arg(2, mode)
        partly_frozen = not all(one.requires_grad for one in self.graph.parameters())
        for _, node in _batch_norms(self.graph):
            weight = None if node.args[1] is None else self.graph.get_parameter(node.args[1].target)
            is_frozen = partly_frozen and (weight is None or not weight.requires_grad)
            node.update_arg(5, mode and not is_frozen)
        self.graph.recompile()

    def state_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The state dict of a network like the one that was exported, after training, on the CPU.

        `network` gives the names, and what training does not change.
        """
        trained = self.graph.state_dict()
        # Counters keep their value: the graph counts batches of validation too.
        learned = {name: value for name, value in trained.items() if value.is_floating_point()}
        copied = copy.deepcopy(network)
        # Not strict: the graph holds ranges too, and tied weights under one of their names.
        copied.load_state_dict(learned, strict=False)
        return copy_state(copied)


def fake_quantise(classifier: Classifier) -> Classifier:
    """A copy of a classifier in train mode that simulates int8: see `FakeQuantised`.

    Weights get one symmetric scale per output channel, activations one affine scale per tensor.

    Raises:
        ParameterError: If torchao or executorch is missing, the network cannot be exported, or has
            no operator that can be quantised.
    """
    network = copy.deepcopy(classifier.network).cpu().train()
    # Two images at least: torch.export takes a batch of one for a constant.
    images = torch.zeros(2, *classifier.preprocessing.shape)
    with quiet_export():
        graph = _prepare(network, images)
    if not any(hasattr(module, "fake_quant_enabled") for module in graph.modules()):
        rule = "be null for a network without an operator that can be quantised"
        raise ParameterError("quantisation", rule, "int8")
    return Classifier(
        FakeQuantised(graph),
        classifier.preprocessing,
        takes_any_layout=classifier.layout == torch.channels_last,
    )


def _prepare(network: nn.Module, images: Tensor) -> torch.fx.GraphModule:
    try:
        pt2e = require("torchao.quantization.pt2e.quantize_pt2e", extra=EXTRA)
        xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", extra=EXTRA)
    except ParameterError as error:
        raise ParameterError("quantisation", error.rule, "int8") from error
    settings = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(settings)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    try:
        exported = torch.export.export(network, (images,), dynamic_shapes=sizes)
        # Its guards would refuse a batch of one.
        graph: torch.fx.GraphModule = exported.module(check_guards=False)
        constants = {name: node.args[6:8] for name, node in _batch_norms(graph)}
        prepared: torch.fx.GraphModule = pt2e.prepare_qat_pt2e(graph, quantizer)
    except Exception as error:  # Of many kinds, from anywhere inside torch or the network.
        reason = next(iter(str(error).splitlines()), "")
        rule = f"be null for a network that cannot be exported ({reason})"
        raise ParameterError("quantisation", rule, "int8") from error
    for name, node in _batch_norms(prepared):
        # torchao sets them to torch's defaults where it folds batch norm (torchao 0.18).
        node.args = (*node.args[:6], *constants[name], *node.args[8:])
    prepared.recompile()
    return prepared


def _batch_norms(graph: torch.fx.GraphModule) -> list[tuple[str, Any]]:
    """Nodes of batch norm by their statistics; arguments 6 and 7 are momentum and epsilon."""
    nodes = graph.graph.find_nodes(op="call_function", target=_BATCH_NORM)
    return [(node.args[3].target, node) for node in nodes]


def with_weights(simulation: Classifier, classifier: Classifier) -> Classifier:
    """A copy of a simulation of int8 with the weights of a classifier of the same architecture."""
    copied = copy.deepcopy(simulation)
    state = {f"graph.{name}": value for name, value in classifier.network.state_dict().items()}
    copied.network.load_state_dict(state, strict=False)  # Ranges are not among them.
    return copied


def fine_tune(
    simulation: Classifier,
    classifier: Classifier,
    plan: TrainingPlan,
    *,
    states: StateFolder,
    key: str,
) -> tuple[dict[str, Tensor], TrainingRecord]:
    """Go on training a classifier for int8, on the rows and targets that it was trained on.

    Args:
        simulation: A fake-quantised classifier of this architecture; stays as it is.
        classifier: Trained in float; stays as it is.
        plan: The `fine_tuning_plan`.
        states: Where the state is kept from which a killed run resumes.
        key: Of the training in float.

    Returns:
        The fine-tuned state dict, with the names of the float one, and the record.

    Raises:
        TrainingDivergedError: If the loss, a weight or an activation becomes NaN or infinite.
    """
    trained = with_weights(simulation, classifier)
    text = json.dumps([key, plan.training.model_dump(mode="json"), plan.epochs_before])
    key = tensors_digest(classifier.network.state_dict(), text)
    record = train_classifier(trained, plan, states=states, key=key)
    return cast(FakeQuantised, trained.network).state_of(classifier.network), record


def fine_tuning_plan(
    plan: TrainingPlan, quantisation: Quantisation, *, epochs_before: int
) -> TrainingPlan:
    """The plan of a training with what fine-tuning changes: its length, learning rate and seed."""
    changes: Mapping[str, Any] = {
        "optimiser": scale_lr(plan.training.optimiser, quantisation.lr_factor),
        "schedule": Schedule(),
        "num_epochs": quantisation.num_epochs,
        # bfloat16 has 8 bits of mantissa: int8's steps would be rounded a second time.
        "precision": "float32",
    }
    return replace(
        plan,
        training=plan.training.model_copy(update=changes),
        # What taught it last: early stopping may end before the soft weight does.
        objective=plan.objective.at_the_end(epochs_before / plan.training.num_epochs),
        seed=derive_seed(plan.seed, "quantisation"),
        epochs_before=epochs_before,
        metrics_group="quantisation",
    )
