"""What ``torch.compile`` makes of normkit on a GPU: plain operations. Tested on a CPU that is taken for a GPU.

On a machine with a GPU the same tests run there, too: ``pytest -m gpu tests/transforms/test_compiled_on_gpu.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from cases import CASES, Case, layouts, make_input, make_layer
from normkit.kernels import devices

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
Graphs = list[torch.fx.GraphModule]


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device whose graphs get plain operations."""
    monkeypatch.setattr(devices, "GPUS", (request.param,))
    torch._dynamo.reset()
    # Its key knows the operator's name only, and not what becomes of it.
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield request.param
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], graphs: Graphs, **options: Any) -> Callable[..., Any]:
    """As Inductor would get it, without its code; the graphs of forward and backward are added to `graphs`."""

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


def operators(graphs: Graphs) -> set[str]:
    """The operators of normkit in graphs."""
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert nodes
    return {str(node.target) for node in nodes if str(node.target).startswith("normkit")}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_layer_becomes_plain_operations(case: Case, training: bool, device: str):
    eager = make_layer(case).train(training).to(device)
    layer = copy.deepcopy(eager)
    x, graphs = make_input(case).to(device), []
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, want = compiled(layer, graphs)(own), eager(other)
    dy = torch.randn_like(y)
    y.backward(dy)
    want.backward(dy)
    assert operators(graphs) == set()
    # The same formulas in fp32, a few roundings of numbers near 1.
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(y, want, **close)
    torch.testing.assert_close(own.grad, other.grad, **close)
    for mine, theirs in zip(layer.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **close)
    for mine, theirs in zip(layer.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **close)
