"""The checks that every functional shares: rule, value received, remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.errors import ArgumentError, DtypeError, ShapeError


def check_call(name: str, x: Tensor, eps: float | None) -> None:
    """The input is real floating point, and eps is a number; a negative one is subtracted, as torch has it."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} needs a tensor as input, got {type(x).__name__}")
    if not x.is_floating_point() or x.element_size() < 2:
        raise DtypeError(
            f"{name} is defined for float64, float32, bfloat16 and float16, got {x.dtype}: convert the input first"
        )
    check_dense(name, x)
    if eps is None or eps != eps:
        raise ArgumentError(f"eps must be a number, got {eps} in {name}: use 1e-5")


def check_dense(name: str, x: Tensor) -> None:
    """The input is no nested and no sparse tensor."""
    if x.is_nested:
        raise DtypeError(
            f"{name} needs a dense tensor as input, got a nested one: fill it up with "
            "torch.nested.to_padded_tensor(x, 0.0) and give mask= or lengths="
        )
    if x.layout is not torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise DtypeError(f"{name} needs a dense tensor as input, got a {kind} one: convert it, as with x.to_dense()")


def check_dimensions(name: str, x: Tensor, least: int, layout: str) -> None:
    """The input has at least so many dimensions."""
    if x.dim() < least:
        raise ShapeError(
            f"{name} needs at least {least} dimensions, {layout}; got shape {tuple(x.shape)}: add the missing one"
        )


def check_channels(
    name: str,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Running statistics and parameters have one value for each channel of the input."""
    shape = (x.shape[1],)
    check_parameter(name, "running_mean", running_mean, shape, x)
    check_parameter(name, "running_var", running_var, shape, x)
    check_parameter(name, "weight", weight, shape, x)
    check_parameter(name, "bias", bias, shape, x)


def check_parameter(name: str, what: str, t: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """A weight, a bias or a statistic fits the input in shape, dtype and device."""
    # Whether both are on the CPU is asked first because a device is slower to compare than all the rest.
    if t is None or (t.dtype is x.dtype and t.shape == shape and ((t.is_cpu and x.is_cpu) or t.device == x.device)):
        return
    if tuple(t.shape) != shape:
        raise ShapeError(
            f"{what} of {name} must have shape {shape} for an input of shape {tuple(x.shape)}, "
            f"got {tuple(t.shape)}: make the layer for this number of features"
        )
    if not t.is_floating_point() or (t.element_size() > x.element_size() and t.element_size() > 4):
        raise DtypeError(
            f"{what} of {name} must have the input's dtype {x.dtype}, or float32 beside a half-precision input, "
            f"got {t.dtype}: convert one of the two"
        )
    if t.device != x.device:
        raise ArgumentError(
            f"{what} of {name} is on {t.device}, the input on {x.device}: move the layer with .to({str(x.device)!r})"
        )
