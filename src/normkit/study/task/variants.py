"""Applies a method to a model: replaces its norms, or inserts norms if it has none, or adds the method to them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import normkit
from normkit import catalog
from normkit.errors import ArgumentError, nearest
from normkit.study.suite.forecasting import Reversible
from normkit.study.task.recurrent import with_layer_norms
from normkit.tools.convert import convert
from normkit.tools.convert.torch_encoder import encoder_layers, turn_off
from normkit.tools.insert import insert
from normkit.tools.model.call import observe
from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import LAYERS, module_places, norms, replace
from normkit.tools.replace_placement import PLACEMENTS, replace_placement

OF_LAYERS = tuple(method.name for method in catalog.METHODS if method.insertable and not method.of_weights)
OF_WEIGHTS = tuple(method.name for method in catalog.METHODS if method.of_weights)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Mish)
KNOWN = ("none", "unchanged", *(method.name for method in catalog.METHODS if method.mark))


def method_name(name: str) -> str:
    """The name of a method that can be applied to a model, from a name or alias; a placement may follow.

    >>> method_name("BN"), method_name("none"), method_name("LN:post")
    ('batch_norm', 'none', 'layer_norm:post')
    """
    method, colon, placement = name.partition(":")
    found = method if method in ("none", "unchanged") else catalog.find(method).name
    if found not in KNOWN:
        raise ArgumentError(f"compare trains {', '.join(KNOWN)}, got {name!r}: {nearest(found, KNOWN)}")
    if colon and (found in ("none", *OF_WEIGHTS) or placement not in PLACEMENTS):
        raise ArgumentError(
            f"after a colon compare accepts a placement ({', '.join(PLACEMENTS)}) of norms of activations, "
            f"got {name!r}: write layer_norm:post, say"
        )
    return found + colon + placement


def applied(model: nn.Module, variant: str, example: Any) -> nn.Module:
    """Apply a method, and a placement if one is named, to a model; its other weights are not changed.

    Args:
        model: a new model; it is changed in place.
        variant: "unchanged", "none" or a name from the catalog; with ``:post``, ``:pre``, ``:peri`` or ``:sandwich``
            the norms of residual blocks are placed there (`normkit.replace_placement`, without calibration).
        example: some inputs, which give the shapes inside the model.

    Raises:
        ArgumentError: the norm cannot be placed in the model; the message gives the reasons.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> applied(model, "group_norm", torch.zeros(2, 1, 8, 8))[0].norm
    GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    """
    method, _, placement = variant.partition(":")
    model = _with_method(model, method, example)
    return _placed(model, placement, example) if placement else model


def _placed(model: nn.Module, placement: Any, example: Any) -> nn.Module:
    model, report = replace_placement(model, placement, example=example, calibrate=False, inplace=True)
    if report.refusals or not report.blocks:
        reasons = "; ".join(str(row) for row in report.refusals[:5]) or str(report)
        raise ArgumentError(
            f"{placement} must be possible for all residual blocks of the model, but it is not ({reasons}): leave this "
            "variant out"
        )
    return model


def _with_method(model: nn.Module, method: str, example: Any) -> nn.Module:
    if method == "unchanged":
        return model
    if method == "revin":
        return _reversible(model, example)
    if method == "global_response_norm":
        return _with_responses(model, example)
    had_norms = any(True for _ in norms(model))
    if method in OF_LAYERS and had_norms:
        return _replaced(model, method, example)
    if had_norms:
        model = _without_norms(model, example)
    if method == "none":
        return model
    with warnings.catch_warnings():
        # The warning that the model cannot be traced is for interactive use; here the report of `insert` decides.
        warnings.simplefilter("ignore", UserWarning)
        model, report = insert(model, method, example=example, inplace=True)
    if not report.inserted:
        recurrent = with_layer_norms(model) if method in OF_LAYERS else None
        if recurrent is not None:
            return recurrent if method == "layer_norm" else _replaced(recurrent, method, example)
        _refuse(method, [f"{skip.name}: {skip.reason}" for skip in report.skipped] or _layers(model))
    return model


def _reversible(model: nn.Module, example: Any) -> nn.Module:
    """The whole model, with its own norms, between `normkit.RevIN` and its inverse."""
    with torch.no_grad():
        # Of a copy, because a call in training mode updates running statistics.
        forecast = copy.deepcopy(model)(example)
    shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (example, forecast)]
    series = isinstance(example, Tensor) and isinstance(forecast, Tensor) and example.is_floating_point()
    if not series or example.dim() != 3 or forecast.dim() != 3 or forecast.shape[2] != example.shape[2]:
        raise ArgumentError(
            "revin must surround a forecast of the series it normalizes, from (N, T, C) to (N, T', C), but inputs and "
            f"outputs of the model are {shapes[0]} and {shapes[1]}: leave this method out"
        )
    return Reversible(model, example.shape[2])


def _with_responses(model: nn.Module, example: Any) -> nn.Module:
    """The model with its own norms, and a global response norm after each activation that has positions."""
    layer: nn.Module | None = None
    outputs: dict[nn.Module, list[tuple[Tensor, bool]]] = {}

    def see(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal layer
        if isinstance(module, LAYERS):
            layer = module
        elif layer is not None:
            outputs.setdefault(module, []).append((output, isinstance(layer, nn.Linear)))

    watched = [place.module for place in module_places(model) if isinstance(place.module, (*LAYERS, *ACTIVATIONS))]
    observe(model, [example], dict.fromkeys(watched, see))
    new: dict[nn.Module, nn.Module] = {}
    for module, calls in outputs.items():
        (output, last), *more = calls
        if not more and output.dim() > 2:
            norm = normkit.GlobalResponseNorm(output.shape[-1 if last else 1], channels_last=last)
            new[module] = nn.Sequential(module, norm)
    if not new:
        _refuse("global_response_norm", [f"it follows activations with positions that are modules; {_found(outputs)}"])
    return replace(model, new)


def _found(outputs: dict[nn.Module, list[tuple[Tensor, bool]]]) -> str:
    shapes = [f"{type(module).__name__} {tuple(call.shape)}" for module, calls in outputs.items() for call, _ in calls]
    return f"here are {', '.join(shapes[:5]) or 'none'}"


def _replaced(model: nn.Module, method: str, example: Any) -> nn.Module:
    model, report = convert(model, to=method, example=example, inplace=True)
    if not report.changes and report.refusals:
        _refuse(method, [str(refusal) for refusal in report.refusals])
    return model


def _without_norms(model: nn.Module, example: Any) -> nn.Module:
    """The model with a scale and shift in place of each norm, so that only the normalization is removed."""
    model, _ = convert(model, to="batch_norm", example=example, inplace=True)
    model, report = convert(model, to="affine", example=example, inplace=True)
    stuck = list(norms(model))
    turn_off(model, [layer for place, _ in stuck for layer in encoder_layers(place)])
    new = {place.module: ScaleShift.of(place.module, info) for place, info in stuck}
    return replace(model, new) if report.refusals or new else model


class ScaleShift(nn.Module):
    """``y = x * weight + bias`` over the last dimensions: what is left of a layer norm without its normalization.

    Args:
        weight, bias: parameters of one shape; None for none.

    >>> ScaleShift(nn.Parameter(torch.tensor([1.0, 2.0])), None)(torch.ones(3, 2))[0].tolist()
    [1.0, 2.0]
    """

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    @staticmethod
    def of(norm: nn.Module, info: NormInfo) -> nn.Module:
        """The scale and shift of a norm over its last dimensions, with its parameters; of another norm nothing."""
        weight, bias = (norm._parameters.get(name) for name in ("weight", "bias"))
        plain = info.axis == "last" and not info.offset and not info.extras and not info.activation
        if not plain or any(p is not None and p.shape != info.shape for p in (weight, bias)):
            return nn.Identity()
        return ScaleShift(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        scaled = x if self.weight is None else x * self.weight
        return scaled if self.bias is None else scaled + self.bias


def _layers(model: nn.Module) -> list[str]:
    kinds = {type(place.module).__name__ for place in module_places(model) if isinstance(place.module, LAYERS)}
    return [f"layers that a norm could follow: {', '.join(sorted(kinds)) or 'none'}"]


def _refuse(method: str, reasons: list[str]) -> None:
    shown = "; ".join(reasons[:5])
    raise ArgumentError(
        f"{method} must fit somewhere in the model, but it does not ({shown}): leave this method out, or give "
        "a model with norms, convolutions or linear layers"
    )
