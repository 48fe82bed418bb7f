"""Gates, skips and modulated weights take the fast path, on a CPU and on a GPU: the same bits as by Python."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from normkit.errors import NormkitError
from normkit.functional import batch_norm, gated_rms_norm, group_norm, instance_norm, layer_norm
from normkit.kernels import fastpath

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}")

Method = Callable[..., Any]
TOKENS: dict[str, Method] = {
    "layer_norm": lambda x, w, b, **e: layer_norm(x, (6,), w, b, **e),
    "gated, in groups": lambda x, w, b, **e: gated_rms_norm(x, e.pop("gate", None), w, group_size=3, **e),
}
IMAGES: dict[str, Method] = {
    "batch_norm": lambda x, w, b, **e: batch_norm(x, None, None, w, b, training=True, **e),
    "eval": lambda x, w, b, **e: batch_norm(x, torch.arange(6.0).to(w), torch.full((6,), 2.25).to(w), w, b, **e),
    "instance_norm": lambda x, w, b, **e: instance_norm(x, None, None, w, b, **e),
    "group_norm": lambda x, w, b, **e: group_norm(x, 3, w, b, **e),
}
# Which of the tensors a call has, and its other arguments.
AROUND: dict[str, tuple[str, dict[str, Any]]] = {
    "gate": ("g", {}),
    "gate and silu": ("g", {"gate_activation": "silu", "activation": "silu"}),
    "gate first": ("g", {"gate_activation": "sigmoid", "gate_first": True}),
    "gate and skip": ("gs", {"gate_activation": "silu"}),
    "skip": ("s", {}),
    "skip and gelu": ("s", {"activation": "gelu"}),
    "all": ("gsr", {"gate_activation": "tanh", "activation": "gelu", "return_residual": True}),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the fast path has taken each call."""
    seen: list[bool] = []
    through = fastpath.norm

    def norm(*args: Any) -> Any:
        y = through(*args)
        seen.append(y is not None)
        return y

    monkeypatch.setattr(fastpath, "norm", norm)
    return seen


def image(channels_last: bool, dtype: torch.dtype) -> Tensor:
    x = torch.randn(4, 6, 5, 3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def outputs_and_gradients(method: Method, leaves: dict[str, Tensor], options: dict[str, Any]) -> list[Tensor]:
    names = {"g": "gate", "s": "skip", "r": "residual"}
    own = {key: t.detach().requires_grad_() for key, t in leaves.items()}
    around = {names[key]: t for key, t in own.items() if key in names}
    out = method(own["x"], own.get("w"), own.get("b"), **around, **options)
    outs = list(out) if isinstance(out, tuple) else [out]
    upstream = [torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype) for y in outs]
    grads = torch.autograd.grad(outs, list(own.values()), upstream, allow_unused=True)
    return [*outs, *[t for t in grads if t is not None]]


def check_same_bits(method: Method, leaves: dict[str, Tensor], options: dict[str, Any]) -> None:
    """Three calls: by Python; one that may make the plan known; and the last one by C++, if it takes it."""
    through = fastpath.norm
    fastpath.norm = lambda *_: None
    try:
        expected = outputs_and_gradients(method, leaves, options)
    finally:
        fastpath.norm = through
    for _ in range(2):
        found = outputs_and_gradients(method, leaves, options)
    for ours, other in zip(found, expected, strict=True):
        assert ours.dtype is other.dtype
        assert ours.stride() == other.stride()
        assert torch.equal(ours, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("around", AROUND)
def test_gate_and_skip_have_the_same_bits_either_way(around, dtype, taken):
    tensors, options = AROUND[around]
    parameter = torch.float64 if dtype is torch.float64 else torch.float32
    for name, method in (TOKENS | IMAGES).items():
        for channels_last in (False, True)[: 1 + (name in IMAGES)]:
            x = image(channels_last, dtype) if name in IMAGES else torch.randn(3, 5, 6).to(dtype)
            leaves = {"x": x, "w": torch.randn(6, dtype=parameter), "b": torch.randn(6, dtype=parameter)}
            if name not in IMAGES and "gated" in name:
                del leaves["b"]
            leaves |= {key: torch.randn_like(x) for key in tensors}
            check_same_bits(method, leaves, options)
            assert taken[-1]


SHAPES = {
    "of samples and channels": (4, 6, 1, 1),
    "of one sample": (1, 6, 1, 1),
    "of positions": (1, 1, 5, 3),
    "of all elements": (4, 6, 5, 3),
    "the same for all": (1, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_modulated_weights_have_the_same_bits_either_way(shape, dtype, taken):
    direct = []
    for name, method in IMAGES.items():
        for channels_last in (False, True):
            for options in ({}, {"activation": "silu"}):
                x = image(channels_last, dtype)
                w = torch.randn(shape).to(dtype)
                if w.shape == x.shape:
                    w = torch.empty_like(x).copy_(w)
                check_same_bits(method, {"x": x, "w": w, "b": torch.randn_like(w)}, options)
                if taken[-1]:
                    direct.append((name, channels_last))
    # Layouts that need a copy are Python's.
    everywhere = [(name, last) for name in IMAGES for last in (False, True)]
    assert len(set(direct)) >= len(everywhere) - 2


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 6), (1, 5, 6), (3, 5, 6), (1, 1, 6)])
def test_adaptive_layer_norm_takes_it(shape, zero_centered, taken):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 5, 6).to(dtype)
        leaves = {"x": x, "w": torch.randn(shape).to(dtype), "b": torch.randn(shape).to(dtype)}
        check_same_bits(TOKENS["layer_norm"], leaves, {"zero_centered": zero_centered})
        assert taken[-1]


