"""Gate, skip and weights that vary over more than the features, against the same composed of torch's functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from normkit import errors, functional
from normkit.kernels.formula import ACTIVATIONS

# name: the function, the input's shape, its reduced dimensions, the shape of weight and bias.
METHODS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "layer_norm": (lambda x, w, b, **k: functional.layer_norm(x, (8,), w, b, **k), (3, 5, 8), (2,), (8,)),
    "rms_norm": (lambda x, w, b, **k: functional.rms_norm(x, (8,), w, 1e-5, **k), (3, 5, 8), (2,), (8,)),
    "layer_norm2d": (lambda x, w, b, **k: functional.layer_norm2d(x, w, b, 1e-5, **k), (3, 4, 5, 2), (1,), (4, 1, 1)),
    "instance_norm": (
        lambda x, w, b, **k: functional.instance_norm(x, None, None, w, b, **k), (3, 4, 5, 2), (2, 3), (4, 1, 1),
    ),
    "batch_norm": (
        lambda x, w, b, **k: functional.batch_norm(x, None, None, w, b, True, **k), (3, 4, 5, 2), (0, 2, 3), (4, 1, 1),
    ),
    "group_norm": (lambda x, w, b, **k: functional.group_norm(x, 2, w, b, **k), (3, 4, 5, 2), (), (4, 1, 1)),
}  # fmt: skip


def standardized(name: str, x: Tensor) -> Tensor:
    if name == "group_norm":
        return standardized("instance_norm", x.reshape(3, 2, 10, 2)).reshape(x.shape)
    dims = METHODS[name][2]
    mean = 0 if name == "rms_norm" else x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + 1e-5).sqrt()


def shape_of(name: str, kind: str) -> tuple[int, ...]:
    """The shape of a weight, gate or skip that varies over some dimensions."""
    shape, feature = METHODS[name][1], len(METHODS[name][1]) - 1 if name in ("layer_norm", "rms_norm") else 1
    kept = {
        "sample": {0}, "sample and feature": {0, feature}, "feature": {feature}, "whole": set(range(len(shape))),
        "position": set(range(len(shape))) - {feature},
    }[kind]  # fmt: skip
    return tuple(size if dim in kept else 1 for dim, size in enumerate(shape))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def laid_out(t: Tensor, layout: str) -> Tensor:
    return t.to(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in METHODS for layout in LAYOUTS if layout == "contiguous" or len(METHODS[name][1]) == 4],
)
@pytest.mark.parametrize("kind", ["sample", "sample and feature", "position", "whole"])
def test_a_weight_varies_over_what_it_is_given_for(name: str, kind: str, layout: str):
    function, shape, *_ = METHODS[name]
    x, g = (laid_out(draw(*shape, seed=i), layout) for i in (1, 2))
    w, b = (draw(*shape_of(name, kind), seed=i) for i in (3, 4))
    ours, exact = ([t.clone().requires_grad_() for t in (x, w, b)] for _ in range(2))
    bias = None if name == "rms_norm" else ours[2]
    y = function(ours[0], ours[1], bias)
    want = standardized(name, exact[0]) * exact[1] + (0 if bias is None else exact[2])
    torch.testing.assert_close(y, want)
    assert y.stride() == x.stride()
    leaves = slice(2 if bias is None else 3)
    for got, exactly in zip(
        torch.autograd.grad(y, ours[leaves], g), torch.autograd.grad(want, exact[leaves], g), strict=True
    ):
        torch.testing.assert_close(got, exactly)


@pytest.mark.parametrize(
    ("gate_kind", "skip_kind"), list(itertools.product(["whole", "sample and feature", None], repeat=2))
)
@pytest.mark.parametrize("name", METHODS)
def test_gate_and_skip(name: str, gate_kind: str | None, skip_kind: str | None):
    function, shape, _, feature = METHODS[name]
    x, w, b, dy = draw(*shape, seed=1), draw(feature[0], seed=2), draw(feature[0], seed=3), draw(*shape, seed=4)
    b = None if name == "rms_norm" else b
    for activation, gate_activation, first in (
        (None, "silu", False), ("relu", None, False), (None, "sigmoid", True), ("tanh", "gelu", True),
    ):  # fmt: skip
        if gate_kind is None:
            gate_activation, first = None, False
        gate = None if gate_kind is None else draw(*shape_of(name, gate_kind), seed=5)
        skip = None if skip_kind is None else draw(*shape_of(name, skip_kind), seed=6)

        def composed(x, w, b, gate, skip, first=first, f=gate_activation, last=activation):
            factor = 1 if gate is None else ACTIVATIONS[f or "none"](gate)
            z = standardized(name, x * factor if first else x) * w.reshape(feature)
            z = z if b is None else z + b.reshape(feature)
            z = z if first else z * factor
            return ACTIVATIONS[last or "none"](z if skip is None else z + skip)

        def ours(x, w, b, gate, skip, first=first, f=gate_activation, last=activation):
            extra = {"activation": last, "gate": gate, "skip": skip, "gate_activation": f, "gate_first": first}
            return function(x, w, b, **extra)

        given = [None if t is None else t.clone().requires_grad_() for t in (x, w, b, gate, skip)]
        leaves = [t for t in given if t is not None]
        y, want = ours(*given), composed(*given)
        torch.testing.assert_close(y, want)
        for got, exactly in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, leaves, dy), strict=True):
            torch.testing.assert_close(got, exactly)


@pytest.mark.parametrize("first", [False, True])
def test_second_derivatives_and_padding(first: bool):
    x, gate, skip = (draw(2, 3, 4, seed=i).requires_grad_() for i in range(3))
    w = draw(4, seed=4).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, True]])

    def call(x: Tensor, w: Tensor, gate: Tensor, skip: Tensor) -> Tensor:
        return functional.layer_norm(
            x, (4,), w, gate=gate, skip=skip, gate_activation="silu", gate_first=first, activation="tanh", mask=mask
        )

    assert gradcheck(call, (x, w, gate, skip))
    assert gradgradcheck(call, (x, w, gate, skip))
    with torch.no_grad():
        for t in (x, gate, skip):
            t[~mask] = float("nan")
    y = call(x, w, gate, skip)
    assert not y[~mask].any()
    for grad in torch.autograd.grad(y.sum(), (x, gate, skip)):
        assert not grad[~mask].any()
        assert grad.isfinite().all()


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("error", "said", "extras"),
    [
        (errors.ShapeError, r"gate of layer_norm must broadcast to the input's shape \(2, 3, 4\)", {"gate": X[:, :2]}),
        (errors.ShapeError, r"got \(4,\): give each dimension size 1", {"skip": X[0, 0]}),
        (errors.DtypeError, "skip of layer_norm must have the input's dtype", {"skip": X.bfloat16()}),
        (errors.ArgumentError, "gate_activation of layer_norm need a gate", {"gate_activation": "silu"}),
        (errors.ArgumentError, "did you mean 'silu'", {"gate": X, "gate_activation": "silo"}),
        (errors.ArgumentError, "got both: add the residual before", {"gate": X, "gate_first": True, "residual": X}),
        (errors.ShapeError, r"weight of layer_norm must have shape \(4,\) or broadcast", {"weight": X[:, :2]}),
    ],
)
def test_what_does_not_broadcast_is_refused(error: type[Exception], said: str, extras: dict[str, Any]):
    with pytest.raises(error, match=said):
        functional.layer_norm(X, (4,), **extras)


def test_a_pattern_takes_them_as_well_and_transforms_see_through_them():
    x, w = draw(4, 4, seed=1), draw(4, 1, seed=2)  # as many weights as there are channels, and not of the channels
    want = standardized("rms_norm", x.unsqueeze(0))[0] * w
    torch.testing.assert_close(functional.normalize(x, "b [c]", w, center=False), want)
    torch.testing.assert_close(functional.normalize(x, "b [c]", w, center=False), want)  # where the plan is known
    batched = torch.func.vmap(lambda w: functional.normalize(x, "b [c]", w, center=False))(torch.stack([w, 2 * w]))
    torch.testing.assert_close(batched, torch.stack([want, 2 * want]))
    with pytest.raises(errors.ShapeError, match=r"weight of normalize must have shape \(4,\) or broadcast"):
        functional.normalize(x, "b [c]", draw(3, 1), center=False)


def test_parameters_broadcast_where_all_dimensions_are_features_and_where_some_are_empty():
    x = draw(2, 3, seed=1)
    flat = (x - x.mean()) / ((x - x.mean()).square().mean() + 1e-5).sqrt()
    w = draw(1, 3, seed=2)
    torch.testing.assert_close(functional.layer_norm(x, (2, 3), w), flat * w)
    one, v = draw(1, seed=3), draw(3, seed=4)
    want = (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(functional.layer_norm(v, (3,), one, gate=one, skip=one), want * one * one + one)
    assert functional.group_norm(draw(5, 0, 7, 2), 1, None, draw(1, 1, 1, 1)).shape == (5, 0, 7, 2)


@pytest.mark.parametrize("whole", [True, False])
def test_padding_of_what_is_multiplied_reaches_no_gradient(whole: bool):
    x, w = draw(2, 3, 4, seed=1).requires_grad_(), draw(*((2, 3, 4) if whole else (4,)), seed=2).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    gate = draw(2, 3, 4 if whole else 1, seed=3)
    gate[0, 2] = float("nan")
    gate.requires_grad_()
    y = functional.layer_norm(x, (4,), w, gate=gate, gate_activation="silu", mask=mask)
    for grad in torch.autograd.grad(y.sum(), (x, w, gate)):
        assert grad.isfinite().all()


def test_regions_of_several_rows_with_a_weight_for_each_place_of_a_row():
    """Cells that consist of several rows of 64 and more elements, whose weights repeat in each row."""
    x, dy = draw(5, 4, 4, 64, seed=1), draw(5, 4, 4, 64, seed=2)
    for w in (None, draw(64, seed=3)):
        got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
        functional.normalize(got, "[w] h b [c]", w).backward(dy)
        centred = want - want.mean((0, 3), keepdim=True)
        exact = centred / (centred.square().mean((0, 3), keepdim=True) + 1e-5).sqrt()
        (exact if w is None else exact * w).backward(dy)
        torch.testing.assert_close(got.grad, want.grad)


def test_a_graph_with_symbolic_sizes_takes_a_weight_of_each_sample():
    compiled = torch.compile(lambda x, w: functional.layer_norm(x, (4,), w), backend="aot_eager", dynamic=True)
    x, w = draw(3, 2, 4), draw(3, 1, 4)
    torch.testing.assert_close(compiled(x, w), functional.layer_norm(x, (4,), w))


@pytest.mark.parametrize("pattern", ["b h [c]", "b [c] h"])
def test_a_graph_finds_the_channels_where_the_pattern_has_them(pattern: str):
    compiled = torch.compile(lambda x, w, g: functional.normalize(x, pattern, w, gate=g), backend="aot_eager")
    x, w, g = draw(2, 4, 4, seed=1), draw(4, seed=2), draw(1, 1, 4, seed=3)
    torch.testing.assert_close(compiled(x, w, g), functional.normalize(x, pattern, w, gate=g))


def test_a_method_without_gates_takes_weights_of_the_features_alone():
    with pytest.raises(errors.ShapeError, match=r"weight of evo_norm_s0 must have shape \(4,\)"):
        functional.evo_norm_s0(draw(3, 4, 5, 2), 2, None, draw(3, 4, 1, 1))
