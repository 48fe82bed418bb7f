"""The operators in plain torch operations, as ``torch.compile`` gets them for a GPU: Inductor fuses these with others.

Formulas and gradients are those of the kernels, in their arithmetic: float64 for float64, else float32. The moments
take one pass over x, and backward one pass for all sums and one for dx.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from normkit.kernels import formula
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments, Result, View

_aten = torch.ops.aten
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda dy, z: dy,
    "relu": lambda dy, z: _aten.threshold_backward(dy, z, 0),
    "leaky_relu": lambda dy, z: _aten.leaky_relu_backward(dy, z, 0.01, False),
    "silu": lambda dy, z: _aten.silu_backward(dy, z),
    "gelu": lambda dy, z: _aten.gelu_backward(dy, z),
    "gelu_tanh": lambda dy, z: _aten.gelu_backward(dy, z, approximate="tanh"),
    "sigmoid": lambda dy, z: _aten.sigmoid_backward(dy, torch.sigmoid(z)),
    "tanh": lambda dy, z: _aten.tanh_backward(dy, torch.tanh(z)),
}
"""For each activation, the gradient of its argument z."""


class _View(View):
    """The same view, in the dtype of the kernels, with the moments in one pass."""

    dtype_for = staticmethod(lambda x: arithmetic_dtype(x.dtype))

    def moments(self) -> tuple[Tensor, Tensor]:
        if self.a.center and self.valid is None and self.reduced:
            # Inductor takes Welford's formula for it, and merges parts by Chan's.
            var, mean = torch.var_mean(self.values, self.reduced, correction=0, keepdim=True)
            return mean, var
        mean = self.average(self.values) if self.a.center else self.values.new_zeros(())
        var = self.average((self.values - mean).square())
        return mean, var if self.valid is None else torch.where(self.counts > 0, var, 1)

    def saved(self, fixed: bool) -> tuple[Tensor, Tensor]:
        """Mean and ``1 / sqrt(var + eps)`` from the arguments of ``norm_backward``."""
        a, shape = self.a, self.kept
        assert a.mean is not None
        assert a.var is not None
        mean = a.mean.to(self.dtype).reshape(shape) if a.center else a.var.new_zeros(())
        scale = a.var.to(self.dtype).reshape(shape)
        return mean, ((scale if fixed else scale.square()) + a.eps).rsqrt()

    def standardized(self, mean: Tensor, var: Tensor) -> Tensor:
        return (self.values - mean) * (var + self.a.eps).rsqrt()

    def weighted(self, t: Tensor) -> Tensor:
        return t if self.a.weight is None else t * self.over_levels(self.a.weight)

    @property
    def positions(self) -> list[int]:
        """The axes of a region along which weight and bias do not vary."""
        return [i for i in self.reduced if not self.levels[i].feature]

    def mean_of_sums(self, sums: Tensor) -> Tensor:
        """The average over each region, from its sums over positions."""
        features = [i for i in self.reduced if self.levels[i].feature]
        sums = sums.sum(features, keepdim=True) if features else sums
        if self.valid is None:
            return sums / math.prod([self.sizes[i] for i in self.reduced])
        return sums / self.counts.clamp(min=1).to(sums.dtype)


def norm(a: Arguments) -> Result:
    """``normkit::norm``."""
    return formula.norm(a, _View)


def norm_backward(dy: Tensor, a: Arguments, fixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``normkit::norm_backward``."""
    view = _View(a, a.x)
    mean, rstd = view.saved(fixed)
    centred = view.values - mean
    upstream = view.split(dy)
    if a.activation != "none":
        upstream = _SLOPES[a.activation](upstream, view.affine(centred * rstd))
    along, total, inside = (_by_positions if view.positions else _by_rows)(view, upstream, centred, rstd, fixed)
    dx = view.like_x(inside)
    return dx if a.residual is None else dx + a.residual, view.over_features(along), view.over_features(total)


def _by_positions(
    view: _View, upstream: Tensor, centred: Tensor, rstd: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums for weight and bias, and dx. Sums over positions serve all three, so dy and x are read once for them."""
    total = upstream.sum(view.positions, keepdim=True)
    along = (upstream * centred).sum(view.positions, keepdim=True) * rstd
    dx = upstream * view.weighted(rstd)
    if not fixed:
        dx = dx - centred * (view.mean_of_sums(view.weighted(along)) * rstd * rstd)
        dx = dx - view.mean_of_sums(view.weighted(total)) * rstd if view.a.center else dx
    return along, total, dx


def _by_rows(
    view: _View, upstream: Tensor, centred: Tensor, rstd: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without sums in common, and without a product in common, which Inductor would keep in memory."""
    g, x_hat = view.weighted(upstream), centred * rstd
    inside = g
    if not fixed:
        inside = inside - x_hat * view.mean_of_sums(g * x_hat)
        inside = inside - view.mean_of_sums(g) if view.a.center else inside
    return upstream * x_hat, upstream, inside * rstd


def weight_norm(v: Tensor, g: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """``normkit::weight_norm``."""
    wide, kept, axes = _rows(v, dim)
    length = wide.square().sum(axes, keepdim=True).sqrt()
    length = torch.where(length > 0, length, 1)
    return (wide * (g.to(wide.dtype).reshape(kept) / length)).to(v.dtype), length.reshape(-1)


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """``normkit::weight_norm_backward``: ``dg = sum(dw * v) / length``, ``dv = g / length (dw - v * dg / length)``."""
    wide, kept, axes = _rows(v, dim)
    length, dw = length.reshape(kept), dw.to(wide.dtype)
    dg = (dw * wide).sum(axes, keepdim=True) / length
    dv = (dw - wide * (dg / length)) * (g.to(wide.dtype).reshape(kept) / length)
    return dv.to(v.dtype), dg.reshape(g.shape).to(g.dtype)


def _rows(v: Tensor, dim: int | None) -> tuple[Tensor, list[int], list[int]]:
    """v in the dtype of its arithmetic, the shape of its lengths, and the dimensions that each is taken over."""
    kept = [size if axis == dim else 1 for axis, size in enumerate(v.shape)]
    return v.to(arithmetic_dtype(v.dtype)), kept, [axis for axis in range(v.ndim) if axis != dim]
