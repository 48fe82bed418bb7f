"""Who is timed: each contestant turns a cell into a call without arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workloads import Cell
from normkit import functional as N

Call = Callable[[], object]


def groups(channels: int) -> int:
    """32 groups as usual, fewer where there are few channels."""
    return 32 if channels % 32 == 0 else 1


def _layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What users write with torch alone."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-6).permute(0, 3, 1, 2)


def _layer_norm_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 1, weight, bias)


def torch_eager(cell: Cell) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's own function for a cell."""
    c = cell.shape[1]
    mean, var = torch.zeros(c), torch.ones(c)
    calls: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "batch_norm": lambda x, w, b: F.batch_norm(x, mean, var, w, b, training=True),
        "batch_norm_eval": lambda x, w, b: F.batch_norm(x, mean, var, w, b),
        "instance_norm": lambda x, w, b: F.instance_norm(x, None, None, w, b),
        "group_norm": lambda x, w, b: F.group_norm(x, groups(c), w, b),
        "layer_norm2d": _layer_norm2d,
        "layer_norm_image": _layer_norm_image,
        "layer_norm": lambda x, w, b: F.layer_norm(x, (c,), w, b),
        "rms_norm": lambda x, w, b: F.rms_norm(x, (c,), w),
    }
    return calls[cell.method]


def normkit(cell: Cell) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """normkit's function for a cell."""
    c = cell.shape[1]
    mean, var = torch.zeros(c), torch.ones(c)
    calls: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "batch_norm": lambda x, w, b: N.batch_norm(x, mean, var, w, b, training=True),
        "batch_norm_eval": lambda x, w, b: N.batch_norm(x, mean, var, w, b),
        "instance_norm": lambda x, w, b: N.instance_norm(x, None, None, w, b),
        "group_norm": lambda x, w, b: N.group_norm(x, groups(c), w, b),
        "layer_norm2d": lambda x, w, b: N.layer_norm2d(x, w, b),
        "layer_norm_image": lambda x, w, b: N.normalize(x, "b [c ...]", w, b),
        "layer_norm": lambda x, w, b: N.layer_norm(x, (c,), w, b),
        "rms_norm": lambda x, w, b: N.rms_norm(x, (c,), w),
    }
    return calls[cell.method]


def calls(cell: Cell) -> dict[str, Call]:
    """The contestants on one cell, on the same data, and a plain copy as the limit."""
    x, dy = cell.tensor(), cell.tensor()
    # torch's batch norm and group norm take fp32 parameters beside half-precision input; its layer norm does not.
    dtype = cell.dtype if cell.method in ("layer_norm", "rms_norm", "layer_norm2d") else torch.float32
    weight, bias = torch.rand(cell.shape[1], dtype=dtype), torch.rand(cell.shape[1], dtype=dtype)
    out: dict[str, Call] = {}
    for name, contestant in (("torch", torch_eager(cell)), ("normkit", normkit(cell))):
        out[name] = _train(contestant, x, weight, bias, dy) if cell.backward else _infer(contestant, x, weight, bias)
    y = torch.empty_like(x)
    out["copy"] = lambda: y.copy_(x)
    return out


def _infer(f: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return f(x, w, b)

    return call


def _train(f: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> Call:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b)]

    def call() -> object:
        y = f(*leaves)
        return torch.autograd.grad(y, leaves, dy, allow_unused=True)

    return call
