"""``normkit::quantize`` and ``normkit::weight_norm`` on distributed tensors: what they reduce is gathered first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import Placement, Replicate, Shard

from normkit.kernels.sharded.sharding import Sharding, sharding_of
from normkit.pattern import all_but

Operator = Any


def _gathered(pattern: str, x: Tensor) -> Sharding:
    """The placement of a call that keeps the divided dimensions of x that its region keeps."""
    return sharding_of(pattern, x).without_pooled()


def quantize(
    cls: type, op: Operator, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """The rule of ``normkit::quantize``: each process has whole rows, or all of them for one scale of all."""
    # The dispatcher leaves trailing arguments out where they are the defaults.
    args = (*args, *[argument.default_value for argument in op._schema.arguments[len(args) :]])
    x, weight, bias, scale, eps, center, dtype, scaling, size, residual, gate, *rest = args
    with torch.no_grad():
        sharding = _gathered("... [c]", x)
        everywhere: list[Placement] = [Replicate()] * sharding.mesh.ndim
        rows = everywhere if scaling == "nvfp4" and scale is None else sharding.placements

        def placed(placements: Sequence[Placement], **tensors: Tensor | None) -> list[Tensor | None]:
            return [None if t is None else sharding.placed(what, t, placements) for what, t in tensors.items()]

        (own,) = placed(rows, x=x)
        flat = placed(everywhere, weight=weight, bias=bias, scale=scale)
        alike = placed(rows, residual=residual, gate=gate)
        y, scales, of_all, total = op(own, *flat, eps, center, dtype, scaling, size, *alike, *rest, **kwargs)

        def whole(t: Tensor | None, placements: Sequence[Placement], *last: int) -> Tensor | None:
            return None if t is None else sharding.whole(t, placements, last)

        shape = x.shape[:-1]
        return (
            whole(y, rows, *shape, y.shape[-1]),
            None if scales is None else whole(scales, rows, *shape, scales.shape[-1]),
            whole(of_all, everywhere),
            whole(total, rows, *x.shape),
        )


def weight_norm(
    cls: type, op: Operator, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The rule of ``normkit::weight_norm``: each process has whole directions."""
    v, g, dim = args
    with torch.no_grad():
        sharding = _gathered(all_but(dim), v)
        w, length = op(sharding.placed("v", v, sharding.placements), *_lengths(sharding, dim, g=g), dim)
        return sharding.whole_like(v, w), sharding.whole(length, _along(sharding, dim, 0), [g.numel()])


def weight_norm_backward(
    cls: type, op: Operator, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The rule of ``normkit::weight_norm_backward``."""
    dw, v, g, length, dim = args
    with torch.no_grad():
        sharding = _gathered(all_but(dim), v)
        own = [sharding.placed(what, t, sharding.placements) for what, t in (("dw", dw), ("v", v))]
        dv, dg = op(*own, *_lengths(sharding, dim, g=g, length=length), dim)
        return sharding.whole_like(v, dv), sharding.whole(dg, _along(sharding, dim, _place(g, dim)), g.shape)


def _place(t: Tensor, dim: int | None) -> int:
    """The dimension of g or of a length that is the weight's `dim`."""
    return 0 if dim is None or t.dim() <= 1 else dim


def _along(sharding: Sharding, dim: int | None, place: int) -> list[Placement]:
    """The placements of a tensor of which the dimension `place` is the weight's `dim`."""
    return [Shard(place) if isinstance(p, Shard) and p.dim == dim else Replicate() for p in sharding.placements]


def _lengths(sharding: Sharding, dim: int | None, **lengths: Tensor) -> list[Tensor]:
    return [sharding.placed(what, t, _along(sharding, dim, _place(t, dim))) for what, t in lengths.items()]
