"""The data-dependent initialization of weight normalization: outputs start at mean 0 and variance 1.

One forward pass sets all layers: each is set from its input, which comes from layers that are already set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from normkit.errors import ShapeError, StateError
from normkit.evaluation import call, evaluating
from normkit.parametrize.checks import check_values, stored
from normkit.parametrize.weight import weight_norm_of

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
"""The number of dimensions after the channels."""

ROUNDING = 4
"""A standard deviation of at most this many units in the last place of the largest value is only rounding."""

UNREACHED = "the batch never reached it"


@dataclass(frozen=True)
class InitRow:
    """The result for one layer.

    Attributes:
        name: name of the module in the model.
        channels: number of output channels whose length was set.
        constant: number of output channels that did not vary over the batch and were not changed.
        bias: whether there was a bias to set; without one the mean is not changed.
        skipped: the reason why nothing was set; empty if something was.
    """

    name: str
    channels: int = 0
    constant: int = 0
    bias: bool = False
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        left = f", {self.constant} constant ones left alone" if self.constant else ""
        mean = "" if self.bias else "; no bias, so the mean stays"
        return f"{self.name}: {self.channels} channels{left}{mean}"


@dataclass(frozen=True)
class InitReport:
    """One row for each layer with a weight norm, in the order of the model."""

    rows: tuple[InitRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


@torch.no_grad()
def init_weight_norm(model: nn.Module, batch: Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]) -> InitReport:
    """Set lengths and biases so that every weight-normed layer starts with outputs of mean 0 and variance 1.

    ``g = 1 / std(t)`` and ``b = -mean(t) / std(t)`` for each output channel, where ``t = v * x / ||v||``
    over all samples and positions of the batch, and ``v`` does not change. The model runs once, in evaluation mode:
    dropout is off, and no statistics of other layers change.

    Args:
        model: a model with layers on which `weight_norm` was called; changed in place.
        batch: the input of the model: a tensor, or a tuple or list of positional arguments, or a mapping of
            keyword arguments. It must be large enough to estimate a standard deviation, such as 128 samples.

    Returns:
        What was set in each layer. Layers other than Linear, Conv and ConvTranspose are skipped, and so are
        layers that the batch never reaches, and those without exactly one length for each output channel.
        A channel that is constant over the batch keeps its length and bias. A shared layer is set at its
        first use.

    Raises:
        StateError: no layer of the model has a weight norm; a length too large for the layer's dtype; a model
            on the meta device.
        Any error of the model's forward; the model is then unchanged.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(normkit.weight_norm(torch.nn.Linear(5, 4)), torch.nn.ReLU())
        >>> batch = torch.rand(256, 5)
        >>> print(normkit.init_weight_norm(model, batch))
        0: 4 channels
        >>> y = model[0](batch)
        >>> bool(y.mean(0).abs().max() < 1e-5), bool((y.std(0, correction=0) - 1).abs().max() < 1e-5)
        (True, True)

    Source: Salimans & Kingma 2016, Weight Normalization, section 3, arXiv:1602.07868.
    """
    layers = [_Layer(name, module) for name, module in model.named_modules() if _has_weight_norm(module)]
    if not layers:
        raise StateError(
            f"init_weight_norm needs at least one layer with a weight norm; {type(model).__name__} has none: "
            "call weight_norm on its layers first"
        )
    check_values("init_weight_norm", model.named_modules())
    hooks: list[RemovableHandle] = []
    try:
        for layer in layers:
            hooks += layer.hooks()
        with evaluating(model):
            call(model, batch)
    except BaseException:
        for layer in layers:
            layer.restore()
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return InitReport(tuple(layer.row or InitRow(layer.name, skipped=UNREACHED) for layer in layers))


class _Layer:
    """One layer during the pass: its two hooks and its former values."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        reason = _misfit(module)
        self.row = InitRow(name, skipped=reason) if reason else None
        self.g: Tensor = torch.empty(0) if reason else _lengths(module)
        self.bias: Tensor | None = None if reason else module._parameters.get("bias")
        self.kept = self.g.clone(), None if self.bias is None else self.bias.clone()

    def hooks(self) -> list[RemovableHandle]:
        if self.row:
            return []
        # Before the user's own hooks, which then receive the new outputs of the layer.
        return [
            self.module.register_forward_pre_hook(self.to_unit, prepend=True),
            self.module.register_forward_hook(self.to_batch, prepend=True),
        ]

    def to_unit(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Set length 1 and bias 0, so that the layer returns t."""
        if self.row is None:
            self.g.fill_(1)
            if self.bias is not None:
                self.bias.zero_()

    def to_batch(self, module: nn.Module, inputs: tuple[Any, ...], t: Tensor) -> Tensor:
        """Set length and bias from t, and return the output that they give."""
        if self.row is not None:
            return t
        if t.numel() == 0:
            raise ShapeError(
                f"the batch needs at least one sample; {self.name!r} gave shape {tuple(t.shape)}: pass a larger batch"
            )
        axis = t.ndim - 1 - CONVOLUTIONS.get(_kind(module), 0)
        values = t.movedim(axis, 0).unsqueeze(-1).flatten(1)
        values = values.to(torch.promote_types(t.dtype, torch.float32))
        variance, mean = torch.var_mean(values, 1, correction=0)
        std = variance.sqrt()
        varies = std > ROUNDING * torch.finfo(t.dtype).eps * values.abs().amax(1)
        old_g, old_bias = self.kept
        scale = torch.where(varies, 1 / std, old_g.flatten())
        remedy = "initialise the model in float32 and convert it then; the model is as it was"
        self.g.copy_(stored(scale, self.g.dtype, f"lengths of {self.name!r}", remedy).view_as(self.g))
        shift = torch.zeros_like(mean)
        if self.bias is not None and old_bias is not None:
            shift = torch.where(varies, -mean / std, old_bias)
            self.bias.copy_(shift)
        channels = int(varies.sum())
        self.row = InitRow(self.name, channels, len(varies) - channels, self.bias is not None)
        place = [-1 if i == axis else 1 for i in range(t.ndim)]
        return (t * scale.view(place) + shift.view(place)).to(t.dtype)

    def restore(self) -> None:
        g, bias = self.kept
        self.g.copy_(g)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)


def _has_weight_norm(module: nn.Module) -> bool:
    names = module.parametrizations if parametrize.is_parametrized(module) else ()
    return any(weight_norm_of(module, name) is not None for name in cast(Iterable[str], names))


def _kind(module: nn.Module) -> type[nn.Module]:
    """The layer class of torch of which this module is an instance."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)
    return next((kind for kind in kinds if isinstance(module, kind)), nn.Module)


def _lengths(module: nn.Module) -> Tensor:
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    return cast(Tensor, parametrizations["weight"].original0)


def _misfit(module: nn.Module) -> str:
    """The reason why the lengths of a layer cannot be set for each channel; empty if they can."""
    norm = weight_norm_of(module)
    if norm is None or _kind(module) is nn.Module:
        return "only the weights of Linear, Conv and ConvTranspose layers are initialised"
    outputs = 1 if getattr(module, "transposed", False) else 0
    if norm.dim != outputs:
        return (
            f"its lengths belong to dim {norm.dim} of the weight, not to the output channels: "
            f"use weight_norm(layer, dim={outputs})"
        )
    if outputs == 1 and cast(int, module.groups) > 1:
        return "in a grouped ConvTranspose several output channels share one length"
    return ""
