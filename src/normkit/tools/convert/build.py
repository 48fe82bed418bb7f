"""Makes the layer of normkit that replaces a norm: of the same method, or of another one with the same width."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from normkit import catalog
from normkit.errors import NormkitError
from normkit.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GatedRMSNorm,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    IterNorm,
    LayerNorm,
    LayerNorm2d,
    LocalResponseNorm,
    Norm,
    RMSNorm,
)
from normkit.layers.base.tracked import Tracked
from normkit.pattern import Region, bound
from normkit.tools.model import own, statistics
from normkit.tools.model.activated import (
    ChannelAffine,
    LayerNorm2dLast,
    NormBesideWeight,
    WithActivation,
    activated,
    fusible,
    joined,
)
from normkit.tools.model.frozen import plain_class
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError

BATCH: Mapping[int, type[nn.Module]] = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
BY_RANK: Mapping[str, Mapping[int, type[nn.Module]]] = {
    "batch_norm": BATCH,
    "instance_norm": {1: InstanceNorm1d, 2: InstanceNorm2d, 3: InstanceNorm3d},
}
"""The layers of a method whose class depends on the number of dimensions of positions."""

OWN: Mapping[str, type[nn.Module]] = {
    method.name: own.KINDS[method.name] for method in catalog.METHODS if method.replaces_norms
}
"""The layers of the methods that no region describes, and that a norm can become."""

OF_CHANNELS: Mapping[str, type[nn.Module]] = {"group_norm": GroupNorm, "layer_norm2d": LayerNorm2d}
"""The layers that are made for a number of channels in dimension 1. For other methods there it is `Norm`."""

REGIONS = {method.name: method.target for method in catalog.METHODS if method.target is not None}
"""Of each method that a norm can become, on channels-first inputs."""

AFFINE = "affine"
"""The name in `convert` for one scale and shift made of running statistics, weight and bias."""

GROUPS = 32
"""The number of groups that Wu & He 2018 found best; the default."""


def nearest_divisor(channels: int, groups: int) -> int:
    """The number of groups nearest to the one asked for that divides the channels; the smaller of two.

    >>> nearest_divisor(72, 32), nearest_divisor(64, 32)
    (36, 32)
    """
    return min((d for d in range(1, channels + 1) if channels % d == 0), key=lambda d: abs(d - groups))


def groups_for(channels: int, asked: int | None) -> int:
    """The groups for a layer: as asked if that divides; by default near 32, with at least two channels in each.

    >>> groups_for(72, None), groups_for(32, None), groups_for(16, 16), groups_for(3, None)
    (36, 16, 16, 1)
    """
    if asked is not None:
        return nearest_divisor(channels, asked)
    return nearest_divisor(channels, min(GROUPS, channels // 2)) if channels > 1 else 1


def equivalent(module: nn.Module, info: NormInfo) -> nn.Module:
    """Normkit's layer of the same method, with the very parameters and statistics of the old one.

    Raises:
        RefusedError: normkit has no layer with the same outputs and the same state.
    """
    kind = info.kind or info.base
    if kind is None:
        raise RefusedError(info.reason)
    if info.synced:
        raise RefusedError("it shares statistics between processes; normkit's BatchNorm does not")
    if info.bias and not info.weight:
        raise RefusedError("it has a bias and no weight, which no layer of normkit has")
    if isinstance(module, nn.LocalResponseNorm):
        return LocalResponseNorm(module.size, module.alpha, module.beta, module.k)
    if info.kind in own.KINDS:
        layer = _made(module, info, *own.choice(module, info))
        own.adopt(layer, module)
        return layer
    cls, arguments = _choice(info, kind, info.groups, info.rank, info.weight, info.bias)
    cls = LayerNorm2dLast if info.channels_last else cls
    cls = NormBesideWeight if cls is Norm and "weight" in module._non_persistent_buffers_set else cls
    if info.offset or info.rounds_twice:
        if cls in (LayerNorm, RMSNorm, GatedRMSNorm) and info.offset in (0, 1):
            arguments |= {"zero_centered": bool(info.offset), "cast": "before" if info.rounds_twice else "after"}
        elif info.offset or any(p.dtype.itemsize == 2 for p in module.parameters()):
            raise RefusedError(
                "its weight is stored or rounded in a way that normkit's layer of that kind does not know"
            )
    if any(cls in layers.values() for layers in BY_RANK.values()):
        arguments |= {"momentum": module.momentum, "track_running_stats": module.track_running_stats}
    return _made(module, info, cls, arguments, adopt_statistics=True)


def other(
    module: nn.Module, info: NormInfo, method: str, *, groups: int | None, shapes: list[torch.Size], add_affine: bool
) -> nn.Module:
    """Normkit's layer of another method, with the weight and bias of the old one.

    Args:
        module, info: the old one.
        method: its name in the catalog, or `AFFINE`, or a pattern.
        groups: number of groups asked for.
        shapes: of inputs that the norm has been seen to get; empty if it has not been run.
        add_affine: whether to give weight and bias to a layer whose predecessor has none.

    Raises:
        RefusedError: the method does not exist on such inputs, would erase them, or cannot be made.
    """
    if info.kind is None:
        raise RefusedError(info.reason)
    if info.offset:
        raise RefusedError(f"it stores weight - {info.offset:g}, which only a layer of the same method keeps")
    if not info.shape:
        raise RefusedError("it has no weight and does not know its channels")
    if info.kind in own.KINDS and not catalog.find(info.kind).replaces_norms and info.pattern is None:
        raise RefusedError(f"{info.kind} does more than normalize, which another method would not do")
    weight, bias = (True, True) if add_affine and not info.affine else (info.weight, info.bias)
    if bias and not weight:
        raise RefusedError("it has a bias and no weight, which no layer of normkit has")
    if info.kind in OWN:
        row = None if is_pattern(method) or method == AFFINE else catalog.find(method)
        # It has none, or one of another kind.
        info = replace(info, eps=1e-5 if row is None else row.eps)
    if method == AFFINE:
        return _folded(module, info)
    if info.axis == "first":
        _refuse_erasing(info, method, groups, shapes)
    cls, arguments = _choice(info, method, groups, info.rank, weight, bias)
    if info.rounds_twice and cls in (LayerNorm, RMSNorm):
        arguments |= {"cast": "before"}
    return _made(module, info, cls, arguments)


def fresh(
    method: str,
    channels: int,
    rank: int,
    groups: int | None,
    shape: torch.Size | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """A new norm for the output of a layer.

    Args:
        method: its name in the catalog.
        channels: of the output.
        rank: number of dimensions of positions; 0 for a linear layer, whose features are the last dimension.
        groups: number of groups asked for.
        shape: of the output, where it is known.
        device, dtype: of the parameters.

    Raises:
        RefusedError: the method does not exist on such outputs, or would erase them.
    """
    row = catalog.find(method)
    last, bias = rank == 0 and not row.over_samples, row.center or row.acts_on == "values"
    info = NormInfo(shape=(channels,), axis="last" if last else "first", rank=rank, eps=row.eps, weight=True, bias=bias)
    if not last:
        positions = torch.Size((2, channels, *(2,) * rank))
        _refuse_erasing(info, method, groups, [positions if shape is None else shape])
    elif (channels == 1 and row.acts_on != "values") or (row.grouped and groups_for(channels, groups) == channels):
        raise RefusedError("its region would be one single element, so that it would erase its input")
    cls, arguments = _choice(info, method, groups, rank, weight=True, bias=bias)
    return cls(**arguments, device=device, dtype=dtype)


def _choice(
    info: NormInfo, method: str, groups: int | None, rank: int | None, weight: bool, bias: bool
) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a method on these features, and its arguments."""
    affine: dict[str, Any] = {"eps": _eps(info), "affine": weight, "bias": bias}
    if method in OWN:
        cls, arguments = _choice_of_own(info, method, weight, bias)
        return cls, arguments | ({"num_groups": _whitened_groups(info.channels, groups)} if cls is IterNorm else {})
    if is_pattern(method):
        _check_place_of_channels(method, info)
    elif info.axis == "last":
        return _choice_of_last(info, method, groups, weight, bias)
    elif method in BY_RANK and rank is not None:
        return BY_RANK[method][max(rank, 1)], {"num_features": info.channels, **affine}
    elif catalog.find(method).over_samples:
        raise RefusedError("it is not known how many dimensions its input has: pass example= or calibrate=")
    pattern = REGIONS.get(method, method)
    grouping = {"num_groups": groups_for(info.channels, groups)} if leaves_groups_open(pattern) else {}
    if method in OF_CHANNELS:
        return OF_CHANNELS[method], {**grouping, "num_channels": info.channels, **affine}
    center = is_pattern(method) or catalog.find(method).center
    return Norm, {"pattern": pattern, "num_features": info.channels, **grouping, **affine, "center": center}


