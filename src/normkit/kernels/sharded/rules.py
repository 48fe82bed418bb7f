"""``normkit::norm`` and ``normkit::norm_backward`` on distributed tensors.

Each process calls the same operator with its part. Where the processes share a cell, they merge the moments of their
parts by Chan's formula (forward), and add up the two sums of the gradient (backward); x itself is never sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import Partial, Replicate

from normkit.kernels.backend import Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import GATES, Arguments, Gradients, counts_of, vjp
from normkit.kernels.layout import dense_like
from normkit.kernels.sharded.sharding import Sharding, sharding_of
from normkit.merging import pooled_moments
from normkit.pattern import Level

Operator = Callable[..., Any]


class Part(NamedTuple):
    """The part of a call that one process computes."""

    sharding: Sharding
    arguments: Arguments
    levels: tuple[Level, ...]

    def sizes(self, *, kept: bool = False) -> list[int]:
        """The sizes of the axes; with `kept`, 1 for the reduced ones."""
        return [1 if kept and level.reduced else level.size for level in self.levels]

    def cells(self) -> int:
        return math.prod(level.size for level in self.levels if not level.reduced)

    def parameter_shape(self, own: Tensor | None) -> list[int]:
        """The sizes of this part of a weight or bias; those of the features where there is none."""
        if own is not None:
            return list(own.shape)
        return [math.prod(level.size for level in self.levels if level.dim == dim) for dim in self.sharding.features]


def part_of(a: Arguments, dy: Tensor | None = None) -> Part:
    """The part of a call that this process computes; dy may also say how the call is divided."""
    sharding = sharding_of(a.pattern, a.x, a.residual, a.gate, a.skip, dy)
    whole = {name: getattr(a, name) for name in ("x", "residual", "gate", "skip", "mask")}
    parts: dict[str, Any] = {name: sharding.own(name, t) for name, t in whole.items()}
    parts |= {name: _parameter(sharding, name, getattr(a, name)) for name in ("weight", "bias")}
    parts |= {name: _statistic(sharding, a, name, getattr(a, name)) for name in ("mean", "var")}
    levels = sharding.part(parts["x"].shape)
    if parts["x"].numel():
        parts["pattern"] = sharding.part_pattern(levels)
    return Part(sharding, a._replace(**parts), levels)


def _statistic(sharding: Sharding, a: Arguments, what: str, t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    if t.numel() == 0 and 0 not in sharding.statistics():  # a mean that is not subtracted
        return a.x.to_local().new_empty(0, dtype=t.dtype)  # type: ignore[attr-defined, no-any-return]
    return sharding.statistic(what, t)


def _parameter(sharding: Sharding, what: str, t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    dims, sizes = _dims_of(sharding, t)
    own = sharding.own(what, t if list(t.shape) == sizes else t.reshape(sizes), dims)
    return None if own is None else own.contiguous()


def _dims_of(sharding: Sharding, parameter: Tensor | None) -> tuple[list[int], list[int]]:
    """The dimensions of x that a weight or a bias has, and its sizes; the features where there is none."""
    dims = sharding.features
    sizes = [sharding.shape[dim] for dim in dims]
    if parameter is None or parameter.dim() != len(sharding.shape) or list(parameter.shape) == sizes:
        return dims, sizes
    return list(range(len(sharding.shape))), list(parameter.shape)


def norm(cls: type, op: Operator, types: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor | None, ...]:
    """The rule of ``normkit::norm``. Mean and deviation have the kept dimensions of x instead of one."""
    with torch.no_grad():
        a = Arguments(*args, **kwargs)
        part = part_of(a)
        own, sharding = part.arguments, part.sharding
        mean = std = None
        if a.var is None and sharding.pooled:
            mean, var = _merged_moments(op, part)
            std, own = var.sqrt(), own._replace(mean=mean, var=var)
        if own.x.numel():
            y, total, *moments = op(*own)
            mean, std = (mean, std) if std is not None else moments
        else:
            y, total = (None if t is None else torch.empty_like(own.x) for t in (own.x, own.residual))
            if a.var is None and std is None:
                mean = std = own.x.new_ones(part.cells())
        out = (sharding.whole_like(a.x, y), None if total is None else sharding.whole_like(a.x, total))
        return (*out, None, None) if std is None else (*out, *_whole_moments(part, mean, std))


def _whole_moments(part: Part, mean: Tensor | None, std: Tensor) -> list[Tensor]:
    a, sharding = part.arguments, part.sharding
    dtype = arithmetic_dtype(a.x.dtype)
    whole = sharding.whole_statistic(std.to(dtype), part.levels)
    if mean is None or not a.center:
        return [sharding.whole(std.new_empty(0, dtype=dtype), [Replicate()] * sharding.mesh.ndim, [0]), whole]
    return [sharding.whole_statistic(mean.to(dtype), part.levels), whole]


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over processes: float64 if the device has it, so that counts above 2^24 are exact."""
    return torch.float64 if x.device.type in ("cpu", "cuda") else torch.float32