def test_derivatives_of_first_and_second_order(taken):
    x, g, s = (torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    w = torch.randn(2, 1, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 1, 6, dtype=torch.float64, requires_grad=True)

    def gated(x: Tensor, g: Tensor, s: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return layer_norm(x, (6,), w, b, gate=g, gate_activation="silu", skip=s, activation="tanh")

    def first(x: Tensor, g: Tensor) -> Tensor:
        return layer_norm(x, (6,), gate=g, gate_activation="sigmoid", gate_first=True)

    for _ in range(2):
        gated(x, g, s, w, b), first(x, g)
    assert taken[-2:] == [True, True]
    assert gradcheck(gated, (x, g, s, w, b))
    assert gradgradcheck(gated, (x, g, s, w, b))
    assert gradcheck(first, (x, g))
    assert gradgradcheck(first, (x, g))


def test_gradients_that_nobody_asks_for(taken):
    x, g, s = (torch.randn(4, 6, requires_grad=True) for _ in range(3))
    for _ in range(2):
        y = layer_norm(x, (6,), gate=g, skip=s)
    assert taken[-1]
    upstream = torch.randn(4, 6)
    alone = [torch.autograd.grad(y, t, upstream, retain_graph=True)[0] for t in (x, g, s)]
    together = torch.autograd.grad(y, (x, g, s), upstream)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(alone[2], upstream)


def test_what_is_saved_is_seen_by_hooks_and_by_changes_in_place(taken):
    x, g = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    layer_norm(x, (6,), gate=g)
    plain = torch.autograd.grad(layer_norm(x, (6,), gate=g).square().sum(), (x, g))
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(t.shape) or t.clone(), lambda t: t):
        hooked = torch.autograd.grad(layer_norm(x, (6,), gate=g).square().sum(), (x, g))
    assert taken[-1]
    assert packed.count(x.shape) >= 2
    assert all(torch.equal(a, b) for a, b in zip(plain, hooked, strict=True))
    again = checkpoint(lambda x, g: layer_norm(x, (6,), gate=g), x, g, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, torch.autograd.grad(again.square().sum(), (x, g)), strict=True))
    y, changed = layer_norm(x, (6,), gate=(g.detach() * 1).requires_grad_()), g.detach().clone()
    y = layer_norm(x, (6,), gate=changed)
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_wrong_is_refused_though_the_plan_is_known():
    x = torch.randn(3, 5, 6)
    for _ in range(2):
        layer_norm(x, (6,), torch.ones(3, 1, 6), torch.ones(3, 1, 6), gate=x)
    for wrong, said in (
        ({"gate_activation": "silu"}, "need a gate"),
        ({"gate": x, "gate_first": True, "residual": x}, "add the residual before"),
        ({"gate": x.double()}, "dtype"),
        ({"gate": torch.ones(3, 5, 5)}, "broadcast"),
        ({"weight": torch.ones(2, 1, 6), "bias": torch.ones(2, 1, 6)}, "broadcast"),
        ({"gate": x, "gate_activation": "swish"}, "swish"),
    ):
        with pytest.raises(NormkitError, match=said):
            layer_norm(x, (6,), **wrong)


def test_a_mask_with_a_gate_keeps_padding_from_all_gradients(taken):
    x, g = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 6)
    g[0, 3:] = float("nan")
    g.requires_grad_()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = False
    for _ in range(2):
        y = layer_norm(x, (6,), gate=g, mask=mask)
    assert not taken[-1]
    grads = torch.autograd.grad(y.sum(), (x, g))
    assert all(t.isfinite().all() for t in grads)
    assert not grads[1][0, 3:].any()
