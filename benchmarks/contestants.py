"""Who is timed: torch, torch compiled, oneDNN, normkit, each on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit
from benchmarks.peers import PEERS
from benchmarks.workloads import Cell
from normkit import functional, parametrize

Call = Callable[[], object]
EPS = {"layer_norm2d": 1e-6, "rms_norm": 1e-6, "weight_norm": 0.0}


def groups(channels: int) -> int:
    """32 groups as usual, fewer where there are few channels."""
    return 32 if channels % 32 == 0 else 1


@dataclass(frozen=True)
class Contestant:
    """A function of tensors, and what its gradients are taken of."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    dy: Tensor

    def infer(self) -> Tensor:
        with torch.no_grad():
            return self.function(*self.inputs)

    def train(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.function(*self.inputs), self.leaves, self.dy)

    def compiled(self) -> Contestant:
        return Contestant(torch.compile(self.function, dynamic=False), self.inputs, self.leaves, self.dy)


class _LayerNorm2d(nn.LayerNorm):
    """What users write with torch alone."""

    def forward(self, x: Tensor) -> Tensor:
        return _layer_norm2d(x, self.weight, self.bias)


def _layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-6).permute(0, 3, 1, 2)


def _standardize(x: Tensor) -> Tensor:
    """The definition; what is half precision counts in float32, as torch's own norms do."""
    wide = x.float().flatten(1)
    var, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
    return ((wide - mean) * (var + 1e-5).rsqrt()).view_as(x).to(x.dtype)


def _standardize_by_batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x.reshape(1, len(x), -1), None, None, training=True).view_as(x)


def _layer(library: Any, cell: Cell) -> nn.Module:
    """The layer of torch.nn or normkit, which have the same names."""
    c = cell.shape[1]
    if cell.method == "layer_norm2d":
        return _LayerNorm2d(c, 1e-6) if library is nn else library.LayerNorm2d(c, 1e-6)
    batch_norm = library.BatchNorm2d if len(cell.shape) == 4 else library.BatchNorm1d
    layers: dict[str, Callable[[], nn.Module]] = {
        "batch_norm": lambda: batch_norm(c),
        "batch_norm_eval": lambda: batch_norm(c).eval(),
        "instance_norm": lambda: library.InstanceNorm2d(c, affine=True),
        "group_norm": lambda: library.GroupNorm(groups(c), c),
        "layer_norm_image": lambda: library.GroupNorm(1, c),
        "layer_norm": lambda: library.LayerNorm(c),
        "rms_norm": lambda: library.RMSNorm(c, 1e-6),
    }
    return layers[cell.method]()


def _function(library: Any, cell: Cell) -> Callable[..., Tensor]:
    """The function of torch.nn.functional or normkit.functional, which have the same names."""
    if library is F and cell.method == "layer_norm2d":
        return _layer_norm2d
    if cell.method == "weight_norm":
        norm = parametrizations._WeightNorm(0) if library is F else parametrize.WeightNorm(0)
        return lambda v, g: norm(g, v)
    if cell.method == "weight_standardization":
        return _standardize if library is F else library.weight_standardization
    c = cell.shape[1]
    mean, var = torch.zeros(c), torch.ones(c)
    functions: dict[str, Callable[..., Tensor]] = {
        "batch_norm": lambda x, w, b: library.batch_norm(x, mean, var, w, b, training=True),
        "batch_norm_eval": lambda x, w, b: library.batch_norm(x, mean, var, w, b),
        "instance_norm": lambda x, w, b: library.instance_norm(x, None, None, w, b),
        "group_norm": lambda x, w, b: library.group_norm(x, groups(c), w, b),
        "layer_norm2d": lambda x, w, b: library.layer_norm2d(x, w, b),
        "layer_norm_image": lambda x, w, b: library.group_norm(x, 1, w, b),
        "layer_norm": lambda x, w, b: library.layer_norm(x, (c,), w, b),
        "rms_norm": lambda x, w: library.rms_norm(x, (c,), w, 1e-6),
    }
    return functions[cell.method]


def parameters(cell: Cell) -> tuple[Tensor, ...]:
    """Weight and bias, or what the method has of them."""
    if cell.method == "weight_standardization":
        return ()
    if cell.method == "weight_norm":
        return (torch.rand(cell.shape[0], *[1] * (len(cell.shape) - 1), dtype=cell.torch_dtype),)
    # torch's batch norm and group norm take fp32 parameters beside half-precision input; its layer norm does not.
    alike = cell.method in ("layer_norm", "rms_norm", "layer_norm2d")
    made = [torch.rand(cell.shape[1], dtype=cell.torch_dtype if alike else torch.float32) for _ in range(2)]
    return tuple(made[:1] if cell.method == "rms_norm" else made)


def contestants(cell: Cell, compiled: bool = True) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run this cell, on the same tensors; and why the others do not."""
    leaves = tuple(t.requires_grad_(cell.backward) for t in (cell.tensor(), *parameters(cell)))
    dy = cell.tensor()

    def of(layers: Any, functions: Any) -> Contestant:
        if cell.size != "overhead":
            return Contestant(_function(functions, cell), leaves, leaves, dy)
        layer = _layer(layers, cell)
        with torch.no_grad():
            for mine, value in zip(layer.parameters(), leaves[1:], strict=True):
                mine.copy_(value).requires_grad_(cell.backward)
        return Contestant(layer, leaves[:1], (leaves[0], *layer.parameters()), dy)

    def onednn() -> Contestant:
        own = tuple(t.detach().to_mkldnn().requires_grad_(cell.backward) for t in leaves[:1])
        return Contestant(_function(F, cell), (*own, *leaves[1:]), (*own, *leaves[1:]), dy.to_mkldnn())

    def peer(make: Callable[..., Callable[..., Tensor] | None]) -> Contestant | None:
        function = make(cell, EPS.get(cell.method, 1e-5), groups(cell.shape[1]))
        return None if function is None else Contestant(function, leaves, leaves, dy)

    entries: dict[str, Callable[[], Contestant | None]] = {
        "torch": lambda: of(nn, F),
        "normkit": lambda: of(normkit, functional),
    }
    if cell.method == "weight_standardization":
        entries["torch, by batch_norm"] = lambda: Contestant(_standardize_by_batch_norm, leaves, leaves, dy)
    if leaves[0].is_cuda:
        entries |= {name: lambda of_peer=of_peer: peer(of_peer) for name, of_peer in PEERS.items()}
    elif cell.method.startswith("batch_norm") and len(cell.shape) == 4 and cell.layout == "contiguous":
        entries["onednn"] = onednn
    if compiled:
        entries["compile"] = lambda: of(nn, F).compiled()
    running, failed = {}, {}
    for name, make in entries.items():
        try:
            contestant = make()
            if contestant is None:
                continue
            contestant.train() if cell.backward else contestant.infer()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            running[name] = contestant
    return running, failed


def calls(cell: Cell, running: dict[str, Contestant]) -> dict[str, Call]:
    """What is timed, and a plain copy as the limit."""
    x = next(iter(running.values())).inputs[0].detach()
    y = torch.empty_like(x)
    timed: dict[str, Call] = {name: c.train if cell.backward else c.infer for name, c in running.items()}
    return {**timed, "copy": lambda: y.copy_(x)}
