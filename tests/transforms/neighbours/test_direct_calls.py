"""Code that Inductor generates calls normkit's kernels directly, with results as those of the operator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor
from torch._inductor import config
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import normkit
from normkit import functional as N
from normkit.kernels import fastpath
from normkit.kernels.native import native
from normkit.kernels.traced import entry

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
"""The same formulas in fp32, in another order of rounding."""
pytestmark = [
    pytest.mark.skipif(native().kernels is None, reason="needs the compiled kernels"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*"),  # torch's compiler warns of torch
]


def code_of(function: Callable[[], Any]) -> tuple[Any, str]:
    torch._dynamo.reset()
    with config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        out, code = run_and_get_code(function)
    return out, "\n".join(code)


def test_forward_and_backward_are_bound() -> None:
    """Everything of a call at once: sum, weights, activation, all gradients."""

    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        s = x + r
        return F.gelu(N.layer_norm(s, (9,), w, b)), s

    inputs = [torch.randn(shape, requires_grad=True) for shape in ((4, 9), (4, 9), (9,), (9,))]
    graph = torch.compile(block, fullgraph=True)
    upstream = [torch.randn(4, 9) for _ in range(2)]

    def both(run: Callable[..., Any]) -> tuple[Any, ...]:
        out = run(*inputs)
        return (*out, *torch.autograd.grad(out, inputs, upstream))

    ours, code = code_of(lambda: both(graph))
    for one, other in zip(ours, both(block), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert code.count("normkit_entry.forward(") == 1
    assert code.count("normkit_entry.backward(") == 1
    assert "= torch.ops.normkit.norm" not in code
    assert "cpp_fused" not in code


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_channels_last(training: bool) -> None:
    torch.manual_seed(0)
    layer = normkit.BatchNorm2d(3)
    layer.train(training)
    x = torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last).requires_grad_()
    graph = torch.compile(lambda x: torch.relu(layer(x)), fullgraph=True)
    ours, code = code_of(lambda: graph(x))
    assert "normkit_entry.forward(" in code
    reference = torch.nn.BatchNorm2d(3).train(training)
    theirs = torch.relu(reference(x))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(layer.running_var, reference.running_var, **CLOSE)
    dy = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(y, x, dy) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert ours.stride() == x.stride()


def test_sizes_that_vary_call_the_operator() -> None:
    graph = torch.compile(lambda x: N.rms_norm(x, (9,)), fullgraph=True, dynamic=True)
    x = torch.randn(4, 9)
    ours, code = code_of(lambda: graph(x))
    torch.testing.assert_close(ours, F.rms_norm(x, (9,)), **CLOSE)
    assert "torch.ops.normkit.norm.default(" in code
    assert "normkit_entry" not in code


def test_mask_calls_the_operator() -> None:
    mask = torch.tensor([True, True, False, True])
    graph = torch.compile(lambda x: N.layer_norm(x, (9,), mask=mask), fullgraph=True)
    x = torch.randn(4, 9)
    ours, code = code_of(lambda: graph(x))
    torch.testing.assert_close(ours, F.layer_norm(x, (9,)) * mask[:, None], **CLOSE)
    assert "normkit_entry" not in code


SETTINGS: entry.Settings = ("... [c]", 1e-5, True, "none", "none", False, False, False)


def bound(want: int = 1) -> entry.Bound:
    return entry.forward(SETTINGS, (4, 9), (9, 1), "float32", None, False, want)


def test_what_does_not_suit_the_binding_goes_to_the_operator() -> None:
    """Inductor checks sizes unless that is turned off; nothing may read past the end of a tensor."""
    call, nothing = bound(), [None] * 7
    for x in (torch.randn(5, 9), torch.randn(9, 4).t(), torch.randn(4, 9, dtype=torch.float64)):
        torch.testing.assert_close(call(x, *nothing)[0], F.layer_norm(x, (9,)), **CLOSE)
    x = torch.randn(4, 9)
    with FlopCounterMode(display=False):  # a dispatch mode has to see the operator
        torch.testing.assert_close(call(x, *nothing)[0], F.layer_norm(x, (9,)), **CLOSE)
    weight = torch.randn(18)[::2]
    torch.testing.assert_close(call(x, weight, *nothing[1:])[0], F.layer_norm(x, (9,), weight), **CLOSE)


@pytest.mark.skipif(not fastpath.in_use, reason="needs the fast path")
def test_moments_are_returned_where_they_are_wanted() -> None:
    x, nothing = torch.randn(4, 9), [None] * 7
    y, total, mean, std = bound(1)(x, *nothing)
    torch.testing.assert_close(mean, x.mean(1), **CLOSE)
    torch.testing.assert_close(std, x.std(1, correction=0), **CLOSE)
    assert total is None
    assert [t is None for t in bound(0)(x, *nothing)] == [False, True, True, True]
    assert torch.equal(y, bound(0)(x, *nothing)[0])


def test_without_the_fast_path_python_calls_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "in_use", False)
    x = torch.randn(4, 9)
    call = bound()
    assert call.__name__ == "by_operator"
    torch.testing.assert_close(call(x, *[None] * 7)[0], F.layer_norm(x, (9,)), **CLOSE)


def test_layers_do_not_load_inductor() -> None:
    program = (
        "import sys, torch, normkit; normkit.LayerNorm(8)(torch.randn(2, 8, requires_grad=True)).sum().backward();"
        "assert not any(name.startswith('torch._inductor.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
