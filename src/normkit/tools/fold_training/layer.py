"""A layer with the batch norm after it folded into its weight, while both are trained."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from normkit import functional
from normkit.errors import DtypeError, ShapeError
from normkit.functional.call.recompute import count
from normkit.layers.base.tracked import share_of
from normkit.tools.model.tree import Layer

Quantizer = Callable[[Tensor], Tensor]
"""Rounds a weight to the values that it will have, in its own dtype, with a gradient."""

TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class FoldedNorm(nn.Module):
    """Takes the place of a batch norm that a `TrainableFold` computes, and keeps its parameters and statistics.

    Its state dict has the keys of the norm. ``forward`` applies only the dropout and the activation that the norm had.

    Args:
        norm: the batch norm; its parameters and buffers stay the same objects.
        children: its dropout and activation, by name.
        frozen: whether the running statistics are used in training too, and stay as they are.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float

    # Of torch's batch norm, in whose name older state dicts lack the number of batches.
    _version = 2

    def __init__(self, norm: Any, children: dict[str, nn.Module], frozen: bool = False) -> None:
        super().__init__()
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        for name, child in children.items():
            self.add_module(name, child)
        self.eps = norm.eps
        self.momentum = getattr(norm, "momentum", None)
        self.track_running_stats = True
        self.frozen = frozen

    def rest(self) -> nn.Module:
        """What remains of the norm beside a plain layer: its dropout and activation, or `torch.nn.Identity`."""
        children = dict(self.named_children())
        return nn.Sequential(OrderedDict(children)) if children else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """The input, with dropout and activation."""
        for child in self.children():
            input = child(input)
        return input

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}, frozen={self.frozen}"


