"""The short way in, in C++, does what the longer one in Python does, to the bit, and is seen by all that watches."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import sysconfig
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import normkit
from normkit.functional import batch_norm, group_norm, layer_norm, normalize, rms_norm
from normkit.kernels import autograd
from normkit.kernels.door import door

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = pytest.mark.skipif(not HEADERS.exists(), reason=f"the door is not built without {HEADERS}")

METHODS = {
    "layer_norm": lambda x, w, b: layer_norm(x, (6,), w, b),
    "rms_norm": lambda x, w, b: rms_norm(x, (6,), w),
    "group_norm": lambda x, w, b: group_norm(x.transpose(1, -1).contiguous(), 3, w, b),
    "batch_norm": lambda x, w, b: batch_norm(x.transpose(1, -1).contiguous(), None, None, w, b, training=True),
    "eval": lambda x, w, b: batch_norm(x.transpose(1, -1), torch.arange(6.0).to(w), torch.ones(6).to(w), w, b),
    "last two": lambda x, w, b: normalize(x, "b [n c]", w, b),
}


def leaves(dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    parameter = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.randn(4, 5, 6, generator=make).to(dtype).requires_grad_()
    return x, *(torch.randn(6, generator=make).to(parameter).requires_grad_() for _ in range(2))


def calls(method, dtype):
    x, w, b = leaves(dtype)
    if method in ("layer_norm", "rms_norm") and dtype is not torch.float64:
        w, b = (t.detach().to(dtype).requires_grad_() for t in (w, b))
    y = METHODS[method](x, w, b)
    used = [t for t in (x, w, b) if t is not b or method != "rms_norm"]
    return y, torch.autograd.grad(y, used, torch.ones_like(y).cumsum(-1))


def test_the_door_is_open():
    assert door() is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_as_the_longer_way(method, dtype, monkeypatch):
    y, grads = calls(method, dtype)
    monkeypatch.setattr(autograd, "door", lambda: None)
    assert all(
        torch.equal(a, b) for a, b in zip((y, *grads), *[(z, *more) for z, more in [calls(method, dtype)]], strict=True)
    )


def test_running_statistics_move_as_by_the_longer_way(monkeypatch):
    x = torch.randn(4, 6, 5)
    statistics = []
    for way in (door(), None):
        monkeypatch.setattr(autograd, "door", lambda way=way: way)
        layers = normkit.BatchNorm1d(6), normkit.InstanceNorm1d(6, track_running_stats=True)
        for layer in layers:
            layer(x)
        statistics.append([t for layer in layers for t in (layer.running_mean, layer.running_var)])
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_first_and_second_order(method):
    x, w, b = leaves(torch.float64)
    assert gradcheck(METHODS[method], (x, w, b))
    assert gradgradcheck(METHODS[method], (x, w, b))


def test_a_gradient_penalty():
    x, w, b = leaves()
    y = layer_norm(x, (6,), w, b)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(w.grad).all()


def test_batched_gradients_and_gradients_of_another_layout():
    x, w, b = leaves()
    y = layer_norm(x, (6,), w, b)
    dys = torch.randn(3, *y.shape)
    (many,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
    for got, dy in zip(many, dys, strict=True):
        (one,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        # Another order of the same sums of six terms.
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-6)
    (strided,) = torch.autograd.grad(y, x, dys[0].transpose(0, 1).contiguous().transpose(0, 1), retain_graph=True)
    (plain,) = torch.autograd.grad(y, x, dys[0], retain_graph=True)
    assert torch.equal(strided, plain)
    (expanded,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(expanded).all()


@pytest.mark.parametrize("only", [0, 1, 2])
def test_only_what_wants_a_gradient_gets_one(only):
    tensors = [t.detach().requires_grad_(i == only) for i, t in enumerate(leaves())]
    all_of_them = leaves()
    layer_norm(tensors[0], (6,), *tensors[1:]).square().sum().backward()
    layer_norm(all_of_them[0], (6,), *all_of_them[1:]).square().sum().backward()
    for i, (t, full) in enumerate(zip(tensors, all_of_them, strict=True)):
        assert (t.grad is None) if i != only else torch.equal(t.grad, full.grad)


def test_a_second_backward_and_a_change_in_place_are_refused_as_torch_does():
    x, w, b = leaves()
    y = layer_norm(x * 1, (6,), w, b)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    inner = x * 1
    y = layer_norm(inner, (6,), w, b)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_grad_and_inference_mode():
    x, w, b = leaves()
    want = layer_norm(x, (6,), w, b).detach()
    with torch.no_grad():
        y = layer_norm(x, (6,), w, b)
    assert not y.requires_grad
    assert torch.equal(y, want)
    with torch.inference_mode():
        y = layer_norm(x, (6,), w, b)
        normkit.BatchNorm1d(5)(x)
    assert y.is_inference()
    assert torch.equal(y, want)


def test_hooks_see_what_is_saved_and_what_flows():
    x, w, b = leaves()
    saved, seen = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer_norm(x, (6,), w, b)
    assert any(t.data_ptr() == x.data_ptr() for t in saved)
    y.register_hook(lambda g: seen.append(g) or g * 2)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).cumsum(-1), retain_graph=True)
    assert len(seen) == 1
    assert y.grad_fn.name() == "NormkitNormalizeBackward"
    assert torch.isfinite(dx).all()


def test_nothing_is_kept_alive():
    x, w, b = leaves()
    y = layer_norm(x, (6,), w, b)
    gone = weakref.ref(x)
    del x, y
    gc.collect()
    assert gone() is None
    x, w, b = (t.detach().requires_grad_() for t in (torch.randn(64, 64), torch.ones(64), torch.zeros(64)))
    memory = []
    for _ in range(3):
        for _ in range(2000):
            torch.autograd.grad(layer_norm(x, (64,), w, b), (x, w, b), x.detach())
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # 2000 calls that kept their 16 KiB would show as 32 MiB.
    assert memory[2] - memory[1] < 8 * 1024


def test_threads_may_call_at_once():
    want, results = calls("layer_norm", torch.float32), []

    def work():
        results.extend(calls("layer_norm", torch.float32) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(torch.equal(y, want[0]) and torch.equal(g[0], want[1][0]) for y, g in results)


def test_it_can_be_turned_off():
    code = (
        "from normkit.kernels.door import door; import normkit, torch;"
        "print(door(), normkit.LayerNorm(3)(torch.ones(2, 3)).shape)"
    )
    env = {"NORMKIT_DOOR": "0", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.strip() == "None torch.Size([2, 3])"