def _choice_of_own(info: NormInfo, method: str, weight: bool, bias: bool) -> tuple[type[nn.Module], dict[str, Any]]:
    """The same of a method that no region describes."""
    last = info.axis == "last"
    if catalog.find(method).acts_on == "values":
        shape: Any = info.shape if last else info.channels
        return OWN[method], {
            "normalized_shape": shape,
            "channels_last": last,
            "elementwise_affine": weight,
            "bias": bias,
        }
    if issubclass(OWN[method], Tracked):
        if last:
            raise RefusedError(f"normkit has {method} for channels in dimension 1 alone")
        return OWN[method], {"num_features": info.channels, "eps": _eps(info), "affine": weight, "bias": bias}
    if not last or len(info.shape) > 1:
        raise RefusedError(f"normkit has {method} for the last dimension alone")
    # Its eps bounds a length, and that of other norms is added to a variance.
    return OWN[method], {"num_features": info.channels, "elementwise_affine": weight}


def _whitened_groups(channels: int, asked: int | None) -> int:
    """As asked if that divides; by default groups of about 16 channels, whose covariance a usual batch can show.

    >>> _whitened_groups(64, None), _whitened_groups(10, None), _whitened_groups(64, 2)
    (4, 1, 2)
    """
    return nearest_divisor(channels, max(1, channels // 16) if asked is None else asked)


def _eps(info: NormInfo) -> float:
    return torch.finfo(torch.float32).eps if info.eps is None else info.eps


def is_pattern(method: str) -> bool:
    """Whether a method is given as a pattern, and not by its name."""
    return "[" in method


def _check_place_of_channels(pattern: str, info: NormInfo) -> None:
    dims = bound(pattern, {}).dims
    dim = dims[-1] if info.axis == "last" else dims[1] if len(dims) > 1 else None
    if dim is None or not Region((dim,)).has_features or (info.axis == "last" and len(info.shape) > 1):
        where = "the last dimension" if info.axis == "last" else "dimension 1"
        raise RefusedError(f"its features are in {where}, and the pattern {pattern!r} has its channels elsewhere")


def leaves_groups_open(pattern: str) -> bool:
    """Whether a pattern has groups and does not say how many."""
    return any(axis.name == "g" and axis.size is None for axis in bound(pattern, {}).axes)


def _choice_of_last(
    info: NormInfo, method: str, groups: int | None, weight: bool, bias: bool
) -> tuple[type[nn.Module], dict[str, Any]]:
    """The same where the features are the last dimensions."""
    shape, row = info.shape, catalog.find(method)
    affine: dict[str, Any] = {"eps": _eps(info), "affine": weight, "bias": bias}
    if row.grouped and len(shape) == 1:
        count = groups_for(shape[0], groups)
        return Norm, {"pattern": "... (g [c])", "num_features": shape[0], "num_groups": count, **affine}
    if "... [c]" not in row.patterns:
        raise RefusedError(f"it normalizes the last dimensions, for which normkit has no {method}")
    if info.gate is not None:
        activation = None if info.gate.activation == "none" else info.gate.activation
        how: dict[str, Any] = {"gate_activation": activation, "gate_first": info.gate.first}
        how |= {"group_size": info.gate.group_size, "elementwise_affine": weight}
        return GatedRMSNorm, {"hidden_size": info.channels, "eps": info.eps, **how}
    if info.per_head or not shape:
        pattern, sizes = ("... c1 [c2]", shape) if info.per_head else ("... [c]", None)
        return Norm, {"pattern": pattern, "num_features": sizes, **affine, "center": row.center}
    if row.center:
        return LayerNorm, {"normalized_shape": shape, "eps": _eps(info), "elementwise_affine": weight, "bias": bias}
    if not bias:
        return RMSNorm, {"normalized_shape": shape, "eps": info.eps, "elementwise_affine": weight}
    names = " ".join(f"c{i}" for i in range(1, len(shape) + 1)) if len(shape) > 1 else "c"
    return Norm, {"pattern": f"... [{names}]", "num_features": shape, **affine, "center": False}


def _made(
    module: nn.Module,
    info: NormInfo,
    cls: type[nn.Module],
    arguments: dict[str, Any],
    *,
    adopt_statistics: bool = False,
) -> nn.Module:
    """The layer with the old one's extras, parameters and, where asked, statistics."""
    like = next((t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()), None)
    if like is not None:
        arguments = arguments | {"device": like.device, "dtype": like.dtype}
    kind, activation = _with_activation(module, info, cls)
    try:
        layer = kind(**arguments) if activation is None else kind(**arguments, activation=activation)
    except NormkitError as error:
        raise RefusedError(str(error)) from error
    for name in info.extras if issubclass(kind, WithActivation) else ():
        layer.add_module(name, module._modules[name])
    for name in ("weight", "bias"):
        old, new = module._parameters.get(name), layer._parameters.get(name)
        if old is not None and new is not None and old.shape == new.shape:
            layer._parameters[name] = old
    if adopt_statistics:
        layer._buffers.update(module._buffers)
    return layer


def _with_activation(module: nn.Module, info: NormInfo, cls: type[nn.Module]) -> tuple[type[nn.Module], str | None]:
    """The class of a layer, and the activation to make it with; of some classes the activation becomes a child."""
    if info.activation and cls is ChannelAffine:
        raise RefusedError(f"its {info.activation} would be lost")
    if info.activation or not info.extras:
        return cls, info.activation
    theirs = _known_with_activation(module, info, cls)
    if theirs is not None:
        return joined(activated(cls), theirs), None
    name = fusible({name: module._modules[name] for name in info.extras})
    if name in (None, "none") or cls in (LayerNorm2dLast, ChannelAffine):
        return activated(cls), None
    return cls, name


def _known_with_activation(module: nn.Module, info: NormInfo, cls: type[nn.Module]) -> type[nn.Module] | None:
    """Of a batch norm the class by which the tools of a library know that it has an activation, if there is one."""
    if cls in BATCH.values() and isinstance(module, cls.__bases__[-1]):
        return plain_class(module)
    if cls is BatchNorm2d and info.origin == "timm":
        return cast("type[nn.Module]", sys.modules["timm.layers"].BatchNormAct2d)
    return None


def _refuse_erasing(info: NormInfo, method: str, groups: int | None, shapes: list[torch.Size]) -> None:
    """A region of a single element leaves nothing of its input but the bias."""
    row = None if is_pattern(method) else catalog.find(method)
    own_region = row is not None and row.patterns[:1] == ("b c [...]",)  # also of a method that mixes others with it
    if row is not None and (method in OWN or row.over_samples) and not own_region:
        return
    pattern = REGIONS.get(method, row.patterns[0] if row is not None and method in OWN else method)
    open_groups = {"g": groups_for(info.channels, groups)} if leaves_groups_open(pattern) else {}
    region = bound(pattern, open_groups)
    # Without an example: a norm for images has many positions, and a norm for (N, C) and (N, C, L) has none.
    rank = 2 if info.rank is None else 0 if info.rank == 1 else info.rank
    unseen = torch.Size((2, info.channels, *(2,) * rank))
    for shape in shapes or [unseen]:
        try:
            levels = region.levels(shape)
        except NormkitError as error:
            raise RefusedError(str(error)) from error
        if math.prod(level.size for level in levels if level.reduced) == 1:
            hint = "" if shapes else "; if its inputs have positions, show one with example="
            raise RefusedError(
                f"on an input of shape {tuple(shape)} the region {str(region)!r} is one single element, "
                f"so that it would erase its input{hint}"
            )


def _folded(module: Any, info: NormInfo) -> nn.Module:
    """Running statistics, weight and bias as one scale and shift."""
    if not info.running or not info.may_keep_statistics:
        raise RefusedError("it has no running statistics, so that its scale depends on the input")
    layer = _made(module, info, ChannelAffine, {"num_channels": info.channels})
    trains = module.weight is None or module.weight.requires_grad
    for name, value in zip(("weight", "bias"), scale_and_shift(module), strict=True):
        layer._parameters[name] = nn.Parameter(value, trains)
    return layer


def scale_and_shift(module: Any) -> tuple[Tensor, Tensor]:
    """`statistics.scale_and_shift` in the dtype of the norm."""
    dtype = module.running_mean.dtype if module.weight is None else module.weight.dtype
    scale, shift = statistics.scale_and_shift(module, module.eps)
    return scale.to(dtype), shift.to(dtype)