class TrainableFold(nn.Module):
    """A convolution or linear layer, and the batch norm after it as a scale of its weight.

    With frozen statistics, and in evaluation, ``y = q(W s) x + (b - mean) s + beta`` with
    ``s = gamma / sqrt(var + eps)`` of the running mean and variance, where q rounds the weight. That is one layer.

    With live statistics, y is what layer and norm give for the batch, plus ``(q(W s) - W s) x`` times
    ``sqrt((var + eps) / (batch var + eps))``. This is the batch norm of ``W x + b``, with ``W s`` rounded, of which the
    scale by running statistics is corrected to that of the batch. The statistics are those of the weight before it is
    rounded, so two convolutions are computed. One would be enough if the statistics were taken of the rounded
    output divided by s, but a channel with gamma = 0 would then be divided by 0, and one whose weights are all rounded
    to 0 would have a variance of 0, which no later step corrects. Without a quantizer there is one convolution, and
    every value and gradient is that of layer and norm.

    The statistics are live while this module and its norm are in training mode and are not frozen. They are updated
    as batch norm updates them: once in each step, also where activation checkpointing computes it again.

    `normkit.fold_for_training` makes it. It takes the place of the layer, and a `FoldedNorm` that of the norm. They
    keep the parameters of the two, so the keys of the state dict are those of the original model. The state of the
    quantizer is added as ``weight_fake_quant``; where a state dict has none, it stays as it is.

    Args:
        layer: a convolution, transposed convolution or linear layer; its parameters stay the same objects.
        norm: holds the parameters and statistics of the norm.
        weight_fake_quant: rounds the weight; None for no rounding.

    Returns:
        From ``forward``: a tensor with the shape of the layer's output.

    Raises:
        ShapeError: from ``forward``: a linear layer gets more than two dimensions; one value per channel in training.

    Example:
        >>> import normkit
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> trained, _ = normkit.fold_for_training(model, torch.randn(2, 3, 5, 5))
        >>> trained[0].freeze_statistics().fold()
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))

    Source: Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2; Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: Layer, norm: FoldedNorm, weight_fake_quant: Quantizer | None = None) -> None:
        super().__init__()
        self._parameters.update(layer._parameters)
        self.weight_fake_quant = weight_fake_quant
        # Not children: the norm has its own place in the model, and of the layer only the options are used.
        vars(self)["_pair"] = (layer, norm)

    @property
    def norm(self) -> FoldedNorm:
        """Holds the parameters and statistics of the norm."""
        return cast("FoldedNorm", vars(self)["_pair"][1])

    def freeze_statistics(self, frozen: bool = True) -> TrainableFold:
        """Use the running statistics in training too, and update them no more; returns the module."""
        self.norm.frozen = frozen
        return self

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer and its norm; `output_size` is that of transposed convolutions."""
        norm = self.norm
        if not (self.training and norm.training) or norm.frozen:
            return self._layer(input, *self.folded(), output_size)
        plain = self._layer(input, self.weight, self.bias, output_size)
        counter, momentum = share_of(norm)
        statistics = norm.running_mean, norm.running_var
        y = functional.batch_norm(plain, *statistics, norm.weight, norm.bias, True, momentum, norm.eps)
        if counter is not None:
            count(counter)
        if self.weight_fake_quant is None or not plain.numel():
            return y
        scaled = self._scaled(self._scale())
        error = self._layer(input, self.weight_fake_quant(scaled) - scaled, None, output_size)
        var = _wide(plain).var([0, *range(2, plain.dim())], correction=0)
        factor = ((_wide(norm.running_var).detach() + norm.eps) / (var + norm.eps)).sqrt()
        return y + error * factor.to(error.dtype).view(-1, *[1] * (plain.dim() - 2))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer with the running statistics folded in, the weight as the quantizer rounds it."""
        scale = self._scale()
        weight = self._scaled(scale)
        shift = self.norm.running_mean if self.bias is None else self.norm.running_mean - self.bias
        bias = -shift * scale if self.norm.bias is None else self.norm.bias - shift * scale
        return weight if self.weight_fake_quant is None else self.weight_fake_quant(weight), bias.to(weight.dtype)

    @torch.no_grad()
    def fold(self) -> Layer:
        """A plain layer that gives exactly what this module gives in evaluation; the module stays as it was."""
        # The observer of a quantizer may change with each call.
        twin = copy.copy(self)
        twin._modules = copy.deepcopy(self._modules)
        layer = copy.deepcopy(cast("Layer", vars(self)["_pair"][0]), {id(p): p for p in self.parameters()})
        values = dict(zip(("weight", "bias"), twin.folded(), strict=True))
        parameters = {name: nn.Parameter(value.clone(), self.weight.requires_grad) for name, value in values.items()}
        vars(layer).update(_parameters=parameters, training=self.training)
        return layer

    def _scale(self) -> Tensor:
        """``gamma / sqrt(running variance + eps)``."""
        scale = (_wide(self.norm.running_var).detach() + self.norm.eps).rsqrt()
        return scale if self.norm.weight is None else scale * self.norm.weight

    def _scaled(self, scale: Tensor) -> Tensor:
        """The weight of the layer, each output channel times its scale."""
        layer, ones = vars(self)["_pair"][0], [1] * (self.weight.dim() - 2)
        if isinstance(layer, _ConvTransposeNd):
            # (in, out / groups, ...): the group of an output channel is that of the inputs it is made from.
            of_inputs = scale.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0)
            return (self.weight * of_inputs.view(*of_inputs.shape, *ones)).to(self.weight.dtype)
        return (self.weight * scale.view(-1, 1, *ones)).to(self.weight.dtype)

    def _layer(self, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        """The layer with another weight and bias."""
        layer: Any = vars(self)["_pair"][0]
        if isinstance(layer, nn.Linear):
            if input.dim() != 2:
                raise ShapeError(
                    f"a linear layer with a batch norm folded in takes (N, features), got shape {tuple(input.shape)}: "
                    "flatten the input"
                )
            return F.linear(input, weight, bias)
        if not isinstance(layer, _ConvTransposeNd):
            return cast("Tensor", layer._conv_forward(input, weight, bias))
        dims = len(layer.kernel_size)
        options: Any = layer.stride, layer.padding
        more: Any = layer.kernel_size, dims, layer.dilation
        padding = layer._output_padding(input, output_size, *options, *more)
        return cast("Tensor", TRANSPOSED[dims](input, weight, bias, *options, padding, layer.groups, layer.dilation))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        quantizer, name = self.weight_fake_quant, f"{prefix}weight_fake_quant."
        if isinstance(quantizer, nn.Module) and not any(key.startswith(name) for key in state_dict):
            # A checkpoint of the original model: the quantizer keeps its state, and strict loading finds its keys.
            state_dict.update({name + key: value for key, value in quantizer.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        layer, norm = vars(self)["_pair"]
        return f"{layer!r}, norm=({norm.extra_repr()})"


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def make_fold(layer: Layer, norm: FoldedNorm, weight_fake_quant: Quantizer | None) -> TrainableFold:
    """The module for one pair, with a quantizer of its own if that is a module.

    Raises:
        DtypeError, ShapeError: the quantizer returns something else than a weight of the same shape and dtype.
    """
    if weight_fake_quant is not None:
        own = copy.deepcopy(weight_fake_quant) if isinstance(weight_fake_quant, nn.Module) else weight_fake_quant
        # On copies, because the observer of a quantizer may keep what it was called with.
        weight = copy.deepcopy(own)(layer.weight.detach().clone())
        if not isinstance(weight, Tensor) or weight.dtype != layer.weight.dtype:
            got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise DtypeError(
                f"weight_fake_quant must return a weight of {layer.weight.dtype}, got {got}: "
                "return the rounded values in the dtype of the weight, as fake quantizers do"
            )
        if weight.shape != layer.weight.shape:
            raise ShapeError(
                f"weight_fake_quant must return a weight of shape {tuple(layer.weight.shape)}, got "
                f"{tuple(weight.shape)}: round each element and keep the shape"
            )
        weight_fake_quant = own
    return TrainableFold(layer, norm, weight_fake_quant).train(layer.training)


def plain_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """What takes the place of each pair in a model when its training is over."""
    folds = [module for module in model.modules() if isinstance(module, TrainableFold)]
    return {fold: fold.fold() for fold in folds} | {fold.norm: fold.norm.rest() for fold in folds}


def forget_training(module: nn.Module) -> None:
    """Remove the attributes that a plain layer has taken over from a `TrainableFold`."""
    for name in ("_pair", "weight_fake_quant"):
        vars(module).pop(name, None)
