"""Calls on a GPU that stay with Python, by a stub of the driver."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
from interpreted import draw, marks
from stub.calls import built, by_python, gpu, learnt, leaves, three
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from normkit.functional import batch_norm, group_norm, layer_norm
from normkit.kernels.triton import device, launch, recipes

FIXTURES = (built, gpu, learnt)
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = [
    *marks,
    pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}"),
]


def test_running_statistics_that_are_the_weight_stay_with_python(gpu, learnt):
    x, w, _ = leaves((3, 8, 5, 7), features=8)
    shared = w.detach().abs()
    for _ in range(3):
        batch_norm(x.detach(), torch.zeros(8), shared, shared, training=True)
    assert "share their memory" in recipes.refused[-1]


def test_hooks_may_return_a_saved_weight_in_another_dtype(gpu, learnt):
    x, w, b = leaves((6, 96))

    def gradient() -> Tensor:
        y = layer_norm(x, (96,), w, b)
        return torch.autograd.grad(y.square().sum(), x)[0]

    want = three(gradient)
    with saved_tensors_hooks(lambda t: t, lambda t: t.bfloat16() if t.shape == w.shape else t):
        got = three(gradient)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_misaligned_memory_and_other_dtypes_stay_with_python(gpu, learnt):
    x, w, b = leaves((6, 96))
    want = three(lambda: layer_norm(x, (96,), w, b))
    assert not by_python(want)
    known = len(learnt)
    shifted = torch.empty(6 * 96 + 1)[1:].view(6, 96).copy_(x.detach()).requires_grad_()
    weight = torch.empty(97)[1:].copy_(w.detach()).requires_grad_()
    for args in ((shifted, w), (x, weight)):
        y = layer_norm(args[0], (96,), args[1], b)
        assert by_python(y)
        assert torch.equal(y, want)
    assert len(learnt) == known


def test_padding_stays_with_python(gpu, learnt):
    x = draw(4, 6, 5, 3).requires_grad_()
    mask = torch.rand(4, 5, 3) > 0.3
    three(lambda: group_norm(x, 2))
    known = len(learnt)
    assert by_python(three(lambda: group_norm(x, 2, mask=mask)))
    assert len(learnt) == known


def test_second_derivatives_and_modes_go_to_python(gpu, learnt):
    x, w, b = leaves((2, 96), dtype=torch.float64, affine=torch.float64)
    y = three(lambda: layer_norm(x, (96,), w, b))
    assert not by_python(y)
    known = len(learnt)
    (dx,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).double().view(y.shape), create_graph=True)
    (second,) = torch.autograd.grad(dx, x, torch.ones_like(dx).cumsum(1))
    assert second.abs().max() > 0
    assert len(learnt) == known
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        layer_norm(x, (96,), w, b)
    assert any("normkit.norm" in name for name in seen)
    assert len(learnt) == known


def test_a_call_that_cannot_be_repeated_stays_with_python(gpu, learnt, monkeypatch):
    """Kernels that also call an operator of torch, or that need more than a plain launch, have no recipe."""
    x, w, b = leaves((6, 96))
    norm = launch.norm

    def and_more(*args):
        y, *rest = norm(*args)
        return (y + 0, *rest)

    monkeypatch.setattr(launch, "norm", and_more)
    assert by_python(three(lambda: layer_norm(x, (96,), w, b)))
    assert learnt == ["norm"]
    assert recipes.refused == ["the call needs aten.add.Tensor"]


def test_calls_that_hooks_of_triton_watch_stay_with_python(gpu, learnt, monkeypatch):
    x, w, b = leaves((6, 96))
    monkeypatch.setattr(device, "is_watched", lambda: True)
    assert by_python(three(lambda: layer_norm(x, (96,), w, b)))
    assert recipes.refused == ["hooks of Triton watch launches"]
