"""Which method a norm computes: torch's and normkit's norms by their class, any other by its outputs, not its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, cast

from torch import nn
from torch.nn.modules import batchnorm, instancenorm, lazy
from torch.nn.utils import parametrize

from normkit import catalog
from normkit.kernels.formula import ACTIVATIONS
from normkit.layers import GatedRMSNorm, LayerNorm2d, Norm
from normkit.tools.model import own, probe
from normkit.tools.model.activated import WithActivation
from normkit.tools.model.info import Gate, NormInfo

__all__ = ["NormInfo", "describe", "identity"]

RANKS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
}
BASES: tuple[type[nn.Module], ...] = (
    *RANKS,
    nn.SyncBatchNorm,
    batchnorm._BatchNorm,
    instancenorm._InstanceNorm,
    batchnorm._NormBase,  # a frozen batch norm is no _BatchNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
"""torch's own, the more special first."""

OURS = (LayerNorm2d, Norm, GatedRMSNorm)
"""Those of normkit's layers that are none of torch's, and that the tools know."""

OF_CHANNELS = {"layer_norm": "layer_norm2d"}
"""The name that a method has where its features are dimension 1, if that is another one."""

EXTRAS = ("drop", "act")
"""The children that a norm may have, in the order in which they are applied."""

CALLED = ("norm", "grn")
"""What the class of a norm has in its name."""

OF_GATE = "its output depends on a gate, which only a layer of the same method keeps"
"""Why a norm with a gate is none of the catalog."""

HARMLESS = {"__init__", "__module__", "__doc__", "__qualname__", "__constants__", "__annotations__", "extra_repr"}
HARMLESS |= {"reset_parameters", "reset_running_stats", "__static_attributes__", "__firstlineno__", "__slots__"}
"""Attributes that a subclass may define without changing the arithmetic of the norm."""


def describe(module: nn.Module) -> NormInfo | None:
    """Describe a norm.

    torch's and normkit's norms are known by their class. A class of another origin that is called a norm, or
    that changes one of torch's, is run on random inputs, with random parameters and on a copy, and counts as
    the method that it agrees with in outputs and gradients.

    Args:
        module: any module; it is not changed.

    Returns:
        The `NormInfo`; with a `reason` and without a `kind` for a norm that is not understood; None for any other
        module.

    Example:
        >>> info = describe(nn.GroupNorm(4, 8))
        >>> info.kind, info.channels, info.groups, info.eps
        ('group_norm', 8, 4, 1e-05)
        >>> describe(nn.ReLU()) is None
        True
    """
    base = next((base for base in BASES if isinstance(module, base)), None)
    ours = own.class_of(module)
    if base is None and ours is None and not isinstance(module, OURS) and not _is_called_a_norm(module):
        return None
    origin = type(module).__module__.split(".")[0]
    info = NormInfo(origin=origin)
    if parametrize.is_parametrized(module):
        return replace(info, reason="its parameters are parametrized")
    if isinstance(module, lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return replace(info, reason="it is lazy and does not know its channels yet: run one batch first")
    if "forward" in vars(module):
        return replace(info, reason="its forward was exchanged on this very module")
    if isinstance(module, OURS):
        return _with_options(module, _ours(module, info))
    if ours is not None:
        info = own.described(module, ours, _state(module, info))
        return _with_options(
            module, replace(info, extras=_extras(module) if isinstance(module, WithActivation) else ())
        )
    if base is None:
        return _of_any_class(module, info)
    return _with_options(module, _of_torch(module, base, info))


def identity(module: nn.Module) -> Any:
    """Equal for modules that `describe` cannot tell apart."""
    simple = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | tuple | None)}
    simple.pop("training", None)
    if isinstance(module, lazy.LazyModuleMixin):
        return id(module)
    shapes = [(key, None if p is None else (p.shape, p.dtype)) for key, p in module._parameters.items()]
    buffers = [(key, None if b is None else b.shape) for key, b in module._buffers.items()]
    children = [(key, type(child), repr(child)) for key, child in module._modules.items()]
    if len(children) > len(EXTRAS):
        return id(module)
    return type(module), repr(simple), repr(shapes), repr(buffers), repr(children), "forward" in vars(module)


