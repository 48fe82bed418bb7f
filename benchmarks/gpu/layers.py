"""What a call of a layer costs the CPU, and whether CUDA graphs capture and replay layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import normkit
from benchmarks.gpu.clock import Clock, host_times
from benchmarks.speed.measure import Call

Layers = dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...]]]

CALLED: Layers = {
    "LayerNorm": (lambda of: of.LayerNorm(768), (64, 768)),
    "RMSNorm": (lambda of: of.RMSNorm(768), (64, 768)),
    "BatchNorm2d": (lambda of: of.BatchNorm2d(64), (8, 64, 8, 8)),
    "GroupNorm": (lambda of: of.GroupNorm(8, 64), (8, 64, 8, 8)),
    "InstanceNorm2d": (lambda of: of.InstanceNorm2d(64, affine=True), (8, 64, 8, 8)),
}
"""Small, so that the call takes longer than its kernels."""
CAPTURED: Layers = {
    **CALLED,
    "LayerNorm2d": (lambda of: of.LayerNorm2d(64), (8, 64, 8, 8)),
    "BatchNorm2d, large": (lambda of: of.BatchNorm2d(16), (16, 16, 56, 56)),
    "GroupNorm, large": (lambda of: of.GroupNorm(4, 16), (4, 16, 112, 112)),
    "RMSNorm, wide": (lambda of: of.RMSNorm(20000), (8, 20000)),
}
NEAR = 1e-5
"""Replayed and eager results are those of the same kernels, so this allows for nothing but another schedule."""


def calls_of(layer: nn.Module, shape: tuple[int, ...], backward: bool) -> Call:
    """A call of the layer, with its backward pass or without gradients."""
    x, dy = torch.randn(shape).requires_grad_(backward), torch.randn(shape)
    leaves = [x, *layer.parameters()]
    if backward:
        return lambda: torch.autograd.grad(layer(x), leaves, dy)

    def infer() -> Tensor:
        with torch.no_grad():
            y: Tensor = layer(x)
        return y

    return infer


def reason(error: Exception) -> str:
    """What has failed, in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def called(clock: Clock, compiled: bool, repeats: int = 30) -> Iterator[dict[str, Any]]:
    """One row for each layer and pass: microseconds of CPU time of torch.nn, torch.compile and normkit."""
    for (name, (make, shape)), backward in itertools.product(CALLED.items(), (True, False)):
        row: dict[str, Any] = {"name": f"{name} {list(shape)} {'forward+backward' if backward else 'no_grad forward'}"}
        try:
            torch.compiler.reset()
            layers = {"torch": make(nn), "normkit": make(normkit)}
            if compiled:
                layers["compile"] = torch.compile(make(nn), dynamic=False)
            times = host_times({who: calls_of(layer, shape, backward) for who, layer in layers.items()}, clock, repeats)
        except Exception as error:  # one layer's failure is a row, not the end
            yield {**row, "backward": backward, "microseconds": {}, "failed": reason(error)}
            continue
        microseconds = {who: None if t is None else t * 1e3 for who, t in times.items()}
        yield {**row, "backward": backward, "microseconds": microseconds, "failed": None}


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def _graph(step: Callable[[], list[Tensor]]) -> tuple[Call, list[Tensor]]:
    """A CUDA graph of a step, warmed up on another stream as torch asks for, and its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results


def _repeated(step: Callable[[], list[Tensor]]) -> tuple[Call, list[Tensor]]:
    """In place of a graph, where there is no GPU."""
    results = step()

    def replay() -> None:
        for old, new in zip(results, step(), strict=True):
            old.data.copy_(new.detach())

    return replay, results


def captured(make: Callable[[Any], nn.Module], shape: tuple[int, ...], gpu: bool) -> float:
    """The largest difference between a replayed graph and eager calls, on numbers that the graph has not seen."""
    torch.manual_seed(0)
    layer = make(normkit)
    x, dy = torch.randn(shape).requires_grad_(), torch.randn(shape)
    replay, results = (_graph if gpu else _repeated)(lambda: _step(layer, x, dy))
    eager = copy.deepcopy(layer)
    with torch.no_grad():
        x.copy_(torch.randn(shape) + 1)
        dy.copy_(torch.randn(shape))
    replay()
    expected = _step(eager, x, dy)
    state = zip(layer.state_dict().values(), eager.state_dict().values(), strict=True)
    pairs = [*zip(results, expected, strict=True), *state]
    return max((a.double() - b.double()).abs().max().item() / max(1.0, b.abs().max().item()) for a, b in pairs)


def graphs(gpu: bool) -> Iterator[dict[str, Any]]:
    """One row for each layer: the difference, or why it could not be captured."""
    for name, (make, shape) in CAPTURED.items():
        try:
            difference: float | None = captured(make, shape, gpu)
            failed = None if difference is not None and difference <= NEAR else f"differs by {difference:.2g}"
        except Exception as error:  # one layer's failure is a row, not the end
            difference, failed = None, reason(error)
        yield {"name": f"{name} {list(shape)}", "difference": difference, "failed": failed}
