"""The arithmetic of folding: a scale and a shift of channels taken into the weight and bias of a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from normkit.tools.model.tree import LAYERS, Layer


def is_transposed(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`, a linear layer whose weight has the shape (in, out)."""
    return any((c.__module__, c.__name__) == ("transformers.pytorch_utils", "Conv1D") for c in type(module).__mro__)


def is_layer(module: nn.Module) -> bool:
    """Whether it can take up the scale and the shift of its input."""
    return isinstance(module, LAYERS) or is_transposed(module)


def is_linear(module: nn.Module) -> bool:
    """Whether its features are the last dimension."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def channels_out(layer: Layer) -> int:
    """How many channels a layer makes."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def channels_in(layer: Any) -> int:
    """How many channels a layer takes."""
    if is_transposed(layer):
        return len(layer.weight)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def after(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of ``layer(x) * scale + shift``: each output channel's row is scaled."""
    weight = layer.weight.detach().double()
    if isinstance(layer, _ConvTransposeNd):
        # (in, out / groups, ...): the group of an output channel is that of the inputs it is made from.
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        weight = (grouped * _along(scale.reshape(layer.groups, -1), grouped, (0, 2))).reshape(weight.shape)
    else:
        weight = weight * _along(scale, weight, (0,))
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    return weight, bias * scale + shift


def before(layer: Any, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of ``layer(x * scale + shift)``; see `shift_is_lost` for where that cannot be."""
    weight = layer.weight.detach().double()
    if is_transposed(layer):
        return weight * scale[:, None], layer.bias.detach().double() + shift @ weight
    bias = weight.new_zeros(channels_out(layer)) if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        return weight * scale, bias + weight @ shift
    if isinstance(layer, _ConvTransposeNd):
        return weight * _along(scale, weight, (0,)), bias
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    scale, shift = (_along(v.reshape(layer.groups, -1), grouped, (0, 2)) for v in (scale, shift))
    return (grouped * scale).reshape(weight.shape), bias + (grouped * shift).flatten(2).sum(2).flatten()


def shift_is_lost(layer: Any) -> str:
    """Why a shift of the input is no bias of the output; empty where it is one."""
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution spreads a shift of its input unevenly"
    if is_linear(layer) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return ""
    padded = any(k > 1 for k in layer.kernel_size) if layer.padding == "same" else any(layer.padding)
    return "the zeros of its padding are not shifted" if padded else ""


def _along(values: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The values with size 1 in every dimension of `like` but these."""
    return values.reshape([size if dim in dims else 1 for dim, size in enumerate(like.shape)])


def set_parameters(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Give the layer new parameters; other holders of the old ones keep their values."""
    old = layer.weight
    if layer.bias is not None or bool(bias.any()):
        layer._parameters["bias"] = nn.Parameter(bias.to(old), old.requires_grad)
    layer._parameters["weight"] = nn.Parameter(weight.to(old).contiguous(memory_format=_format(old)), old.requires_grad)


def _format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format