def _with_options(module: nn.Module, info: NormInfo) -> NormInfo:
    """With the options that normkit's layers have and torch's do not."""
    if not type(module).__module__.startswith("normkit."):
        return info
    offset = 1.0 if getattr(module, "zero_centered", False) else info.offset
    # Another layer may have taken over the attribute from its predecessor.
    twice = "cast" in getattr(module, "options", ()) and cast("Any", module).cast == "before"
    return replace(info, activation=getattr(module, "activation", None), offset=offset, rounds_twice=twice)


def _is_called_a_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in CALLED) and set(module._modules) <= set(EXTRAS)


def _extras(module: nn.Module) -> tuple[str, ...]:
    """The children that the forward of a class which is not torch's own may apply."""
    return tuple(name for name in EXTRAS if module._modules.get(name) is not None)


def _state(module: nn.Module, info: NormInfo) -> NormInfo:
    """The parameters and statistics that it has."""
    return replace(
        info,
        weight=module._parameters.get("weight") is not None,
        bias=module._parameters.get("bias") is not None,
        running=module._buffers.get("running_mean") is not None,
    )


def _ours(module: nn.Module, info: NormInfo) -> NormInfo:
    info = _state(module, replace(info, eps=cast("float | None", module.eps)))
    if isinstance(module, LayerNorm2d):
        return replace(info, kind="layer_norm2d", shape=(module.num_channels,), axis="first", extras=_extras(module))
    if isinstance(module, GatedRMSNorm):
        gate = Gate(module.gate_activation or "none", module.gate_first, module.group_size)
        return replace(info, base="rms_norm", reason=OF_GATE, gate=gate, shape=(module.hidden_size,))
    assert isinstance(module, Norm)
    sizes = module.num_features
    shape = () if sizes is None else (sizes,) if isinstance(sizes, int) else tuple(sizes)
    info = replace(info, shape=shape, groups=module.num_groups, pattern=module.pattern, extras=_extras(module))
    words = " ".join(module.pattern.split())
    axis: Literal["last", "first"] = "last" if words.startswith("...") else "first"
    # Those that do nothing else than normalize their region; filter response norm may have no threshold.
    plain = (method for method in catalog.METHODS if method.target or method.name == "filter_response_norm")
    rows = (method for method in plain if method.center == module.center)
    kind = next((method.name for method in rows if words in (*method.patterns, method.target)), None)
    return replace(info, kind=kind, axis=axis, reason="" if kind else "its region is a pattern of its own")


def _of_torch(module: nn.Module, base: type[nn.Module], info: NormInfo) -> NormInfo:
    info = _state(module, replace(info, rank=RANKS.get(base), synced=base is nn.SyncBatchNorm))
    info = replace(info, eps=cast("float | None", getattr(module, "eps", None)))
    if isinstance(module, batchnorm._NormBase):
        kind = "instance_norm" if isinstance(module, instancenorm._InstanceNorm) else "batch_norm"
        info = replace(info, kind=kind, shape=(module.num_features,), axis="first")
    elif isinstance(module, nn.GroupNorm):
        shape = (module.num_channels,)
        info = replace(info, kind="group_norm", shape=shape, groups=module.num_groups, axis="first")
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        kind = "layer_norm" if isinstance(module, nn.LayerNorm) else "rms_norm"
        info = replace(info, kind=kind, shape=tuple(module.normalized_shape), axis="last")
    else:
        info = replace(info, kind="local_response_norm", axis="first")
    if _computes_as(type(module), base):
        return replace(info, extras=_extras(module) if isinstance(module, WithActivation) else ())
    if info.synced or not info.shape:
        return replace(info, kind=None, reason=f"{type(module).__name__} has a forward of its own")
    return _verified(module, info, _alternatives(info))


