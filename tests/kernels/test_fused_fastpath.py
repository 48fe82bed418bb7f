"""Fused calls take the fast path, too: the same bits as the Python path, and what watches calls sees them."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from normkit.errors import NormkitError
from normkit.functional import batch_norm, group_norm, instance_norm, layer_norm, layer_norm2d, rms_norm
from normkit.kernels import fastpath

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}")

IMAGES = {
    "batch_norm": lambda x, w, b, **e: batch_norm(x, None, None, w, b, training=True, **e),
    "eval": lambda x, w, b, **e: batch_norm(x, torch.arange(6.0).to(w), torch.full((6,), 2.25).to(w), w, b, **e),
    "instance_norm": lambda x, w, b, **e: instance_norm(x, None, None, w, b, **e),
    "group_norm": lambda x, w, b, **e: group_norm(x, 3, w, b, **e),
    "layer_norm2d": lambda x, w, b, **e: layer_norm2d(x, w, b, **e),
}
TOKENS = {
    "layer_norm": lambda x, w, b, **e: layer_norm(x, (6,), w, b, **e),
    "rms_norm": lambda x, w, b, **e: rms_norm(x, (6,), w, **e),
}
EXTRAS = list(itertools.product([None, "gelu"], [False, True], [False, True], [False, True]))


def image(channels_last=False, dtype=torch.float32):
    x = torch.randn(4, 6, 5, 3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def case(x: Tensor, activation, residual, mask, pair):
    """Leaves, and the extras of a call."""
    extras = {}
    if activation:
        extras["activation"] = activation
    if residual:
        extras["residual"] = torch.randn_like(x)
    if mask:
        extras["mask"] = torch.rand(x.shape[:1] + x.shape[2:] if x.dim() == 4 else x.shape[:-1]) > 0.3
    if pair:
        extras["return_residual"] = True
    parameter = torch.float64 if x.dtype is torch.float64 else torch.float32
    return x, torch.randn(6, dtype=parameter), torch.randn(6, dtype=parameter), extras


def results(method, x, w, b, extras):
    torch.manual_seed(7)
    extras = dict(extras)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    if "residual" in extras:
        extras["residual"] = extras["residual"].clone().requires_grad_()
        leaves.append(extras["residual"])
    out = method(*leaves[:3], **extras)
    ends = out if isinstance(out, tuple) else (out,)
    grads = torch.autograd.grad(ends, leaves, [torch.randn(end.shape).to(end.dtype) for end in ends], allow_unused=True)
    with torch.no_grad():
        inferred = method(x, w, b, **extras)
    inferred = inferred if isinstance(inferred, tuple) else (inferred,)
    return [*ends, *grads, *inferred], ends[0].grad_fn.name()


def shut(monkeypatch):
    monkeypatch.setattr(fastpath, "norm", lambda *_: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [*IMAGES, *TOKENS])
def test_same_bits_either_way(method, dtype, monkeypatch):
    function = {**IMAGES, **TOKENS}[method]
    inputs = [image(True, dtype), image(False, dtype)] if method in IMAGES else [torch.randn(4, 5, 6).to(dtype)]
    for x, extras in itertools.product(inputs, EXTRAS):
        if not any(extras):
            continue
        args = case(x, *extras)
        results(function, *args)  # so that the plan is known
        short, name = results(function, *args)
        # With nothing but return_residual the gradient is that of a plain call.
        assert name == ("NormkitFusedBackward" if any(extras[:3]) else "NormkitNormalizeBackward")
        with monkeypatch.context() as patch:
            shut(patch)
            long, name = results(function, *args)
        assert not name.startswith("Normkit")
        for got, want in zip(short, long, strict=True):
            if want is None:
                assert got is None
                continue
            assert torch.equal(got, want)
            assert got.stride() == want.stride() or got.dim() == 1


def test_running_statistics_are_those_of_the_longer_way(monkeypatch):
    x, mask = image(), torch.rand(4, 5, 3) > 0.3
    for method, extras in itertools.product((batch_norm, instance_norm), ({"activation": "relu"}, {"mask": mask})):
        options = {"training": True} if method is batch_norm else {}

        def moved(method=method, options=options, extras=extras):
            running = torch.zeros(6), torch.ones(6)
            version = running[0]._version
            method(x, *running, momentum=0.3, **options, **extras)
            assert running[0]._version > version
            return running

        moved()
        short = moved()
        with monkeypatch.context() as patch:
            shut(patch)
            long = moved()
        for got, want in zip(short, long, strict=True):
            # Moved in double there, in the buffers' own type here: one rounding.
            torch.testing.assert_close(got, want, rtol=2e-7, atol=1e-7)


def test_checkpointing_moves_running_statistics_once():
    x = image().requires_grad_()
    once, again = [(torch.zeros(6), torch.ones(6)) for _ in range(2)]

    def run(x: Tensor, running: tuple[Tensor, Tensor]) -> Tensor:
        return batch_norm(x, *running, training=True, activation="silu")

    for _ in range(2):
        y = run(x, once)
        z = checkpoint(lambda x: run(x, again), x, use_reentrant=False)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0])
    assert torch.equal(once[0], again[0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["batch_norm", "eval", "group_norm", "layer_norm"])
def test_first_and_second_derivatives(method, masked):
    tokens = method in TOKENS
    x = torch.randn(2, 3, 6, dtype=torch.float64) if tokens else torch.randn(2, 6, 3, dtype=torch.float64)
    r = torch.randn_like(x)
    w, b = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    extras = {"mask": torch.tensor([[True, True, False], [True, True, True]])} if masked else {}

    def call(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        function = {**IMAGES, **TOKENS}[method]
        return function(x, w, b, residual=r, return_residual=True, activation="tanh", **extras)

    inputs = (x.requires_grad_(), r.requires_grad_(), w, b)
    call(*inputs)
    assert call(*inputs)[0].grad_fn.name() == "NormkitFusedBackward"
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_gradients_that_nobody_asks_for_and_sums_alone():
    x, w, b, extras = case(image(), "gelu", True, False, True)
    r = extras["residual"].requires_grad_()
    for _ in range(2):
        y, total = group_norm(x, 3, w, b, **extras)
    assert torch.equal(total, x + r)
    (g,) = torch.autograd.grad(total, r, torch.ones_like(total), retain_graph=True)
    assert torch.equal(g, torch.ones_like(g))
    y.sum().backward()
    assert r.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_what_is_saved_is_seen_by_hooks_and_by_changes_in_place():
    x, w, b, extras = case(image().requires_grad_(), "gelu", True, True, False)
    kept = []
    for _ in range(2):
        kept.clear()
        with saved_tensors_hooks(lambda t: kept.append(t) or t.clone(), lambda t: t):
            y = group_norm(x, 3, w, b, **extras)
    (got,) = torch.autograd.grad(y.sum(), x)
    (want,) = torch.autograd.grad(group_norm(x, 3, w, b, **extras).sum(), x)
    assert torch.equal(got, want)
    # The sum, the mask, weight and bias; and moments that are small.
    assert sum(t.numel() == x.numel() for t in kept) == 1
    y = group_norm(x, 3, w, b, **extras)
    extras["mask"].logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_batches_of_gradients_and_modes():
    x, w, b, extras = case(image().requires_grad_(), "tanh", False, True, False)
    for _ in range(2):
        y = group_norm(x, 3, w, b, **extras)
    assert y.grad_fn.name() == "NormkitFusedBackward"
    many = torch.randn(3, *y.shape)
    each = [torch.autograd.grad(y, x, up, retain_graph=True)[0] for up in many]
    (batched,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(each))
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        group_norm(x, 3, w, b, **extras)
    assert any("normkit.norm" in name for name in seen)


@pytest.mark.parametrize(
    "extras",
    [
        {"activation": "rleu"},
        {"masks": None},
        {"mask": torch.ones(4, 5, 3)},
        {"mask": torch.ones(4, 6, 5, 3).bool()},
        {"residual": torch.randn(6, 5, 3)},
        {"residual": torch.randn(4, 6, 5, 3).double()},
        {"lengths": [1, 2]},
    ],
)
def test_what_is_wrong_is_refused_though_the_plan_is_known(extras):
    x, w, b, _ = case(image(), None, False, False, False)
    group_norm(x, 3, w, b, activation="relu")
    with pytest.raises((NormkitError, TypeError)):
        group_norm(x, 3, w, b, **extras)
    with pytest.raises(NormkitError):
        group_norm(x, 3, w[:5], b, activation="relu")


def test_masks_that_need_no_copy_and_those_that_do():
    """Of fewer dimensions, in other strides, of other bytes than 0 and 1, of padding alone."""
    x, w, b, _ = case(image(), None, False, False, False)
    mask = torch.rand(4, 5, 3) > 0.3
    mask[2] = False
    want = group_norm(x, 3, w, b, mask=mask)
    assert not want[2].any()
    assert torch.equal(want, group_norm(x, 3, w, b, mask=mask))
    assert torch.equal(want, group_norm(x, 3, w, b, mask=mask.transpose(1, 2).contiguous().transpose(1, 2)))
    odd = (mask.to(torch.uint8) * 6).view(torch.bool)
    assert torch.equal(want, group_norm(x, 3, w, b, mask=odd))
    row = torch.tensor([True, False, True])
    assert torch.equal(group_norm(x, 3, w, b, mask=row), group_norm(x, 3, w, b, mask=row.expand(4, 5, 3).contiguous()))
