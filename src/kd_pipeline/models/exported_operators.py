"""Every operator that an exported graph may use: arithmetic on tensors, and nothing else.

A list of what is allowed and not of what is not: torch has operators that read and write files,
reinterpret memory or print, and every version brings more.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kd_pipeline.errors import CheckpointError

_PREFIX = "torch.ops.aten."

_LAYERS = """
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d linear addmm addmv baddbmm
    bilinear bmm dot einsum matmul mm mv outer embedding
    batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm layer_norm
    native_layer_norm group_norm native_group_norm rms_norm linalg_vector_norm norm normalize
    dropout dropout_ feature_dropout native_dropout alpha_dropout
    scaled_dot_product_attention softmax _softmax log_softmax _log_softmax logsumexp
"""
_ACTIVATIONS = """
    relu relu_ relu6 relu6_ leaky_relu leaky_relu_ prelu elu elu_ selu selu_ celu celu_ gelu silu
    silu_ mish mish_ hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ sigmoid
    sigmoid_ log_sigmoid tanh tanh_ softplus softsign threshold glu
"""
_POOLING = """
    max_pool1d max_pool2d max_pool2d_with_indices max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d lp_pool2d
    upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d
    _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_linear1d
    grid_sampler grid_sampler_2d affine_grid_generator pixel_shuffle pixel_unshuffle
    channel_shuffle im2col unfold
"""
_SHAPES = """
    view view_as reshape reshape_as _unsafe_view flatten unflatten ravel permute movedim transpose
    swapaxes numpy_T t adjoint expand expand_as repeat repeat_interleave tile broadcast_to
    broadcast_tensors cat concat stack hstack vstack chunk split split_with_sizes unsafe_chunk
    unsafe_split tensor_split unbind slice select narrow index index_select gather take_along_dim
    where masked_fill masked_fill_ squeeze squeeze_ unsqueeze unsqueeze_ roll flip pad
    constant_pad_nd reflection_pad2d replication_pad2d meshgrid tril triu diagonal
    index_put index_put_ select_scatter slice_scatter scatter scatter_add
    clone contiguous alias detach detach_ lift_fresh_copy copy copy_ fill_ zero_
    to _to_copy type_as float double half bfloat16 int long bool
    arange linspace zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full
    scalar_tensor eye one_hot sym_size sym_numel sym_stride
"""
_ARITHMETIC = """
    add add_ sub sub_ rsub mul mul_ div div_ multiply divide subtract floor_divide remainder fmod
    pow pow_ square sqrt sqrt_ rsqrt rsqrt_ reciprocal neg abs sign exp exp_ expm1 exp2 log log_
    log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh erf floor ceil round trunc frac
    clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ clip addcmul addcmul_ addcdiv addcdiv_
    lerp mean sum prod max min amax amin argmax argmin var std var_mean std_mean cumsum topk sort
    argsort maximum minimum eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not any all isnan isinf isfinite nan_to_num
"""
_ATEN = frozenset(f"{_LAYERS}{_ACTIVATIONS}{_POOLING}{_SHAPES}{_ARITHMETIC}".split())

_CHECKS = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        "_assert_tensor_metadata.default",
        "_assert_scalar.default",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
    )
)
"""Of what was traced; they compute nothing, and hold for the device of the export alone."""

_ON_SIZES: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "and_", "or_"),
            *("eq", "ne", "lt", "le", "gt", "ge"),
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")
    },
}


def is_check(target: str) -> bool:
    """Whether a graph's node only checks what was traced, so that it can be left out."""
    return target in _CHECKS


def find_operator(target: str) -> Callable[..., Any]:
    """Find an operator by the name that a file gives it.

    Args:
        target: As `torch.export` writes it, for instance `torch.ops.aten.conv2d.default`.

    Raises:
        CheckpointError: If it is not one that classifiers need, or this torch has none such.
    """
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    name, _, overload = target.removeprefix(_PREFIX).partition(".")
    # `out` writes into a tensor that is handed in, whatever its size.
    if not target.startswith(_PREFIX) or name not in _ATEN or "out" in overload.split("_"):
        raise CheckpointError(
            "an exported program must be made of operators that classifiers need, got target "
            f"{target!r}; give this teacher as ONNX, or as an architecture with a state dict"
        )
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        raise CheckpointError(f"torch {torch.__version__} has no operator {target!r}")
    found: Callable[..., Any] = getattr(packet, overload)
    return found