def _counts(part: Part) -> Tensor:
    """The number of valid elements of each cell in this part."""
    a = part.arguments
    if a.mask is not None:
        return counts_of(a.mask, a.x.shape, part.levels).to(_wide(a.x))
    values = math.prod(level.size for level in part.levels if level.reduced)
    return a.x.new_full((part.cells(),), values, dtype=_wide(a.x))


def _merged_moments(op: Operator, part: Part) -> tuple[Tensor, Tensor]:
    """The mean and variance of each cell of this part, over all processes that share it."""
    a, sharding = part.arguments, part.sharding
    mean = var = a.x.new_zeros(part.cells(), dtype=_wide(a.x))
    if a.x.numel():
        _, _, own_mean, own_std = op(*_without_affine(a))
        var = own_std.to(var.dtype).square()
        mean = own_mean.to(mean.dtype) if a.center else mean
    count = _counts(part)
    for mesh_dim in sharding.pooled if part.cells() else ():
        counts, means, variances = sharding.gathered(torch.stack([count, mean, var]), mesh_dim).unbind(1)
        count, mean, var = pooled_moments(counts, means, variances)
    return mean.to(arithmetic_dtype(a.x.dtype)), torch.where(count > 0, var, 1)


def _without_affine(a: Arguments) -> Arguments:
    """A call with the same moments, but without what comes after them."""
    if not a.gate_first:
        a = a._replace(gate=None, gate_activation="none")
    return a._replace(weight=None, bias=None, activation="none", skip=None, zero_centered=False, cast_first=False)


