"""Which neighbours a graph of ``torch.compile`` for a CPU moves into normkit's operator, and which it must not."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._inductor import config
from torch.nn import functional as F

import normkit
from normkit import functional as N
from normkit.kernels.formula import Arguments

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what torch imports there
    from torch._inductor.fx_passes.pre_grad import pre_grad_passes

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
"""The same formulas in fp32, in another order of rounding, for gradients that are sums of up to 36 numbers near 1."""


class Compiled:
    """A function compiled up to the passes before gradients, which is then run operation by operation."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        torch._dynamo.reset()
        self.graph = torch.fx.Graph()

        def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
            module = pre_grad_passes(module, inputs)
            self.graph = module.graph
            return module.forward

        self.run = torch.compile(function, backend=backend, fullgraph=True, **options)

    def calls(self) -> list[Arguments]:
        target = torch.ops.normkit.norm.default
        return [Arguments(*node.args) for node in self.graph.nodes if node.target is target]

    def others(self) -> list[str]:
        """The names of all operations that are no call of the operator and do not only take one of its results."""
        nodes = [node for node in self.graph.nodes if node.op in ("call_function", "call_method")]
        skipped = (torch.ops.normkit.norm.default, operator.getitem)
        return [getattr(node.target, "__name__", node.target) for node in nodes if node.target not in skipped]


