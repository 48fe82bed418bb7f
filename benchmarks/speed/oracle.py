"""The error of y against the definition in float64, on a part of the tensor that holds whole regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.contestants import Contestant, groups
from benchmarks.speed.workloads import Cell

BOUND = 4.0
ENOUGH = 1 << 18  # elements compared


@dataclass(frozen=True)
class Definition:
    """Where a method takes its moments.

    Attributes:
        dims: that a region spans, of the view.
        view: of the input.
        kept: dimension that is cut to compare a part.
        given: whether the moments are 0 and 1 and not those of the input.
        per_length: whether the weight is the length of a region, and not a factor of each element.
    """

    dims: Callable[[Tensor], tuple[int, ...]]
    view: Callable[[Tensor], Tensor] = lambda x: x
    kept: int = 0
    given: bool = False
    per_length: bool = False


def _over_batch(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _over_sample(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))


DEFINITIONS = {
    "batch_norm": Definition(_over_batch, kept=1),
    "batch_norm_eval": Definition(_over_batch, kept=1, given=True),
    "instance_norm": Definition(lambda x: (2, 3)),
    "group_norm": Definition(lambda x: (2,), lambda x: x.reshape(len(x), groups(x.shape[1]), -1)),
    "layer_norm2d": Definition(lambda x: (1,)),
    "layer_norm_image": Definition(_over_sample),
    "layer_norm": Definition(_over_sample),
    "rms_norm": Definition(_over_sample),
    "weight_norm": Definition(_over_sample, per_length=True),
    "weight_standardization": Definition(_over_sample),
}


def error(cell: Cell, contestant: Contestant) -> float:
    """The largest error of y in units of ``eps (1 + |mean| / std)`` of the largest ``|y|``; the promise is 4."""
    definition = DEFINITIONS[cell.method]
    axis = definition.kept
    rows = cell.shape[axis]
    keep = max(1, min(rows, ENOUGH * rows // cell.elements))
    index = torch.linspace(0, rows - 1, keep).long()
    y = contestant.function(*contestant.inputs).detach().index_select(axis, index).double()
    x, *affine = (leaf.detach().double() for leaf in contestant.leaves)
    if axis == 1 or definition.per_length:
        affine = [t.index_select(0, index) for t in affine]
    exact, off_centre = _exact(cell, definition, x.index_select(axis, index), affine)
    unit = torch.finfo(cell.torch_dtype).eps * (1 + off_centre) * exact.abs().max()
    return ((y - exact).abs() / unit).max().item()


def _exact(cell: Cell, definition: Definition, x: Tensor, affine: list[Tensor]) -> tuple[Tensor, Tensor]:
    """y, and ``|mean| / std`` of each element's region."""
    view = definition.view(x)
    dims = definition.dims(view)
    if definition.given:
        mean, var = torch.zeros(1, dtype=x.dtype), torch.ones(1, dtype=x.dtype)
    elif not cell.row.center:
        mean, var = torch.zeros(1, dtype=x.dtype), view.square().mean(dims, keepdim=True)
    else:
        var, mean = torch.var_mean(view, dims, correction=0, keepdim=True)
    y = ((view - mean) / (var + cell.eps).sqrt()).reshape(x.shape)
    off_centre = (mean.abs() / var.sqrt()).expand(view.shape).reshape(x.shape)
    if definition.per_length:
        return y * affine[0] / (x.numel() / len(x)) ** 0.5, off_centre
    shape = (1, -1, *[1] * (x.dim() - 2))
    weight, bias = (*affine, None, None)[:2]
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape), off_centre
