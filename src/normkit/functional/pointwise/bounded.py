"""What the bounded functions share: checks, padding, weight and bias over the features."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normkit.errors import DtypeError, ShapeError
from normkit.functional.call.checks import check_dimensions, check_parameter
from normkit.functional.call.spec import Fused, Spec, checked
from normkit.functional.extras import Output
from normkit.functional.layer import PATTERN_2D, check_last, last_dims_pattern
from normkit.functional.pointwise.blocks import Curve, in_blocks, in_one, takes_blocks


def _check(name: str, input: Tensor, shape: Any) -> tuple[int, ...]:
    """The shape of weight and bias: of the last dimensions, or of dimension 1 where no shape is given."""
    if shape is not None:
        return check_last(name, input, shape)
    check_dimensions(name, input, 2, "(N, C, ...)")
    return (input.shape[1],)


def spec_of(name: str) -> Spec:
    """The facts of one of the methods."""
    return Spec(name, _check)


def bounded(
    spec: Spec,
    curve: Curve,
    input: Tensor,
    alpha: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_last: bool,
    fused: Fused,
) -> Output:
    """``curve(alpha * x + shift) * weight + bias``."""
    name = spec.name
    shape: tuple[int, ...] | None = None
    if channels_last and isinstance(input, Tensor) and not input.is_nested:
        given = next((p for p in (weight, bias) if p is not None), None)
        shape = tuple(input.shape[-1:] if given is None else given.shape)
        if not shape:
            raise ShapeError(
                f"{name} needs at least 1 dimension of features, got shape {tuple(input.shape)} with parameters of "
                f"shape {shape}: add the missing one"
            )
    pattern = PATTERN_2D if shape is None else last_dims_pattern(len(shape))
    call = checked(spec, pattern, input, weight, bias, 0.0, fused, shape)
    _check_scalar(name, "alpha", alpha, input)
    if shift is not None:
        _check_scalar(name, "shift", shift, input)
    total = call.total()
    if shape is None:
        features = [-1, *[1] * (input.dim() - 2)]
        weight, bias = (None if p is None else p.view(features) for p in (weight, bias))
    if call.arguments.mask is None and takes_blocks(total, weight, bias):
        return call.finished(in_blocks(total, alpha, shift, weight, bias, curve), total)
    return call.rounded(in_one(call.valid(total), alpha, shift, weight, bias, curve), total)


def _check_scalar(name: str, what: str, scalar: Tensor, input: Tensor) -> None:
    if not isinstance(scalar, Tensor):
        raise DtypeError(f"{what} of {name} must be a tensor, got {type(scalar).__name__}: use torch.tensor([0.5])")
    check_parameter(name, what, scalar, () if scalar.dim() == 0 else (1,), input)