def same(function: Callable[..., Any], *inputs: Tensor, close: Any = CLOSE, **options: Any) -> Compiled:
    """Compare values and gradients of all inputs with those of eager mode."""
    compiled = Compiled(function, **options)
    results = []
    for run in (compiled.run, function):
        leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        out = run(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        torch.manual_seed(1)
        upstream = [torch.randn_like(t) for t in out]
        wanted = [t for t in leaves if t.requires_grad]
        results.append((*out, *torch.autograd.grad(out, wanted, upstream, allow_unused=True)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    return compiled


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def rows(x: Tensor, **fused: Any) -> Any:
    return N.layer_norm(x, x.shape[-1:], **fused)


ACTIVATIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", torch.relu),
    ("relu", lambda y: y.relu_()),
    ("relu", lambda y: F.relu(y, inplace=True)),
    ("leaky_relu", F.leaky_relu),
    ("silu", F.silu),
    ("gelu", F.gelu),
    ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
    ("sigmoid", torch.sigmoid),
    ("tanh", lambda y: y.tanh()),
]


@pytest.mark.parametrize(("name", "function"), ACTIVATIONS)
def test_activation_moves(name: str, function: Callable[[Tensor], Tensor]) -> None:
    compiled = same(lambda x, w: function(N.group_norm(x, 2, w)), leaf(3, 4, 3, 4), leaf(4))
    assert [a.activation for a in compiled.calls()] == [name]
    assert compiled.others() == []


def test_residual_moves_and_its_sum_is_returned() -> None:
    def block(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        s = x + r
        return rows(s), s * 2

    compiled = same(block, leaf(4, 9), leaf(4, 9))
    assert [a.residual is not None for a in compiled.calls()] == [True]
    assert compiled.others() == ["mul"]


def test_residual_and_activation_of_batch_norm_move() -> None:
    """As at the end of a block of ResNet, in place."""

    def block(x: Tensor, r: Tensor) -> Tensor:
        y = N.batch_norm(x, None, None, training=True)
        y += r
        return F.relu(y, inplace=True)

    compiled = same(block, leaf(4, 3, 5, 2), leaf(4, 3, 5, 2))
    (a,) = compiled.calls()
    assert a.skip is not None
    assert a.activation == "relu"
    assert compiled.others() == []


@pytest.mark.parametrize(
    ("function", "gate"),
    [
        ("none", lambda g: g),
        ("silu", F.silu),
        ("sigmoid", torch.sigmoid),
        ("plus_one", lambda g: 1 + g),
        ("plus_one", lambda g: g + 1.0),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_gate_moves(function: str, gate: Callable[[Tensor], Tensor], first: bool) -> None:
    def after(x: Tensor, g: Tensor) -> Any:
        return rows(x) * gate(g)

    def before(x: Tensor, g: Tensor) -> Any:
        return rows(x * gate(g))

    compiled = same(before if first else after, leaf(4, 9), leaf(4, 9))
    (a,) = compiled.calls()
    assert a.gate is not None
    assert (a.gate_activation, a.gate_first) == (function, first)
    assert compiled.others() == []


def test_modulation_becomes_weight_and_bias() -> None:
    def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Any:
        return rows(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    compiled = same(modulated, leaf(2, 5, 8), leaf(2, 8), leaf(2, 8))
    (a,) = compiled.calls()
    assert a.weight is not None
    assert a.bias is not None
    assert sorted(compiled.others()) == ["add", "unsqueeze", "unsqueeze"]


def test_operand_that_is_computed_later_moves_the_call() -> None:
    compiled = same(lambda x, v, w: rows(x) + F.linear(v, w), leaf(4, 9), leaf(4, 3), leaf(9, 3))
    (a,) = compiled.calls()
    assert a.skip is not None
    assert compiled.others() == ["linear"]


def test_of_two_norms_the_later_takes_the_sum() -> None:
    """As in a block of ResNet whose input is projected; running statistics of both are updated in between."""

    def block(x: Tensor, z: Tensor) -> Tensor:
        stats = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
        y = N.batch_norm(x, *stats[0], training=True)
        return torch.relu(y + N.batch_norm(z, *stats[1], training=True))

    compiled = same(block, leaf(4, 3, 5, 2), leaf(4, 3, 5, 2))
    first, second = compiled.calls()
    assert first.skip is None
    assert first.activation == "none"
    assert second.skip is not None
    assert second.activation == "relu"


def test_layers_of_a_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, bias=False), normkit.BatchNorm2d(4), torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(4, 4, 1), normkit.GroupNorm(2, 4), torch.nn.SiLU(),
    )  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    compiled = Compiled(model)
    ours = compiled.run(x)
    assert [a.activation for a in compiled.calls()] == ["relu", "silu"]
    with torch.no_grad():
        theirs = model.train()(x)  # the second batch of the running statistics, which y does not depend on
    torch.testing.assert_close(ours.detach(), theirs, **CLOSE)


# What stays ---------------------------------------------------------------------------------------------------


def mutated_operand(x: Tensor, r: Tensor) -> Any:
    r = r * 1
    y = rows(x)
    r.mul_(2)
    return y + r


def mutated_input(x: Tensor, r: Tensor) -> Any:
    x = x.detach() + 1
    y = rows(x)
    x.mul_(2)
    return y + r.cos() + x


def changed_mode(x: Tensor, r: Tensor) -> Any:
    y = rows(x)
    with torch.no_grad():
        z = torch.relu(y)
    return z + r


def sum_used_before(x: Tensor, r: Tensor) -> Any:
    s = x + r
    t = s * 2
    return rows(s) - t


def sum_in_place(x: Tensor, r: Tensor) -> Any:
    s = x * 1
    s += r
    return rows(s)


def masked(x: Tensor, r: Tensor) -> Any:
    return rows(x, mask=torch.ones(4, dtype=torch.bool)) + r


def has_skip(x: Tensor, r: Tensor) -> Any:
    return rows(x, skip=r) + r


STAYS: list[tuple[Callable[..., Any], list[str]]] = [
    (lambda x, r: (lambda y: y.relu() - y)(rows(x)), ["relu", "sub"]),
    (lambda x, r: torch.add(rows(x), r, alpha=2), ["add"]),
    (lambda x, r: rows(torch.add(x, r, alpha=2)), ["add"]),
    (lambda x, r: N.layer_norm(x, (9,), r[0]) + r[:1], ["add"]),
    (lambda x, r: rows(x) + 1.5, ["add"]),
    (lambda x, r: rows(x) + r.double(), ["double", "add"]),
    (lambda x, r: rows(x) + r.t().contiguous().t(), ["t", "contiguous", "t", "add"]),
    (lambda x, r: F.leaky_relu(rows(x), 0.2), ["leaky_relu"]),
    (lambda x, r: F.hardtanh(rows(x)), ["hardtanh"]),
    (lambda x, r: rows(x, activation="relu").sigmoid(), ["sigmoid"]),
    (lambda x, r: (lambda y: y + y)(rows(x)), ["add"]),
    (lambda x, r: rows(x.sin() + r), ["sin", "add"]),
    (mutated_operand, ["mul", "mul_", "add"]),
    (mutated_input, ["add", "mul_", "cos", "add", "add"]),
    (sum_used_before, ["add", "mul", "sub"]),
    (sum_in_place, ["mul", "iadd"]),
    (has_skip, ["add"]),
    (masked, ["add"]),
]


@pytest.mark.parametrize(("function", "names"), STAYS)
def test_stays(function: Callable[..., Any], names: list[str]) -> None:
    compiled = same(function, leaf(4, 9), leaf(4, 9))
    found = compiled.others()
    assert [name for name in found if name in names] == names


def test_mode_that_changes_in_between_keeps_the_activation() -> None:
    compiled = same(changed_mode, leaf(4, 9), leaf(4, 9))
    assert "relu" in compiled.others()


# Where it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """In half precision y is rounded once and not after each operation: a few of its roundings, of numbers up to 4."""
    eps = torch.finfo(dtype).eps
    close = {"atol": 16 * eps, "rtol": 4 * eps} if dtype is not torch.float64 else {"atol": 1e-12, "rtol": 1e-12}
    inputs = [leaf(4, 16, dtype=dtype) for _ in range(2)]
    compiled = same(lambda x, r: F.silu(rows(x) + r), *inputs, close=close)
    assert compiled.others() == []


def test_under_autocast() -> None:
    def block(x: Tensor, w: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.relu(rows(F.linear(x, w))).float()

    close = {"atol": 0.03, "rtol": 0.03}  # bfloat16 has 8 bits
    compiled = same(block, leaf(4, 9), leaf(8, 9), close=close)
    assert [a.activation for a in compiled.calls()] == ["relu"]


def test_sizes_that_vary() -> None:
    compiled = Compiled(lambda x, r: torch.relu(rows(x) + r), dynamic=True)
    for n in (4, 7):
        x, r = torch.randn(n, 9), torch.randn(n, 9)
        torch.testing.assert_close(compiled.run(x, r), torch.relu(F.layer_norm(x, (9,)) + r), **CLOSE)
    assert [(a.skip is not None, a.activation) for a in compiled.calls()] == [(True, "relu")]
    assert {"add", "relu"}.isdisjoint(compiled.others())  # what is left computes with sizes


def test_own_pass_of_the_user_is_called() -> None:
    seen: list[list[str]] = []

    def own(graph: torch.fx.Graph) -> None:
        seen.append([node.name for node in graph.nodes])

    with config.patch(pre_grad_custom_pass=own):
        compiled = Compiled(lambda x: torch.relu(rows(x)))
        compiled.run(torch.randn(4, 9))
        assert config.pre_grad_custom_pass is own
    assert len(seen) == 1
    assert not any("relu" in name for name in seen[0])
