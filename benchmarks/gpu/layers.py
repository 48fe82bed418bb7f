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
from normkit.kernels import fastpath

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


def where(gpu: bool) -> torch.device:
    """Where tensors and modules are made.

    It is the default device only then, and never during a call: a default device costs each call of torch time, and it
    keeps C++ from carrying out normkit's.
    """
    return torch.device("cuda" if gpu else "cpu")


def calls_of(layer: nn.Module, shape: tuple[int, ...], backward: bool, device: torch.device) -> Call:
    """A call of the layer, with its backward pass or without gradients."""
    x, dy = torch.randn(shape, device=device).requires_grad_(backward), torch.randn(shape, device=device)
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


def working(calls: dict[str, Call]) -> tuple[dict[str, Call], str | None]:
    """The calls without those of torch that fail, and why these do; normkit's must not fail."""
    good, notes = {}, []
    for who, call in calls.items():
        try:
            call()
        except Exception as error:
            if who == "normkit":
                raise
            notes.append(f"{who} left out: {reason(error)}")
        else:
            good[who] = call
    return good, "; ".join(notes) or None


def cpp_state(gpu: bool) -> tuple[bool, str]:
    """Whether C++ can carry out calls here, and why or why not."""
    if not gpu:
        return fastpath.in_use, fastpath.reason
    try:
        from normkit.kernels.triton import recipes
    except ImportError as missing:
        return False, str(missing)
    possible, why = recipes.state()
    return possible, "; ".join((why, *dict.fromkeys(recipes.refused)))


def by_cpp(layer: nn.Module, shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether C++ carries out calls of this layer: then the node of the graph is its own."""
    x = torch.randn(shape, device=device).requires_grad_()
    *_, y = (layer(x) for _ in range(3))  # the first call is Python's
    return y.grad_fn.name().startswith("Normkit") and (x.device.type == "cpu" or fastpath.known_recipes() > 0)


def called(clock: Clock, gpu: bool, repeats: int = 30) -> Iterator[dict[str, Any]]:
    """One row for each layer and pass: microseconds of CPU time of torch.nn, torch.compile (on a GPU) and normkit."""
    device = where(gpu)
    for (name, (make, shape)), backward in itertools.product(CALLED.items(), (True, False)):
        row: dict[str, Any] = {"name": f"{name} {list(shape)} {'forward+backward' if backward else 'no_grad forward'}"}
        row |= {"backward": backward, "microseconds": {}, "C++": None, "failed": None}
        try:
            torch.compiler.reset()
            with device:
                layers = {"torch": make(nn), "normkit": make(normkit)}
                if gpu:
                    layers["compile"] = torch.compile(make(nn), dynamic=False)
            row["C++"] = by_cpp(layers["normkit"], shape, device)
            possible, why = cpp_state(gpu)
            if possible and not row["C++"]:
                row["failed"] = f"C++ does not carry out the call: {why}"
            calls, row["note"] = working({w: calls_of(layer, shape, backward, device) for w, layer in layers.items()})
            times = host_times(calls, clock, repeats)
            row["microseconds"] = {who: None if t is None else t * 1e3 for who, t in times.items()}
        except Exception as error:  # one layer's failure is a row, not the end
            row["failed"] = reason(error)
        yield row


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
    with where(gpu):
        layer = make(normkit)
        x, dy, new_x, new_dy = (torch.randn(shape) for _ in range(4))
    x.requires_grad_()
    replay, results = (_graph if gpu else _repeated)(lambda: _step(layer, x, dy))
    eager = copy.deepcopy(layer)
    with torch.no_grad():
        x.copy_(new_x + 1)
        dy.copy_(new_dy)
    replay()
    expected = _step(eager, x, dy)
    state = zip(layer.state_dict().values(), eager.state_dict().values(), strict=True)
    pairs = [*zip(results, expected, strict=True), *state]
    far = [(a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1) for a, b in pairs]
    return torch.stack(far).max().item()  # Python's max may drop a NaN


def graphs(gpu: bool) -> Iterator[dict[str, Any]]:
    """One row for each layer: the difference, or why it could not be captured."""
    for name, (make, shape) in CAPTURED.items():
        try:
            difference: float | None = captured(make, shape, gpu)
            failed = None if difference is not None and difference <= NEAR else f"differs by {difference:.2g}"
        except Exception as error:  # one layer's failure is a row, not the end
            difference, failed = None, reason(error)
        yield {"name": f"{name} {list(shape)}", "difference": difference, "failed": failed}
