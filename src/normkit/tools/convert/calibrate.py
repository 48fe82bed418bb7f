"""Fits the weight and bias of new layers to the outputs of the norms that they replace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.merging import merging_weights
from normkit.parametrize.checks import stored
from normkit.tools.convert.build import equivalent
from normkit.tools.model.call import Observer, observe
from normkit.tools.model.info import NormInfo


@dataclass(frozen=True)
class Fitted:
    """Weight and bias of a new layer, its running statistics if it has any, and what they leave over.

    Attributes:
        residual: root of the mean square error over the standard deviation of the old outputs.
    """

    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    residual: float


def fit(
    model: nn.Module, pairs: Mapping[nn.Module, tuple[NormInfo, nn.Module]], batches: Iterable[Any]
) -> dict[nn.Module, Fitted]:
    """For each old norm the weight and bias with which the new layer comes nearest to its outputs.

    ``sum (z * weight + bias - y) ** 2`` is least for each channel, where z is the new layer's normalized input and
    y the old one's output in evaluation, before its activation, over all batches.

    Args:
        model: holds the old norms; run in evaluation mode, and left as it was.
        pairs: for each old norm its description, and the new layer.
        batches: inputs of the model.

    Returns:
        The fitted values of each norm that a batch reached.

    Raises:
        ArgumentError: there are no batches, or a norm's values are not finite.
        StateError: what was fitted is too large for the dtype of the new layer.
    """
    sums = {module: _Sums() for module in pairs}
    observers: dict[nn.Module, Observer] = {
        module: _observer(module, info, new, sums[module]) for module, (info, new) in pairs.items()
    }
    if not observe(model, batches, observers):
        raise ArgumentError("calibrate needs at least one batch, got none: an iterator can be used only once")
    return {module: _solved(sums[module], new) for module, (_, new) in pairs.items() if sums[module].n}


def _observer(module: nn.Module, info: NormInfo, new: nn.Module, sums: _Sums) -> Observer:
    target = target_of(module, info)
    bare = None if isinstance(new, BatchNorm1d | BatchNorm2d | BatchNorm3d) else _without_affine(new)

    def add(_: nn.Module, x: Tensor, y: Tensor) -> None:
        # Batch norm's statistics are known after the last batch: until then its input is used unnormalized.
        normalized = x if bare is None else bare(x)
        sums.add(columns(normalized, info), columns(target(x, y), info))

    return add


def target_of(module: nn.Module, info: NormInfo) -> Callable[[Tensor, Tensor], Tensor]:
    """What a norm makes of its input before its activation, as a function of its input and its output."""
    if not info.extras and not info.activation:
        return lambda x, y: y
    plain = equivalent(module, replace(info, extras=(), activation=None)).eval()
    return lambda x, y: plain(x)


def _without_affine(layer: nn.Module) -> nn.Module:
    """The same layer without weight, bias, activation and hooks; the given one keeps them."""
    bare = copy.copy(layer)
    vars(bare).update(_parameters=layer._parameters | {"weight": None, "bias": None}, _modules={}, activation=None)
    return bare.eval()


def columns(x: Tensor, info: NormInfo) -> Tensor:
    """One column for each channel."""
    return (x.movedim(1, -1) if info.axis == "first" else x).reshape(-1, info.channels).double()


class _Sums:
    """Means, and sums of products about them, of the columns z and y; batches are merged by Chan's formula."""

    def __init__(self) -> None:
        self.n = 0
        self.z = self.y = self.zz = self.zy = self.yy = torch.zeros(())

    def add(self, z: Tensor, y: Tensor) -> None:
        if not len(z):
            return
        mean_z, mean_y = z.mean(0), y.mean(0)
        z, y = z - mean_z, y - mean_y
        share, factor = merging_weights(self.n, len(z))
        step_z, step_y = mean_z - self.z, mean_y - self.y
        self.zz = self.zz + z.square().sum(0) + step_z.square() * factor
        self.zy = self.zy + (z * y).sum(0) + step_z * step_y * factor
        self.yy = self.yy + y.square().sum(0) + step_y.square() * factor
        self.z, self.y = self.z + step_z * share, self.y + step_y * share
        self.n += len(z)


def _solved(s: _Sums, new: nn.Module) -> Fitted:
    """The least squares of each channel; a channel without spread keeps its weight."""
    old_weight, old_bias = cast("Tensor", new.weight), cast("Tensor | None", getattr(new, "bias", None))
    batch = isinstance(new, BatchNorm1d | BatchNorm2d | BatchNorm3d)
    variance = s.zz / max(s.n - 1, 1)
    # From sums over the input to sums over what batch norm will make of it.
    scale = (variance + cast(float, new.eps)).rsqrt() if batch else torch.ones_like(s.zz)
    mean = torch.zeros_like(s.z) if batch else s.z
    zz, zy = s.zz * scale.square(), s.zy * scale
    if old_bias is None:
        zz, zy = zz + s.n * mean.square(), zy + s.n * mean * s.y
    flat = old_weight.detach().double().flatten()
    weight = torch.where(zz > s.n * 1e-12, zy / zz.clamp_min(1e-300), flat)
    bias = None if old_bias is None else s.y - weight * mean
    if not torch.isfinite(weight).all() or (bias is not None and not torch.isfinite(bias).all()):
        raise ArgumentError(
            "calibrate needs finite activations, got inf or nan in a norm: leave out the batches with such"
        )
    shift = mean * weight - s.y + (0 if bias is None else bias)
    wrong = (s.yy - 2 * weight * s.zy * scale + weight.square() * s.zz * scale.square() + s.n * shift.square()).sum()
    residual = (wrong.clamp_min(0) / s.yy.sum().clamp_min(1e-300)).sqrt().item()
    if batch:
        # Checked as they will be stored; the values are kept in float64.
        for value, running in ((s.z, new.running_mean), (variance, new.running_var)):
            if isinstance(running, Tensor):
                _stored(value, running, "running statistics")
    return Fitted(
        _stored(weight.reshape(old_weight.shape), old_weight, "weights"),
        None if bias is None or old_bias is None else _stored(bias.reshape(old_bias.shape), old_bias, "biases"),
        s.z,
        variance,
        residual,
    )


def _stored(value: Tensor, like: Tensor, what: str) -> Tensor:
    return stored(value, like.dtype, f"the {what} that calibrate finds", "convert the model in float32")
