"""Looks at the graphs that ``torch.compile`` makes, and at what Inductor would make of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config
from torch._inductor.decomposition import select_decomp_table

from normkit.kernels import devices

Graphs = list[torch.fx.GraphModule]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
"""The same formulas in fp32: a few roundings of numbers near 1."""


@contextmanager
def taken_for_gpu(device: str) -> Iterator[str]:
    """Let graphs on this kind of device get what graphs on a GPU get."""
    torch._dynamo.reset()
    # The key of that cache has the name of an operator, and not what becomes of it.
    with pytest.MonkeyPatch.context() as patch, torch._functorch.config.patch(enable_autograd_cache=False):
        patch.setattr(devices, "GPUS", (device,))
        yield device
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], graphs: Graphs, **options: Any) -> Callable[..., Any]:
    """Compiled as one graph, up to Inductor's code; the graphs of forward and backward are added to `graphs`."""

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def calls(graphs: Graphs) -> set[str]:
    """The names of all operators in graphs."""
    found = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert found
    return found


def of_normkit(graphs: Graphs) -> set[str]:
    """The names of normkit's operators in graphs."""
    return {name for name in calls(graphs) if name.startswith("normkit")}


def assert_steps_agree(mine: nn.Module, theirs: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """One step of each: outputs, gradients and buffers. `run` calls the first."""
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, want = run(own), theirs(other)
    dy = torch.randn_like(want)
    y.backward(dy)
    want.backward(dy)
    torch.testing.assert_close(y, want, **CLOSE)
    assert y.stride() == want.stride()
    torch.testing.assert_close(own.grad, other.grad, **CLOSE)
    for one, another in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, another.grad, **CLOSE)
    for one, another in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, another, **CLOSE)


class Cost(NamedTuple):
    """Kernels of forward and backward together, and the bytes that they read and write."""

    kernels: int
    bytes: int


class _CountedError(Exception):
    """Raised where Inductor would write code."""


def cost(function: Callable[[Tensor], Tensor], x: Tensor) -> Cost:
    """What Inductor would launch for a GPU: its scheduler fuses as for Triton, and no code is written or compiled."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # warns when it is imported
    from torch._inductor.graph import GraphLowering

    found: list[Cost] = []

    def count(self: Any) -> None:
        self._update_scheduler()
        found.append(Cost(len(self.scheduler.nodes), self.count_bytes()[0]))
        raise _CountedError

    def inner(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        before = len(found)
        try:
            compile_fx_inner(copy.deepcopy(graph), inputs, **options)
        except Exception:
            if len(found) == before:
                raise
        return make_boxed_func(graph.forward)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return compile_fx(graph, inputs, inner_compile=inner)

    torch._dynamo.reset()
    own = x.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch, config.patch(cpu_backend="triton", fx_graph_cache=False):
        patch.setattr(GraphLowering, "codegen", count)
        y = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(own)
        y.backward(torch.ones_like(y))
    forward, backward = found
    return Cost(forward.kernels + backward.kernels, forward.bytes + backward.bytes)
