"""Who is timed: torch, torch compiled, oneDNN, normkit, each on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit
from benchmarks.speed.measure import Call
from benchmarks.speed.peers import Peer, installed
from benchmarks.speed.workloads import Cell
from normkit import functional, parametrize


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

    def compiled(self, mode: str | None = None) -> Contestant:
        return Contestant(torch.compile(self.function, dynamic=False, mode=mode), self.inputs, self.leaves, self.dy)


class _LayerNorm2d(nn.LayerNorm):
    """What users write with torch alone."""

    def forward(self, x: Tensor) -> Tensor:
        return _layer_norm2d(x, self.weight, self.bias)


def _layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-6).permute(0, 3, 1, 2)


def _standardize(x: Tensor) -> Tensor:
    """The definition; half precision is computed in float32, as in torch's own norms."""
    wide = x.float().flatten(1)
    var, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
    return ((wide - mean) * (var + 1e-5).rsqrt()).view_as(x).to(x.dtype)


def _standardize_by_batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x.reshape(1, len(x), -1), None, None, training=True).view_as(x)


@dataclass(frozen=True)
class Method:
    """How one method is called; torch and normkit have the same names.

    Attributes:
        layer: of `torch.nn` or `normkit`; None for a method that is timed as a function alone.
        function: of `torch.nn.functional` or `normkit.functional`.
        one_dtype: whether torch's function wants parameters in the dtype of the input.
        lengths: whether a norm of weights has a length for each output.
        onednn: whether torch's function takes tensors of oneDNN.
        others: further ways in torch, by name.
    """

    layer: Callable[[Any, Cell], nn.Module] | None
    function: Callable[[Any, Cell], Callable[..., Tensor]]
    one_dtype: bool = False
    lengths: bool = False
    onednn: bool = False
    others: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)


def _batch_norm(library: Any, cell: Cell) -> nn.Module:
    layer: nn.Module = (library.BatchNorm2d if len(cell.shape) == 4 else library.BatchNorm1d)(cell.channels)
    return layer


def _batch_norm_function(library: Any, cell: Cell, training: bool) -> Callable[..., Tensor]:
    mean, var = torch.zeros(cell.channels), torch.ones(cell.channels)
    return lambda x, w, b: library.batch_norm(x, mean, var, w, b, training=training)


def _weight_norm(library: Any, cell: Cell) -> Callable[..., Tensor]:
    norm = parametrizations._WeightNorm(0) if library is F else parametrize.WeightNorm(0)
    return lambda v, g: norm(g, v)


METHODS: Mapping[str, Method] = {
    "batch_norm": Method(_batch_norm, lambda of, c: _batch_norm_function(of, c, True), onednn=True),
    "batch_norm_eval": Method(
        lambda of, c: _batch_norm(of, c).eval(), lambda of, c: _batch_norm_function(of, c, False), onednn=True
    ),
    "instance_norm": Method(
        lambda of, c: of.InstanceNorm2d(c.channels, affine=True),
        lambda of, c: lambda x, w, b: of.instance_norm(x, None, None, w, b),
    ),
    "group_norm": Method(
        lambda of, c: of.GroupNorm(groups(c.channels), c.channels),
        lambda of, c: lambda x, w, b: of.group_norm(x, groups(c.channels), w, b),
    ),
    "layer_norm_image": Method(
        lambda of, c: of.GroupNorm(1, c.channels), lambda of, c: lambda x, w, b: of.group_norm(x, 1, w, b)
    ),
    # torch has none: there it is what users write.
    "layer_norm2d": Method(
        lambda of, c: getattr(of, "LayerNorm2d", _LayerNorm2d)(c.channels, c.eps),
        lambda of, c: getattr(of, "layer_norm2d", _layer_norm2d),
        one_dtype=True,
    ),
    "layer_norm": Method(
        lambda of, c: of.LayerNorm(c.channels),
        lambda of, c: lambda x, w, b: of.layer_norm(x, (c.channels,), w, b),
        one_dtype=True,
    ),
    "rms_norm": Method(
        lambda of, c: of.RMSNorm(c.channels, c.eps),
        lambda of, c: lambda x, w: of.rms_norm(x, (c.channels,), w, c.eps),
        one_dtype=True,
    ),
    "weight_norm": Method(None, _weight_norm, lengths=True),
    "weight_standardization": Method(
        None,
        lambda of, c: getattr(of, "weight_standardization", _standardize),
        others={"torch, by batch_norm": _standardize_by_batch_norm},
    ),
}
"""By the names of cells."""


def parameters(cell: Cell) -> tuple[Tensor, ...]:
    """Weight and bias, or those of them that the method has."""
    method = METHODS[cell.method]
    if cell.row.of_weights:
        lengths = torch.rand(cell.shape[0], *[1] * (len(cell.shape) - 1), dtype=cell.torch_dtype)
        return (lengths,) if method.lengths else ()
    dtype = cell.torch_dtype if method.one_dtype else torch.float32
    return tuple(torch.rand(cell.channels, dtype=dtype) for _ in range(2 if cell.row.center else 1))


def contestants(
    cell: Cell, compiled: bool = True, autotuned: bool = False, peers: Mapping[str, Peer] | None = None
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run this cell, on the same tensors; and why the others do not.

    `peers` are by default, on a GPU, all that are installed.
    """
    method = METHODS[cell.method]
    leaves = tuple(t.requires_grad_(cell.backward) for t in (cell.tensor(), *parameters(cell)))
    dy = cell.tensor()

    def of(layers: Any, functions: Any) -> Contestant:
        if cell.size != "overhead" or method.layer is None:
            return Contestant(method.function(functions, cell), leaves, leaves, dy)
        layer = method.layer(layers, cell)
        with torch.no_grad():
            for mine, value in zip(layer.parameters(), leaves[1:], strict=True):
                mine.copy_(value).requires_grad_(cell.backward)
        return Contestant(layer, leaves[:1], (leaves[0], *layer.parameters()), dy)

    def onednn() -> Contestant:
        own = tuple(t.detach().to_mkldnn().requires_grad_(cell.backward) for t in leaves[:1])
        return Contestant(method.function(F, cell), (*own, *leaves[1:]), (*own, *leaves[1:]), dy.to_mkldnn())

    def peer(of_peer: Peer) -> Contestant | None:
        if cell.backward and not of_peer.differentiable:
            return None
        function = of_peer.make(cell, cell.eps, groups(cell.channels))
        if function is None:
            return None
        dtype = of_peer.parameters or (leaves[1].dtype if leaves[1:] else None)
        own = (leaves[0], *(t.detach().to(dtype).requires_grad_(cell.backward) for t in leaves[1:]))
        return Contestant(function, own, own, dy)

    entries: dict[str, Callable[[], Contestant | None]] = {
        "torch": lambda: of(nn, F),
        "normkit": lambda: of(normkit, functional),
    }
    for name, other in method.others.items():
        entries[name] = lambda function=other: Contestant(function, leaves, leaves, dy)
    if peers is None:
        peers = installed() if leaves[0].is_cuda else {}
    entries |= {name: lambda of_peer=of_peer: peer(of_peer) for name, of_peer in peers.items()}
    if not leaves[0].is_cuda and method.onednn and len(cell.shape) == 4 and cell.layout == "contiguous":
        entries["onednn"] = onednn
    if compiled:
        entries["compile"] = lambda: of(nn, F).compiled()
    if autotuned:
        entries["compile max-autotune"] = lambda: of(nn, F).compiled("max-autotune-no-cudagraphs")
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
