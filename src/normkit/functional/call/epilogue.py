"""What is multiplied and added after the norm, and weights that vary over more than the features.

``y = activation(norm(x) * f(gate) + skip)``. Kernels take weight and bias of few values, and a gate and a skip of x's
shape; what is given in another form is brought into one of these here, by differentiable operations on few values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.errors import ArgumentError, DtypeError, ShapeError
from normkit.functional.call.checks import check_parameter
from normkit.functional.call.fusions import check_activation
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import GATES
from normkit.kernels.traced.export import broadcastable


class Epilogue(NamedTuple):
    """Weight and bias, and the last arguments of a call, in the order of `Arguments`."""

    weight: Tensor | None
    bias: Tensor | None
    gate: Tensor | None = None
    skip: Tensor | None = None
    gate_activation: str | None = None
    gate_first: bool = False
    zero_centered: bool = False
    cast_first: bool = False

    def checked(self, name: str, x: Tensor, shape: tuple[int, ...], residual: Tensor | None) -> Epilogue:
        """The same, with the names of functions as kernels know them.

        Raises:
            ShapeError: a shape that does not broadcast to the input's.
            DtypeError: a dtype that the input's does not allow.
            ArgumentError: another device, an unknown function, a gate before the norm with a residual.
        """
        for what, t in (("weight", self.weight), ("bias", self.bias)):
            if t is not None and t.dim() == x.dim() and t.shape != shape:
                _check_broadcast(name, what, t, x, shape)
            else:
                check_parameter(name, what, t, shape, x)
        for what, t in (("gate", self.gate), ("skip", self.skip)):
            if t is not None:
                _check_broadcast(name, what, t, x, None)
        gate_activation = check_activation(name, self.gate_activation)
        if self.gate is None and (self.gate_first or gate_activation != "none"):
            raise ArgumentError(f"gate_first and gate_activation of {name} need a gate, got None: give gate=")
        if self.gate_first and residual is not None:
            raise ArgumentError(
                f"{name} multiplies its input with a gate or adds a residual to it, got both: add the residual before"
            )
        return self._replace(gate_activation=gate_activation)

    def is_plain(self, shape: tuple[int, ...]) -> bool:
        """Whether weight and bias vary over the features, and nothing comes after the norm."""
        if self.gate is not None or self.skip is not None:
            return False
        return all(t is None or t.shape == shape for t in (self.weight, self.bias))

    def merged(self, x: Tensor, features: Sequence[int], mask: Tensor | None) -> Epilogue:
        """A small gate in weight and bias, a small skip in the bias; weights of x's size as gate and skip.

        Padding is set to 0 before, because products with it have a gradient: 0 times NaN would be NaN.
        """
        e = self
        if mask is not None:
            weight, bias, gate, skip = (
                t if t is None or t.dim() != x.dim() else _valid(t, mask) for t in (e.weight, e.bias, e.gate, e.skip)
            )
            e = e._replace(weight=weight, bias=bias, gate=gate, skip=skip)
        if e.gate_first and e.gate is not None:
            e = e._replace(gate=_whole(e.gate, x))
        elif e.gate is not None and e.gate.numel() < x.numel():
            factor = GATES[e.gate_activation or "none"](_wide(e.gate, x))
            weight = factor if e.weight is None else e._weight(x, features) * factor
            bias = None if e.bias is None else e._bias(x, features) * factor
            e = e._replace(weight=weight, bias=bias, gate=None, gate_activation="none", zero_centered=False)
        if e.gate is None and e.skip is not None and e.skip.numel() < x.numel():
            added = _wide(e.skip, x)
            e = e._replace(bias=added if e.bias is None else e._bias(x, features) + added, skip=None)
        e = e._as_gate_and_skip(x, features)
        gate, skip = (None if t is None else _whole(t, x) for t in (e.gate, e.skip))
        return e._alike(x, features)._replace(gate=gate, skip=skip)

    def _weight(self, x: Tensor, features: Sequence[int]) -> Tensor:
        """The weight in the arithmetic dtype, with the dimensions of x, 1 added if it is stored around 0."""
        assert self.weight is not None
        weight = _wide(broadcastable(self.weight, x, features), x)
        return weight + 1 if self.zero_centered else weight

    def _bias(self, x: Tensor, features: Sequence[int]) -> Tensor:
        assert self.bias is not None
        return _wide(broadcastable(self.bias, x, features), x)

    def _as_gate_and_skip(self, x: Tensor, features: Sequence[int]) -> Epilogue:
        """A weight of x's size becomes the gate, and the bias with it, or one of x's size, the skip."""
        if self.gate_first or not (_is_whole(self.weight, x) or _is_whole(self.bias, x)):
            return self
        gate, function, bias, zero_centered = self.gate, self.gate_activation, self.bias, self.zero_centered
        if bias is not None:
            bias = broadcastable(bias, x, features)
            if gate is not None:
                bias = bias * GATES[function or "none"](_wide(gate, x))
        weight = self.weight
        if _is_whole(weight, x):
            if gate is None:
                gate, function = weight, "plus_one" if zero_centered else "none"
            else:
                gate = self._weight(x, features) * GATES[function or "none"](_wide(gate, x))
                function = "none"
            weight, zero_centered = None, False
        skip = self.skip if bias is None else bias if self.skip is None else bias + self.skip
        return Epilogue(weight, None, gate, skip, function, False, zero_centered, self.cast_first)

    def _alike(self, x: Tensor, features: Sequence[int]) -> Epilogue:
        """Weight and bias varying over the same dimensions, if they vary over others than the features."""
        both = [t for t in (self.weight, self.bias) if t is not None]
        if all(t.dim() < x.dim() for t in both) or not both:
            return self
        weight, bias = (None if t is None else broadcastable(t, x, features) for t in (self.weight, self.bias))
        if x.dim() == 1:
            weight, bias = (None if t is None else t.expand(x.shape) for t in (weight, bias))
        elif weight is not None and bias is not None and weight.shape != bias.shape:
            weight, bias = torch.broadcast_tensors(weight, bias)
        return self._replace(weight=weight, bias=bias)


def _valid(t: Tensor, mask: Tensor) -> Tensor:
    """0 at what is padding alone: where t is shared with valid places it is kept."""
    shared = [dim for dim, size in enumerate(t.shape) if size == 1 and mask.shape[dim] > 1]
    valid = mask.any(shared, keepdim=True) if shared else mask
    return torch.where(valid, t, 0)


def _wide(t: Tensor, x: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, arithmetic_dtype(x.dtype)))


def _is_whole(t: Tensor | None, x: Tensor) -> bool:
    """Whether a weight or bias has a value for each element of x."""
    return t is not None and t.dim() == x.dim() > 1 and t.numel() == x.numel()


def _whole(t: Tensor, x: Tensor) -> Tensor:
    """A tensor of x's shape and dtype."""
    return t.to(x.dtype).expand(x.shape)


def _check_broadcast(name: str, what: str, t: Tensor, x: Tensor, shape: tuple[int, ...] | None) -> None:
    if t.dim() != x.dim() or any(
        size != 1 and size != own  # a tuple is not compared with sizes that a compiler knows by name
        for size, own in zip(t.shape, x.shape, strict=True)
    ):
        allowed = "" if shape is None else f"have shape {shape} or "
        raise ShapeError(
            f"{what} of {name} must {allowed}broadcast to the input's shape {tuple(x.shape)} with as many dimensions, "
            f"got {tuple(t.shape)}: give each dimension size 1 or the input's, as in (N, 1, C)"
        )
    small = t.numel() < x.numel()
    if not t.is_floating_point() or (t.dtype is not x.dtype and not (small and t.element_size() <= 4)):
        remedy = "" if not small else ", or another of at most 4 bytes"
        raise DtypeError(
            f"{what} of {name} must have the input's dtype {x.dtype}{remedy}, got {t.dtype}: convert one of the two"
        )
    if t.device != x.device:
        raise ArgumentError(f"{what} of {name} is on {t.device}, the input on {x.device}: move one of the two")
