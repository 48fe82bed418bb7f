"""Calls that fuse a gate and others in graphs: plain operations for a GPU, and torch's functions for export."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from normkit import functional as N
from normkit.kernels import formula
from normkit.kernels.formula import Arguments
from normkit.kernels.traced import decomposed, export
from transforms.graphs import CLOSE, Graphs, compiled, of_normkit, taken_for_gpu

PATTERNS = ("[b] c [...]", "b (g=2 [c]) [...]", "b [c] ...", "... [c]")
FUSED = {
    "gate": {"gate_activation": "silu"},
    "gate first": {"gate_activation": "gelu", "gate_first": True},
    "gate and skip": {"gate_activation": "plus_one", "activation": "tanh"},
    "skip": {"activation": "silu"},
    "zero centered": {"zero_centered": True},
}


def arguments(pattern: str, name: str, of_samples: bool = False) -> Arguments:
    torch.manual_seed(0)
    x, gate, skip = (torch.randn(3, 4, 5, 6) for _ in range(3))
    size = 6 if pattern == "... [c]" else 4
    shape = [size] if not of_samples else [3, 1, 1, 6] if pattern == "... [c]" else [3, 4, 1, 1]
    w, b = torch.randn(shape), torch.randn(shape)
    options = FUSED[name]
    return Arguments(
        x, w, b, pattern, 1e-5, True, gate=gate if "gate" in name else None, skip=skip if "skip" in name else None,
        **options,
    )  # fmt: skip


def wide(a: Arguments) -> Arguments:
    return a._replace(**{name: t.double() for name, t in a._asdict().items() if isinstance(t, Tensor)})


@pytest.mark.parametrize("of_samples", [False, True], ids=["features", "samples"])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_plain_operations_give_what_the_definition_gives(pattern: str, name: str, of_samples: bool):
    a = arguments(pattern, name, of_samples)
    exact = wide(a)
    leaves = {
        field: t.requires_grad_() for field, t in exact._asdict().items() if isinstance(t, Tensor) and field != "mean"
    }
    want = formula.norm(exact).y
    dy = torch.randn_like(a.x)
    y, _, mean, std = decomposed.norm(a)
    torch.testing.assert_close(y.double(), want, **CLOSE)
    grads = decomposed.norm_backward(dy, a._replace(mean=mean, var=std), False)
    wants = dict(zip(leaves, torch.autograd.grad(want, list(leaves.values()), dy.double()), strict=True))
    for field, got in grads._asdict().items():
        assert (got is None) == (field not in wants)
        if got is not None:
            # Sums of up to 90 products of numbers near 1.
            torch.testing.assert_close(got.double().reshape(-1), wants[field].reshape(-1), atol=5e-5, rtol=1e-5)
    exported = export.norm(a, False).y
    torch.testing.assert_close(exported.double(), want, **CLOSE)


@pytest.mark.parametrize("padded", [False, True])
def test_padding_may_hold_anything(padded: bool):
    for name in ("gate", "gate first", "gate and skip"):
        a = arguments("b c [...]", name)
        mask = torch.rand(3, 1, 5, 6) > 0.4 if padded else torch.ones(3, 1, 5, 6, dtype=torch.bool)
        clean = a._replace(mask=mask)
        spoilt = {
            field: torch.where(mask, t, torch.nan)
            for field, t in (("x", a.x), ("gate", a.gate), ("skip", a.skip))
            if t is not None
        }
        outs = []
        for call in (clean, clean._replace(**spoilt)):
            y, _, mean, std = decomposed.norm(call)
            outs.append([y, *decomposed.norm_backward(a.x, call._replace(mean=mean, var=std), False)])
        for one, other in zip(*outs, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_half_precision_has_the_bits_of_single_operations(dtype: torch.dtype):
    a = arguments("... [c]", "zero centered")._replace(cast_first=True)
    a = a._replace(x=a.x.to(dtype))
    for function in (decomposed.norm, lambda a: export.norm(a, False)):
        plain = function(a._replace(weight=None, bias=None)).y
        assert torch.equal(function(a).y, plain * (a.weight + 1).to(dtype) + a.bias.to(dtype))
        assert torch.equal(function(a._replace(bias=None)).y, plain * (a.weight + 1).to(dtype))


def test_a_graph_has_plain_operations():
    """A gate, a skip and a weight for each sample, through the functions."""
    x, gate, skip = (torch.randn(3, 5, 8) for _ in range(3))
    scale, dy = torch.randn(3, 1, 8), torch.randn(3, 5, 8)

    def run(x: Tensor, gate: Tensor, skip: Tensor, scale: Tensor) -> list[Tensor]:
        return [
            N.layer_norm(x, (8,), scale, scale, gate=gate, gate_activation="silu", skip=skip, activation="gelu"),
            N.rms_norm(x, (8,), scale[0, 0], gate=gate, gate_activation="silu", gate_first=True),
        ]

    run(x, gate, skip, scale)  # a pattern is parsed before it is compiled
    graphs: Graphs = []
    with taken_for_gpu("cpu"):
        sides = []
        for function in (run, compiled(run, graphs)):
            leaves = [t.clone().requires_grad_() for t in (x, gate, skip, scale)]
            outputs = function(*leaves)
            sides.append((*outputs, *torch.autograd.grad(sum((y * dy).sum() for y in outputs), leaves)))
        torch.testing.assert_close(*sides, **CLOSE)
    assert of_normkit(graphs) == set()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_keeps_the_bound(dtype: torch.dtype):
    """4 eps (1 + |mean| / std), and one rounding in half precision, on the code that Inductor writes."""
    names = ("gate", "gate first", "gate and skip", "zero centered")
    spread = 1e-2 if dtype is torch.float32 else 1e2
    cases = []
    for pattern, name in itertools.product(PATTERNS, names):
        a = arguments(pattern, name, of_samples=pattern == "... [c]")
        far = a.x if a.gate_first else a.x * spread + 1e4
        halves = {field: t.to(dtype) for field, t in (("gate", a.gate), ("skip", a.skip)) if t is not None}
        cases.append(a._replace(x=far.to(dtype), **halves))
    with taken_for_gpu("cpu"):
        run = torch.compile(lambda cases: [torch.ops.normkit.norm(*a)[0] for a in cases], fullgraph=True)
        ys = run([tuple(a) for a in cases])
    for a, y in zip(cases, ys, strict=True):
        want, _, mean, std = formula.norm(wide(a))
        condition = (mean.abs() / (std.square() + a.eps).sqrt()).max()
        rounding = 0.0 if dtype is torch.float32 else torch.finfo(dtype).eps / 2
        bound = 4 * torch.finfo(torch.float32).eps * (1 + condition) + rounding
        assert (y.double() - want).abs().max() / want.abs().max() <= bound, a
