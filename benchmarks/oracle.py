"""The error of y against the definition in float64, on a part of the tensor that holds whole regions."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contestants import EPS, Contestant, groups
from benchmarks.workloads import Cell

BOUND = 4.0
ENOUGH = 1 << 18  # elements compared


def error(cell: Cell, contestant: Contestant) -> float:
    """The largest error of y in units of ``eps (1 + |mean| / std)`` of the largest ``|y|``; the promise is 4."""
    axis = 1 if cell.method.startswith("batch_norm") else 0
    rows = cell.shape[axis]
    keep = max(1, min(rows, ENOUGH * rows // cell.elements))
    index = torch.linspace(0, rows - 1, keep).long()
    y = contestant.function(*contestant.inputs).detach().index_select(axis, index).double()
    x, *affine = (leaf.detach().double() for leaf in contestant.leaves)
    if axis == 1 or cell.method == "weight_norm":
        affine = [t.index_select(0, index) for t in affine]
    exact, off_centre = _definition(cell, x.index_select(axis, index), affine)
    unit = torch.finfo(cell.torch_dtype).eps * (1 + off_centre) * exact.abs().max()
    return ((y - exact).abs() / unit).max().item()


def _definition(cell: Cell, x: Tensor, affine: list[Tensor]) -> tuple[Tensor, Tensor]:
    """y, and ``|mean| / std`` of each element's region."""
    view = x.reshape(len(x), groups(cell.shape[1]), -1) if cell.method == "group_norm" else x
    dims = {
        "batch_norm": (0, *range(2, x.dim())),
        "instance_norm": (2, 3),
        "group_norm": (2,),
        "layer_norm2d": (1,),
    }.get(cell.method, tuple(range(1, x.dim())))
    if cell.method == "batch_norm_eval":
        mean, var = torch.zeros(1, dtype=x.dtype), torch.ones(1, dtype=x.dtype)
    elif cell.method in ("rms_norm", "weight_norm"):
        mean, var = torch.zeros(1, dtype=x.dtype), view.square().mean(dims, keepdim=True)
    else:
        var, mean = torch.var_mean(view, dims, correction=0, keepdim=True)
    y = ((view - mean) / (var + EPS.get(cell.method, 1e-5)).sqrt()).reshape(x.shape)
    off_centre = (mean.abs() / var.sqrt()).expand(view.shape).reshape(x.shape)
    if cell.method == "weight_norm":
        return y * affine[0] / (x.numel() / len(x)) ** 0.5, off_centre
    shape = (1, -1, *[1] * (x.dim() - 2))
    weight, bias = (*affine, None, None)[:2]
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape), off_centre
