"""The fast path in C++ gives the same bits as the Python path, and what watches calls sees it."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import sysconfig
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.errors import NormkitError
from normkit.functional import batch_norm, group_norm, layer_norm, normalize, rms_norm
from normkit.kernels import fastpath

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}")

METHODS = {
    "layer_norm": lambda x, w, b: layer_norm(x, (6,), w, b),
    "rms_norm": lambda x, w, b: rms_norm(x, (6,), w),
    "group_norm": lambda x, w, b: group_norm(x.transpose(1, -1).contiguous(), 3, w, b),
    "batch_norm": lambda x, w, b: batch_norm(x.transpose(1, -1).contiguous(), None, None, w, b, training=True),
    "eval": lambda x, w, b: batch_norm(
        x.transpose(1, -1), torch.arange(6.0).to(w), torch.linspace(0.1, 3, 6).to(w), w, b
    ),
    "last two": lambda x, w, b: normalize(x, "b [n c]", w, b),
}

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def leaves(dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    parameter = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.randn(4, 5, 6, generator=make).to(dtype).requires_grad_()
    return x, *(torch.randn(6, generator=make).to(parameter).requires_grad_() for _ in range(2))


@pytest.fixture(autouse=True)
def known():
    """Only a call like one that has passed all checks takes the fast path."""
    for method in METHODS:
        for dtype in DTYPES:
            calls(method, dtype)


def shut(monkeypatch):
    monkeypatch.setattr(fastpath, "norm", lambda *_: None)


def calls(method, dtype):
    x, w, b = leaves(dtype)
    if method in ("layer_norm", "rms_norm") and dtype is not torch.float64:
        w, b = (t.detach().to(dtype).requires_grad_() for t in (w, b))
    y = METHODS[method](x, w, b)
    used = [t for t in (x, w, b) if t is not b or method != "rms_norm"]
    return y, torch.autograd.grad(y, used, torch.ones_like(y).cumsum(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_as_the_longer_way(method, dtype, monkeypatch):
    y, grads = calls(method, dtype)
    assert y.grad_fn.name() == "NormkitNormalizeBackward"
    shut(monkeypatch)
    longer, wanted = calls(method, dtype)
    assert longer.grad_fn.name() != "NormkitNormalizeBackward"
    assert [g.dtype for g in grads] == [g.dtype for g in wanted]
    assert all(torch.equal(a, b) for a, b in zip((y, *grads), (longer, *wanted), strict=True))


def test_a_default_device_does_not_keep_calls_from_the_fast_path():
    x = torch.randn(4, 8, requires_grad=True)
    layer_norm(x, (8,))
    with torch.device("cpu"):
        y = layer_norm(x, (8,))
        assert y.grad_fn.name() == "NormkitNormalizeBackward"
        (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(dx, torch.autograd.grad(layer_norm(x, (8,)).square().sum(), x)[0])

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with torch.device("cpu"), Watching():
        assert layer_norm(x, (8,)).grad_fn.name() != "NormkitNormalizeBackward"


def images(layout):
    x = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(1))
    if layout == "transposed":
        return x.transpose(2, 3)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: normkit.BatchNorm2d(8),
        lambda: normkit.InstanceNorm2d(8, affine=True, track_running_stats=True),
        lambda: normkit.GroupNorm(2, 8),
        lambda: normkit.LayerNorm2d(8),
    ],
)
def test_layers_keep_layout_and_state_as_by_the_longer_way(make, train, layout, monkeypatch):
    results = []
    for way in (False, True):
        if way:
            shut(monkeypatch)
        layer = make().train(train)
        for _ in range(3):
            x = images(layout).requires_grad_()
            y = layer(x)
            y.backward(images(layout).flip(0).as_strided(x.shape, x.stride()))
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
        assert y.stride() == x.stride()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_python_refuses_is_refused():
    x, w, b = leaves()
    for wrong in (
        lambda: layer_norm(x, (5,), w, b),
        lambda: layer_norm(x, (6,), w[:5], b),
        lambda: layer_norm(x, (6,), w.double(), b),
        lambda: layer_norm(x, (6,), w, b, eps=float("nan")),
        lambda: layer_norm(x, (), w, b),
        lambda: batch_norm(x.detach()[:, :, 0], torch.zeros(4), torch.ones(5)),
    ):
        with pytest.raises(NormkitError):
            wrong()
    one = torch.randn(1, 3)
    normalize(one, "[b] c [...]")
    with pytest.raises(NormkitError, match="more than one value per channel"):
        batch_norm(one, torch.zeros(3), torch.ones(3), training=True)


def test_running_statistics_count_their_changes():
    layer = normkit.BatchNorm1d(6)
    x = torch.randn(4, 6)
    layer(x)
    before = layer.running_mean._version
    layer(x)
    assert layer.running_mean._version == before + 1


def test_more_shapes_than_it_keeps():
    w = torch.ones(3, requires_grad=True)
    for n in range(1, 4500):
        layer_norm(torch.ones(n, 3), (3,), w)
    for n in (7, 4400):  # one that was forgotten, and one that was not
        for _ in range(2):
            y = layer_norm(torch.ones(n, 3), (3,), w)
        assert y.grad_fn.name() == "NormkitNormalizeBackward"


# torch itself, which compiles its own formulas for forward mode when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_tangents_are_seen():
    x, w, b = (t.detach() for t in leaves())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with torch.no_grad():
            tangent = forward_ad.unpack_dual(layer_norm(dual, (6,), w, b)).tangent
    # A shift of all values is taken out again: what is left is rounding, in float64 or fp32.
    torch.testing.assert_close(tangent, torch.zeros_like(tangent), atol=1e-5, rtol=0)


def test_subclasses_modes_and_negated_views_are_seen():
    class Mine(torch.Tensor):
        pass

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.seen += function is torch.ops.normkit.norm.default
            return function(*args, **(kwargs or {}))

    x, w, b = leaves()
    want = layer_norm(x, (6,), w, b)
    assert type(layer_norm(x.detach().as_subclass(Mine), (6,), w, b)) is Mine
    with Count():
        layer_norm(x, (6,), w, b)
    assert Count.seen == 1
    negated = torch.complex(x.detach(), -x.detach()).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(layer_norm(negated.clone(memory_format=torch.preserve_format), (6,), w, b), want)
    torch.testing.assert_close(layer_norm(negated, (6,), w, b), want)


def test_checkpointing_and_hooks_that_bring_back_another_tensor():
    x, w, b = leaves()
    dy = torch.randn(4, 5, 6)
    want = torch.autograd.grad(layer_norm(x, (6,), w, b), (x, w, b), dy)
    y = checkpoint(layer_norm, x, (6,), w, b, use_reentrant=False)
    assert all(torch.equal(a, c) for a, c in zip(torch.autograd.grad(y, (x, w, b), dy), want, strict=True))

    def moved(t):
        return t.t().contiguous().t() if t.dim() == 2 else t.transpose(0, -1).contiguous().transpose(0, -1)

    with saved_tensors_hooks(moved, lambda t: t):
        y = layer_norm(x, (6,), w, b)
    for got, wanted in zip(torch.autograd.grad(y, (x, w, b), dy), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)  # sums of the same terms in another order


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # torch 2.10's
def test_the_profiler_names_it():
    x, w, b = leaves()
    with profile() as profiled:
        layer_norm(x, (6,), w, b)
    assert any(event.key == "normkit::norm" for event in profiled.key_averages())


def test_running_statistics_move_as_by_the_longer_way(monkeypatch):
    x = torch.randn(4, 6, 5)
    statistics = []
    for way in (False, True):
        if way:
            shut(monkeypatch)
        layers = normkit.BatchNorm1d(6), normkit.InstanceNorm1d(6, track_running_stats=True)
        for layer in layers:
            for _ in range(2):
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
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
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
        "from normkit.kernels import fastpath; import normkit, torch; layer = normkit.LayerNorm(3);"
        "print(fastpath.reason, [(y := layer(torch.ones(2, 3))).grad_fn.name() for _ in range(2)])"
    )
    env = os.environ | {"NORMKIT_FASTPATH": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.startswith("turned off by NORMKIT_FASTPATH=0")
    assert "NormkitNormalizeBackward" not in done.stdout
