"""What every layer asks of its arguments and its input, and how it names itself in errors."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from normkit.errors import ArgumentError, NormkitError, ShapeError, whole_number
from normkit.functional._checks import check_dense
from normkit.functional.extras import Extras, check_activation
from normkit.functional.precision import check_cast
from normkit.layers._versions import signature_of

L = TypeVar("L", bound=type[nn.Module])
P = ParamSpec("P")
T = TypeVar("T")

COUNTS = ("num_features", "num_channels", "num_groups", "size")
"""Arguments that count something, in whichever layer they occur."""


def checked(layer: L) -> L:
    """Let a layer refuse a wrong argument when it is made, and name itself in every error of its forward.

    Signatures stay as they are, so that nothing of torch's long argument lists is written again here, but for an
    ``activation`` where the forward can apply one.

    Raises:
        ArgumentError: by the layer, for a count below 1 or an eps below 0.

    Example:
        >>> import normkit
        >>> normkit.BatchNorm2d(0)
        Traceback (most recent call last):
            ...
        normkit.errors.ArgumentError: num_features of BatchNorm2d must be at least 1, got 0: give the input's
    """
    make: Callable[..., None] = layer.__init__
    signature = signature_of(layer)

    @functools.wraps(make)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        _check_arguments(type(self).__name__, call.arguments)
        if "normalized_shape" in call.arguments:
            call.arguments["normalized_shape"] = _sizes(call.arguments["normalized_shape"])
        make(*call.args, **call.kwargs)
        # Tracers of torch.fx take a layer of torch.nn as one node, and ask the layer itself where it comes from.
        vars(self)["__module__"] = "torch.nn.normkit"

    vars(init)["__signature__"] = signature
    # Set by name, because a type checker refuses to see a method replaced.
    for name, method in {"__init__": init, "forward": named(layer.forward)}.items():
        setattr(layer, name, method)
    return _with_options(layer) if "extras" in inspect.signature(layer.forward).parameters else layer


def _with_options(layer: L) -> L:
    """Let a layer be made with more than torch's has: an activation, and what its class names in ``options``."""
    make: Callable[..., None] = layer.__init__
    describe: Callable[[Any], str] = layer.extra_repr
    options: dict[str, Any] = {"activation": None, **getattr(layer, "options", {})}
    signature = inspect.signature(make)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in options.items()]

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in options if name in kwargs}
        check_activation(type(self).__name__, given.get("activation"))
        check_cast(type(self).__name__, given.get("cast", "after"))
        # Past nn.Module's own bookkeeping, which is not there yet; the initial weight may depend on them.
        vars(self).update({name: value for name, value in given.items() if value != options[name]})
        make(self, *args, **kwargs)

    def extra_repr(self: Any) -> str:
        said = [f"{name}={getattr(self, name)!r}" for name in options if getattr(self, name) != options[name]]
        return ", ".join([describe(self), *said])

    vars(init)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *more])
    for name, value in {"__init__": init, "extra_repr": extra_repr, **options}.items():
        setattr(layer, name, value)
    return layer


def with_activation(layer: Any, extras: Extras) -> Extras:
    """The extras of one call, with the layer's own activation."""
    return extras if layer.activation is None else {"activation": layer.activation, **extras}


def named(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method of a layer say in every error which layer it is."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except NormkitError as error:
            layer: Any = args[0]
            raise type(error)(f"{error}\n    in {layer._get_name()}({layer.extra_repr()})") from error

    return call


def _check_arguments(layer: str, arguments: Mapping[str, Any]) -> None:
    for name in COUNTS:
        value = arguments.get(name)
        for count in value if isinstance(value, list | tuple) else [value]:
            if count is not None and whole_number(f"{name} of {layer}", count) < 1:
                raise ArgumentError(f"{name} of {layer} must be at least 1, got {value}: give the input's")
    eps = arguments.get("eps")
    if eps is not None and not eps >= 0:
        raise ArgumentError(f"eps of {layer} must not be negative, got {eps}: use 1e-5")
    groups, channels = arguments.get("num_groups"), arguments.get("num_channels")
    if groups and channels and channels % groups:
        near = min((d for d in range(1, channels + 1) if channels % d == 0), key=lambda d: abs(d - groups))
        raise ArgumentError(
            f"num_groups of {layer} must divide num_channels, got {groups} groups for {channels} channels: "
            f"the nearest that does is {near}"
        )
    shape = arguments.get("normalized_shape")
    if shape is not None and any(size < 1 for size in _sizes(shape)):
        raise ArgumentError(f"sizes of {layer} must be at least 1, got {shape}: give the input's last sizes")


def _sizes(shape: Any) -> tuple[int, ...]:
    """The sizes of a shape as numbers, whether it is one, a sequence or an array."""
    try:
        return (operator.index(shape),)
    except TypeError:  # more than one
        return tuple(map(int, shape))


def check_rank(input: Tensor, layouts: Mapping[int, str]) -> None:
    """The input has one of the allowed numbers of dimensions."""
    if input.dim() not in layouts:
        check_dense("the layer", input)
        allowed = " or ".join(layouts.values())
        raise ShapeError(
            f"the input must be {allowed}, got shape {tuple(input.shape)}: "
            "reshape it, or use the layer for its number of dimensions"
        )


def has_channels(input: Tensor, dim: int, expected: int) -> bool:
    """Whether the input has as many channels as the layer was made for; a nested tensor is refused."""
    try:
        fits = input.shape[dim] == expected
    except RuntimeError:  # a nested tensor has no sizes; asked only here, since each call pays for what comes before
        fits = False
    if not fits:
        check_dense("the layer", input)
    return fits


def check_channels(input: Tensor, dim: int, expected: int) -> None:
    """The input has as many channels as the layer was made for."""
    if not has_channels(input, dim, expected):
        raise ShapeError(
            f"dimension {dim} of the input must be the layer's {expected} channels, "
            f"got {input.shape[dim]} in shape {tuple(input.shape)}: make the layer for that many, "
            "or permute the input"
        )
