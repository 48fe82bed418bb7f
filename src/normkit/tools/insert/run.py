"""Adds a norm after each layer of a model that has none."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from normkit import catalog, parametrize
from normkit.errors import ArgumentError, NormkitError, nearest
from normkit.layers import ScaleNorm
from normkit.parametrize.weight_init import CONVOLUTIONS
from normkit.tools.convert.build import fresh
from normkit.tools.model.activated import NormedLayer
from normkit.tools.model.graph.call_order import Use, ordered, output_shapes, traced
from normkit.tools.model.names import picked
from normkit.tools.model.refusal import Refusal, RefusedError
from normkit.tools.model.tree import LAYERS, Place, copy_of, module_places, replace
from normkit.tools.model.wrapped import refuse_wrapped

M = TypeVar("M", bound=nn.Module)

REPLACES_WEIGHT = ("weight_norm",)
"""The norms of weights that keep other parameters than the weight."""

ON_FEATURES = {"layer_norm2d": "layer_norm"}
"""The name that a method has on the output of a linear layer, whose features are the last dimension, if another."""

METHODS = tuple(method.name for method in catalog.METHODS if method.insertable)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Insertion:
    """One layer that was given a norm.

    Attributes:
        name: of the layer before; with a norm of activations it is now a `Sequential` of ``layer`` and ``norm``.
        layer, norm: both in words.
        bias_dropped: whether a bias was removed that the norm would subtract again.
    """

    name: str
    layer: str
    norm: str
    bias_dropped: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.layer} + {self.norm}" + (", bias dropped" if self.bias_dropped else "")


@dataclass(frozen=True)
class InsertReport:
    """The report of `insert`.

    Attributes:
        inserted, skipped: one row for each layer, in the order of calls.
        traced: whether the order of calls is known; otherwise it is that of the model.
    """

    inserted: tuple[Insertion, ...]
    skipped: tuple[Refusal, ...]
    traced: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.inserted, *self.skipped])) or "no layer was found"


def insert(
    model: M,
    method: str,
    *,
    example: Any = None,
    only: str | Sequence[str] | None = None,
    num_groups: int | None = None,
    inplace: bool = False,
) -> tuple[M, InsertReport]:
    """Add a norm after each convolution and linear layer and before its activation.

    The last layer of a branch gets none, which is one whose output the model returns, nor does one that a norm follows
    already. Norms of weights are applied to the layer itself.
    A bias that the norm would subtract again (batch and instance norm) is dropped. `torch.fx` finds which layer reads
    the output of which. For a model that it cannot trace, the order of calls on the example decides, or the order of
    modules, with a warning.

    Args:
        model: any module.
        method: batch, layer, instance, group or RMS norm, weight norm or weight standardization, by any of its names.
        example: an input of the model: a tensor, a tuple of positional or a mapping of keyword arguments; it shows the
            shapes between the layers.
        only: names of layers, with the wildcards of the shell; None for all.
        num_groups: for group norm, as in `normkit.convert`.
        inplace: whether to change the model itself and not a copy.

    Returns:
        The changed model and the report. A layer ``conv`` becomes a `Sequential` of ``conv.layer`` and
        ``conv.norm``, so load old weights before; it has the layer's attributes. Make the optimizer afterwards.

    Raises:
        ArgumentError: an unknown method, a name that no layer has.
        StateError: the model cannot be copied, or is wrapped for several processes. In every case the model is as it
            was before.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model, report = normkit.insert(model, "batch_norm")
        >>> print(report)
        0: Linear(4, 8) + BatchNorm1d(8), bias dropped
        2: Linear(8, 2) stays, it is the last layer
    """
    method = _method(method)
    places = [place for place in module_places(model) if isinstance(place.module, LAYERS)]
    refuse_wrapped(model, "insert")
    wanted = _wanted(places, only)
    if not inplace:
        model = copy_of(model)
    uses = traced(model)
    if uses is None:
        warnings.warn(
            f"{type(model).__name__} cannot be traced by torch.fx: which layer is the last, and what follows each, is "
            "taken from the order of " + ("calls" if example is not None else "modules; pass example="),
            UserWarning,
            stacklevel=2,
        )
    known = ordered(model, example) if uses is None else uses
    shapes = {} if example is None else output_shapes(model, example)
    found = {name: place for place in module_places(model) for name in place.names}
    tied = _tied(model)
    new: dict[nn.Module, nn.Module] = {}
    biased: list[nn.Module] = []
    rows: list[Insertion] = []
    skipped: list[Refusal] = []
    for name, use in known.items():
        place = found[name]
        if place.name not in wanted:
            continue
        text = _text(place.module)
        try:
            _refuse(place, use, method, tied)
            norm = _norm(place.module, method, num_groups, shapes.get(place.module))
        except (RefusedError, NormkitError) as reason:
            skipped.append(Refusal(name, text, str(reason)))
            continue
        drops = norm is not None and _drops_bias(place.module, norm)
        rows.append(Insertion(name, text, method if norm is None else _text(norm), drops))
        if norm is not None:
            new[place.module] = NormedLayer(OrderedDict(layer=place.module, norm=norm)).train(place.module.training)
            if drops:
                biased.append(place.module)
    for layer in biased:
        layer.register_parameter("bias", None)
    model = replace(model, new)  # type: ignore[assignment]  # the root itself may be a layer
    return model, InsertReport(tuple(rows), tuple(skipped), uses is not None)


def _wanted(places: Sequence[Place], only: str | Sequence[str] | None) -> set[str]:
    """The first names of the layers that the caller picks."""
    names = {place.name: place.names for place in places}

    def unknown(pattern: str) -> str:
        return f"no layer of the model is called {pattern!r}: {nearest(pattern, [*names][:20])}"

    return set(names) if only is None else picked(only, names, unknown)


def _method(name: str) -> str:
    try:
        found = catalog.find(name).name
    except ArgumentError:
        raise ArgumentError(f"no normalization is called {name!r}: {nearest(name, METHODS)}") from None
    if found not in METHODS:
        raise ArgumentError(f"insert adds {', '.join(METHODS)}; got {name!r}: add it to the model by hand")
    return found


def _tied(model: nn.Module) -> dict[nn.Module, str]:
    """Each module that shares its weight with another one, and the name of another one."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(weight, []).append((name, module))
    return {
        module: next(name for name, other in held if other is not module)
        for held in owners.values()
        if len(held) > 1
        for _, module in held
    }