def _computes_as(cls: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a class is one of torch's or normkit's, or computes as torch's without a change."""
    if cls.__module__.startswith("normkit.") or cls is base:
        return True
    between = cls.__mro__[: cls.__mro__.index(base)]
    changed = {name for each in between for name, value in vars(each).items() if callable(value)} - HARMLESS
    return not changed


def _alternatives(info: NormInfo) -> Iterator[NormInfo]:
    """What a subclass of torch's norm may compute instead: over dimension 1, with weight - 1 stored, or per head."""
    offsets = (0.0, 1.0) if info.weight else (0.0,)
    both: tuple[Literal["last", "first"], ...] = ("last", "first")
    axes = both if info.axis == "last" and len(info.shape) == 1 else (info.axis,)
    for offset in offsets:
        for axis in axes:
            kind = OF_CHANNELS.get(info.kind or "", info.kind) if axis == "first" else info.kind
            yield replace(info, kind=kind, axis=axis, offset=offset)
    if info.axis == "last" and len(info.shape) == 2:
        why = f"it has a weight for each of {info.shape[0]} heads, which no method of the catalog has"
        yield replace(info, kind=None, base=info.kind, reason=why, per_head=True)


def _of_any_class(module: nn.Module, info: NormInfo) -> NormInfo:
    info = _state(module, info)
    foreign = set(module._parameters) - {"weight", "bias"} | set(module._buffers) - _idle_buffers(module)
    weight = module._parameters.get("weight")
    shape: Any = getattr(module, "normalized_shape", None) if weight is None else weight.shape
    info = replace(info, shape=tuple(shape) if isinstance(shape, tuple | list) else ())
    name = type(module).__name__
    if foreign:
        info = replace(info, reason=f"{name} keeps {', '.join(sorted(foreign))}, which the tools do not know")
        return _own_formula(module, info) or info
    if not info.shape and info.bias:
        return replace(info, reason=f"{name} does not say how many features it normalizes")
    if probe.takes_gate(module):
        return _verified(module, replace(info, gate=Gate()), _with_a_gate(module, info))

    def possible() -> Iterator[NormInfo]:
        for eps in _possible_eps(module):
            for method in catalog.METHODS:
                if method.target is not None and "... [c]" in method.patterns:
                    yield from _alternatives(replace(info, kind=method.name, eps=eps))

    found = _verified(module, info, possible())
    return found if found.kind else _own_formula(module, info) or found


def _own_formula(module: nn.Module, info: NormInfo) -> NormInfo | None:
    """The method with a formula of its own that the module agrees with."""
    extras = _extras(module)
    if probe.misfit(module, replace(info, extras=extras)):
        return None
    for guess in own.guesses(module, replace(info, reason="", extras=extras), _possible_eps(module)):
        if probe.computes_as(module, guess, partial(own.twin, info=guess)):
            return guess
    return None


def _idle_buffers(module: nn.Module) -> set[str]:
    """A weight outside the state, which a norm without weight keeps because the kernels of its library need one."""
    return {"weight"} & module._non_persistent_buffers_set


def _with_a_gate(module: nn.Module, info: NormInfo) -> Iterator[NormInfo]:
    """What a norm with a gate may compute: a root mean square norm of all features or of groups, and its gate."""
    width = info.channels
    whole = {value for value in vars(module).values() if type(value) is int}
    sizes = {v for v in whole | {width // v for v in whole if v > 0} if 0 < v < width and width % v == 0}
    hint = str(getattr(module, "activation", ""))
    names = dict.fromkeys(name for name in (hint, "silu", "sigmoid", *ACTIVATIONS) if name in ACTIVATIONS)
    choices = product(_possible_eps(module), names, (False, True), (None, *sorted(sizes)), (0.0, 1.0))
    for eps, activation, first, size, offset in choices:
        gate = Gate(activation, first, size)
        yield replace(info, base="rms_norm", reason=OF_GATE, eps=eps, offset=offset, gate=gate)


def _possible_eps(module: nn.Module) -> list[float]:
    numbers = {k: v for k, v in vars(module).items() if isinstance(v, float) and 0 <= v <= 0.1}
    named = [value for key, value in numbers.items() if "eps" in key]
    return named or [*numbers.values(), 1e-5, 1e-6, 1e-8, 1e-12]


def _verified(module: nn.Module, info: NormInfo, possible: Iterator[NormInfo]) -> NormInfo:
    """The first of the possible descriptions that the module agrees with."""
    info = replace(info, extras=_extras(module))
    unfit = probe.misfit(module, info)
    if unfit:
        return replace(info, kind=None, gate=None, reason=unfit)
    for guess in possible:
        rounding = probe.agreement(module, replace(guess, extras=info.extras))
        if rounding is not None:
            # Only the layers that normalize the last dimensions have two ways to round.
            twice = rounding.is_twice and guess.axis == "last"
            flipped = rounding.twice if twice else rounding.once
            another = flipped > probe.REROUNDED and not guess.may_keep_statistics
            last = guess.kind in OF_CHANNELS.values() and probe.gives_channels_last(module, guess)
            guess = replace(guess, extras=info.extras, channels_last=last)
            return replace(guess, rounds_twice=twice, rounds_its_own_way=another)
    reason = f"{type(module).__name__} computes something that no method of normkit agrees with"
    return replace(info, kind=None, gate=None, reason=reason)
