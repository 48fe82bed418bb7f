"""What every layer asks of its input, and how it names itself in errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from normkit.errors import NormkitError, ShapeError
from normkit.functional.call.checks import check_dense

P = ParamSpec("P")
T = TypeVar("T")


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