def _refuse(place: Place, use: Use, method: str, tied: Mapping[nn.Module, str]) -> None:
    for parent, _ in place.parents:
        if type(parent).__module__.startswith("torch.nn") and not isinstance(parent, CONTAINERS):
            raise RefusedError(f"torch's {type(parent).__name__} reads its weight itself")
    if isinstance(place.module, LazyModuleMixin) and place.module.has_uninitialized_params():
        raise RefusedError("it is lazy: run one batch first")
    if use.last:
        raise RefusedError("it is the last layer")
    if method in REPLACES_WEIGHT and place.module in tied:
        raise RefusedError(f"its weight is shared with {tied[place.module]!r}, and would no longer be")
    row = catalog.find(method)
    if row.of_weights:
        return
    if use.normalized:
        raise RefusedError("a norm follows already")
    if use.read:
        raise RefusedError("its weight is read by other code than its own")
    if use.times > 1 and row.over_samples:
        raise RefusedError(f"it is used {use.times} times, and the statistics of its uses would be mixed")


def _norm(layer: Any, method: str, groups: int | None, shape: torch.Size | None) -> nn.Module | None:
    """The norm to add after a layer; None if it is a norm of weights, which is put on the layer at once."""
    row = catalog.find(method)
    if row.of_weights:
        dim = 1 if getattr(layer, "transposed", False) else 0
        getattr(parametrize, method)(layer, dim=dim)
        return None
    linear = isinstance(layer, nn.Linear)
    rank = 0 if linear else next(n for kind, n in CONVOLUTIONS.items() if isinstance(layer, kind))
    if linear and row.per_channel and not row.over_samples:
        raise RefusedError("the features of a linear layer have no positions to normalize over")
    if linear and row.over_samples and shape is not None and len(shape) != 2:
        raise RefusedError(f"its output of shape {tuple(shape)} has more than batch and features")
    channels = layer.out_features if linear else layer.out_channels
    weight = layer.weight
    made = ON_FEATURES.get(method, method) if linear else method
    norm = fresh(made, channels, rank, groups, shape, device=weight.device, dtype=weight.dtype)
    if linear and row.over_samples:
        # Dimension 1 of (N, tokens, C) does not hold features, even where it has the same size.
        vars(norm)["layouts"] = {2: "(N, C)"}
    return norm


def _drops_bias(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the norm subtracts the mean of single channels, and with it the layer's bias."""
    alone = isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm)
    alone = alone or (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels)
    return alone and layer._parameters.get("bias") is not None and not layer._forward_hooks


def _text(module: Any) -> str:
    """A layer in few words."""
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return f"{name}({module.in_features}, {module.out_features})"
    if isinstance(module, LAYERS):
        return f"{name}({module.in_channels}, {module.out_channels})"
    if isinstance(module, nn.GroupNorm):
        return f"{name}({module.num_groups}, {module.num_channels})"
    sizes = (module.num_features,) if isinstance(module, ScaleNorm) else module._parameters["weight"].shape
    return f"{name}({', '.join(map(str, sizes))})" if not hasattr(module, "pattern") else f"{name}({module.pattern!r})"