def norm_backward(
    cls: type, op: Operator, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """The rule of ``normkit::norm_backward``; gradients of parameters are `Partial` if processes have other places."""
    with torch.no_grad():
        dy, *flat = args
        size = len(Arguments._fields)
        a, fixed, want = Arguments(*flat[:size]), flat[size], Want(*flat[size + 1 :])
        part = part_of(a, dy)
        own, sharding = part.arguments, part.sharding
        upstream = sharding.own("dy", dy)
        assert upstream is not None
        if sharding.pooled and not fixed:
            grads = _merged_gradients(op, upstream, part, want)
        else:
            grads = _own_gradients(op, upstream, own, fixed, want, part)
        parameters = [
            _whole_parameter(part, t, own_like, whole_like) if wanted and t is not None else None
            for wanted, t, own_like, whole_like in (
                (want.weight, grads.weight, own.weight, a.weight),
                (
                    want.bias,
                    grads.bias,
                    own.weight if own.bias is None else own.bias,
                    a.weight if a.bias is None else a.bias,
                ),
            )
        ]
        dx, dgate, dskip = (
            sharding.whole_like(a.x, t) if wanted and t is not None else None
            for wanted, t in ((want.x, grads.x), (want.gate, grads.gate), (want.skip, grads.skip))
        )
        return dx, *parameters, dgate, dskip


def _own_gradients(op: Operator, dy: Tensor, a: Arguments, fixed: bool, want: Want, part: Part) -> Gradients:
    """The gradients of a part; all 0 for an empty one."""
    if a.x.numel():
        return Gradients(*op(dy, *a, fixed, *want))
    dtype = arithmetic_dtype(a.x.dtype)
    features = math.prod(level.size for level in part.levels if level.feature)
    empty = torch.empty_like(a.x)
    weight, bias = (a.x.new_zeros(features if t is None else t.numel(), dtype=dtype) for t in (a.weight, a.bias))
    return Gradients(empty, weight, weight if a.bias is None else bias, empty, empty)


def _whole_parameter(part: Part, grad: Tensor, own: Tensor | None, whole: Tensor | None) -> Tensor:
    """The gradient of a parameter: the sum over all processes that have other places of x."""
    sharding = part.sharding
    dims, sizes = _dims_of(sharding, whole)
    # A dimension of size 1 is a sum over that of x.
    spread = [dim if size > 1 or sharding.shape[dim] == 1 else -1 for dim, size in zip(dims, sizes, strict=True)]
    return sharding.whole(grad.reshape(part.parameter_shape(own)), sharding.along(spread, Partial), sizes)


def _merged_gradients(op: Operator, dy: Tensor, part: Part, want: Want) -> Gradients:
    """Gradients where processes share cells.

    With ``v = rstd * g``, which is the gradient of the normalized s if the moments are constants, and ``c = s - mean``:
    ``ds = v - mean(v) - c * mean(v * c) / (var + eps)``. Both means are over the whole cell.
    """
    a, sharding = part.arguments, part.sharding
    assert a.var is not None
    # Without rounding to half precision between the two passes.
    wide = arithmetic_dtype(a.x.dtype)
    x, gate, s = a.x.to(wide), None if a.gate is None else a.gate.to(wide), a.x.to(wide)
    if a.gate_first:
        assert gate is not None
        s = s * GATES[a.gate_activation](gate)
    mean = a.mean if a.center and a.mean is not None else torch.zeros_like(a.var)
    var = a.var.to(_wide(x)).square()
    given = a._replace(x=s, mean=mean, var=var, residual=None, skip=None if a.skip is None else a.skip.to(wide))
    given = (
        given._replace(gate=None, gate_first=False, gate_activation="none")
        if a.gate_first
        else given._replace(gate=gate)
    )
    if a.gate_first:  # its gradient follows from that of s
        want = want._replace(x=want.x or want.gate, gate=False)
    grads = _own_gradients(op, dy.to(wide), given, True, want, part)
    if grads.x is None:
        return grads
    kept, sizes = part.sizes(kept=True), part.sizes()
    reduced = [i for i, level in enumerate(part.levels) if level.reduced]
    valid = None if a.mask is None else a.mask.expand(x.shape)
    v, centred = grads.x.reshape(sizes), s.reshape(sizes) - mean.reshape(kept)
    if valid is not None:
        centred = torch.where(valid.reshape(sizes), centred, 0)
    sums = [t.sum(reduced, keepdim=True, dtype=var.dtype) for t in (v, v * centred)]
    total, along, count = sharding.summed(torch.stack([*sums, _counts(part).reshape(kept)])).unbind(0)
    count = count.clamp(min=1)
    ds = v - centred * (along / count / (var.reshape(kept) + a.eps)).to(wide)
    if a.center:
        ds = ds - (total / count).to(wide)
    ds = ds.reshape(x.shape)
    if a.gate_first:
        ds, dgate = vjp(lambda x, gate: [x * GATES[a.gate_activation](gate)], [x, gate], [ds])
        grads = grads._replace(gate=_padded(dgate, valid))
    ds = _padded(ds, valid)
    ds = ds if a.residual is None else ds + a.residual
    x_like = (None if t is None else dense_like(a.x, t.to(a.x.dtype)) for t in (ds, grads.gate, grads.skip))
    return Gradients(next(x_like), grads.weight, grads.bias, *x_like)


def _padded(t: Tensor, valid: Tensor | None) -> Tensor:
    return t if valid is None else torch.where(valid, t, 0)
