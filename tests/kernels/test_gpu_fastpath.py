"""C++ repeats on a GPU what Python has launched there: by a stub of the driver, which computes in the interpreter."""

from __future__ import annotations

import ctypes
import itertools
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from interpreted import DEVICE, draw, marks, slow_if
from stub.calls import CALLS, EXTRAS, both_passes, built, by_python, gpu, learnt, leaves, shut, three, with_residual
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.functional import batch_norm, group_norm, layer, layer_norm, rms_norm
from normkit.functional.call.spec import NOTHING, OWN
from normkit.kernels import fastpath, layout, operator
from normkit.kernels.backend import Want
from normkit.kernels.formula import Arguments
from normkit.kernels.triton import recipes
from normkit.kernels.weight import normalized_weight

FIXTURES = (built, gpu, learnt)
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = [
    *marks,
    pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}"),
]


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("name", CALLS)
def test_forward_launches_what_python_launches(name, extras, gpu, learnt, monkeypatch):
    method, options = CALLS[name]
    x, w, b = leaves(**options)
    extras = with_residual(x.detach(), EXTRAS[extras])
    seen, outs = [], []
    with torch.no_grad():
        for way in range(4):
            if way == 3:
                shut(monkeypatch)
            gpu.launches.clear()
            out = method(x, w, b, **extras)
            y, total = out if isinstance(out, tuple) else (out, None)
            given = {"x": x, "w": w, "b": b, "residual": extras.get("residual"), "y": y, "total": total}
            seen.append(gpu.seen(**given))
            outs.append((y, total))
    # The first call makes the plan known, the second one is written down, the third one is C++'s alone.
    assert learnt == ["norm"], recipes.refused
    assert not recipes.refused
    assert seen[2] == seen[3]
    assert len(seen[2]) >= 1
    for got, want in zip(outs[2], outs[3], strict=True):
        assert got is want is None or torch.equal(got, want)


# Backward -----------------------------------------------------------------------------------------------------


WANTED = {"all": (True, True, True), "x": (True, False, False), "w": (False, True, False), "b": (False, False, True)}
NAMES = [name for name in CALLS if name != "wide"]


@pytest.mark.parametrize(
    ("name", "wanted", "extras"),
    # Each two of them meet in one of the quick tests.
    [
        slow_if((i + j + k) % 4 > 0, name, wanted, extras)
        for (i, name), (j, wanted), (k, extras) in itertools.product(*map(enumerate, (NAMES, WANTED, EXTRAS)))
    ],
)
def test_backward_launches_what_python_launches(name, wanted, extras, gpu, learnt, monkeypatch):
    method, options = CALLS[name]
    inputs = leaves(**options)
    for t, wants in zip(inputs, WANTED[wanted], strict=True):
        if t is not None:
            t.requires_grad_(wants)
    if not any(t is not None and t.requires_grad for t in inputs) or (name == "rms" and wanted == "b"):
        pytest.skip("nothing wants a gradient")
    extras = with_residual(inputs[0].detach(), EXTRAS[extras])
    upstream = [torch.randn_like(inputs[0]) for _ in range(2)]
    want = None
    for way in range(4):
        if way == 3:
            shut(monkeypatch)
        got, want = (want if way else None), both_passes(gpu, method, inputs, extras, upstream)
    # The first call is Python's, the second one is written down, the third one is C++'s alone, the last one Python's.
    assert learnt == ["norm", "norm_backward"], recipes.refused
    assert not recipes.refused
    assert got[0] == want[0]
    assert len(got[0]) >= 2
    for one, other in zip((*got[1], *got[2]), (*want[1], *want[2]), strict=True):
        assert one is other is None or (torch.equal(one, other) and one.dtype is other.dtype)


def variants(x, w, b, r):
    """Calls of the same plan, each with a recipe of its own: outputs and gradients."""
    single, half = torch.float32, torch.bfloat16
    options = ((single, single, 1e-5, None), (single, single, 0.5, None))
    options += ((half, single, 1e-5, "silu"), (half, half, 1e-5, "silu"))
    for (dtype, affine_dtype, eps, activation), residual in itertools.product(options, (False, True)):
        w, b = (t.detach().to(affine_dtype).requires_grad_() for t in (w, b))
        for weight, bias in ((w, b), (w, None), (None, None)):
            for method in (layer_norm, rms_norm):
                if method is rms_norm and bias is not None:
                    continue
                affine = (weight,) if method is rms_norm else (weight, bias)
                extras = {"activation": activation} if activation else {}
                given = [t.detach().to(dtype).requires_grad_() for t in (x, r)]
                if residual:
                    extras |= {"residual": given[1], "return_residual": True}
                out = method(given[0], (96,), *affine, eps=eps, **extras)
                outs = out if isinstance(out, tuple) else (out,)
                leaves = [t for t in (*given[: 1 + residual], weight, bias) if t is not None]
                yield outs
                ends = [y * (1 + i) for i, y in enumerate(outs)]
                for wanted in (leaves, leaves[:1], leaves[-1:]):
                    yield torch.autograd.grad(ends, wanted, [torch.ones_like(y) for y in ends], retain_graph=True)
                yield torch.autograd.grad(ends[0], leaves, torch.ones_like(outs[0]))


def test_recipes_of_one_plan_are_not_confused(gpu, learnt, monkeypatch):
    x, w, b = leaves((6, 96))
    r = torch.randn_like(x)
    for _ in range(2):
        list(variants(x, w, b, r))
    known = len(learnt)
    got = list(variants(x, w, b, r))
    assert len(learnt) == known > 80
    assert not recipes.refused
    shut(monkeypatch)
    want = list(variants(x, w, b, r))
    for one, other in zip(itertools.chain(*got), itertools.chain(*want), strict=True):
        # The last bit of gradients of half-precision weights: the interpreter cuts off where torch rounds.
        torch.testing.assert_close(one, other, rtol=2**-7 if one.dtype is torch.bfloat16 else 0, atol=0)


def test_weights_in_half_precision_are_read_as_they_are(gpu, learnt, monkeypatch):
    """And their gradients are written in half precision, one rounding of the same sums. The interpreter cuts off where
    torch rounds: the last of 8 bits may differ."""
    inputs = leaves((6, 96), dtype=torch.bfloat16, affine=torch.bfloat16)
    upstream = [torch.randn_like(inputs[0]) for _ in range(2)]
    for _ in range(3):
        got = both_passes(gpu, lambda x, w, b: layer_norm(x, (96,), w, b), inputs, {}, upstream)
    assert learnt == ["norm", "norm_backward"]
    shut(monkeypatch)
    want = both_passes(gpu, lambda x, w, b: layer_norm(x, (96,), w, b), inputs, {}, upstream)
    assert ("*bf16", "w") in got[0][0].parameters
    for one, other in zip((*got[1], *got[2]), (*want[1], *want[2]), strict=True):
        assert one.dtype is torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2**-7, atol=0)


def test_conventions_of_a_weight_have_recipes_of_their_own(gpu, learnt):
    x, w, b = leaves((6, 96), dtype=torch.float16)
    dy = torch.randn_like(x)
    three(lambda: layer_norm(x, (96,), w, b))
    results = []
    for cast_first, zero_centered in itertools.product((False, True), repeat=2):
        a = Arguments(x, w, b, "... [c]", 1e-5, True, zero_centered=zero_centered, cast_first=cast_first)
        with torch.no_grad():
            want, _, mean, std = operator.norm(a)
            grads = operator.norm_backward(dy, a._replace(mean=mean, var=std), False, Want(True, True, True))
        spec = layer.LAYER["before" if cast_first else "after", zero_centered]
        for _ in range(2):
            y = fastpath.norm(spec, "... [c]", x, w, b, 1e-5, NOTHING[:5], (96,), OWN)
            got = torch.autograd.grad(y, (x, w, b), dy)
            assert torch.equal(y, want)
            assert all(torch.equal(one, other.view_as(one)) for one, other in zip(got, grads[:3], strict=True))
        results.append(y)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(results, 2))
    assert not recipes.refused
    # Forward each of the four ways, backward the two that rounding does not change.
    assert (learnt.count("norm"), learnt.count("norm_backward")) == (4, 2)


def test_rows_with_gaps_are_read_where_they_are(gpu, learnt):
    """The query and the key of a fused projection share a recipe."""
    fused, w = draw(2, 3, 3, 4, 16), draw(16).requires_grad_()
    dy = draw(2, 3, 4, 16)
    for place in (0, 1, 1):
        x = fused[:, :, place].detach().requires_grad_()
        y = rms_norm(x, (16,), w)
        got = torch.autograd.grad(y, (x, w), dy)
        dense = x.detach().contiguous().requires_grad_()
        want = rms_norm(dense, (16,), w)
        assert torch.equal(y, want)
        assert y.is_contiguous()
        wants = torch.autograd.grad(want, (dense, w), dy)
        assert all(torch.equal(one, other) for one, other in zip(got, wants, strict=True))
    assert y.grad_fn.name() == "NormkitNormalizeBackward"
    assert learnt == ["norm", "norm_backward"] * 2
    assert not recipes.refused


# State, and what stays with Python ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_by_python(momentum, dtype, gpu, learnt, monkeypatch):
    """With a momentum of None it is another number in every call, and the recipe the same."""
    results = []
    for way in range(2):
        if way:
            shut(monkeypatch)
        torch.manual_seed(1)
        state = torch.float64 if dtype is torch.float64 else torch.float32
        layer = normkit.BatchNorm2d(8, momentum=momentum, dtype=state)
        versions, ys = [], []
        for _ in range(5):
            x = draw(3, 8, 5, 7, dtype=dtype)
            with torch.no_grad():
                ys.append(layer(x))
            versions.append((layer.running_mean._version, layer.running_var._version))
        steps = [b[0] - a[0] for a, b in itertools.pairwise(versions)]
        results.append([*ys, *layer.buffers()])
        assert min(steps) >= 1
    assert learnt == ["norm"]
    assert not recipes.refused
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointing_moves_running_statistics_once(gpu):
    x = draw(4, 6, 5, 3).requires_grad_()
    once, again = [(torch.zeros(6), torch.ones(6)) for _ in range(2)]
    for _ in range(4):
        y = batch_norm(x, *once, training=True)
        z = checkpoint(lambda x: batch_norm(x, *again, training=True), x, use_reentrant=False)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0])
    assert torch.equal(once[0], again[0])


def test_weight_norm(gpu, learnt, monkeypatch):
    results = []
    for way in range(4):
        if way == 3:
            shut(monkeypatch)
        torch.manual_seed(3)
        v, g = (draw(*sizes).requires_grad_() for sizes in ((16, 4, 3, 3), (16, 1, 1, 1)))
        gpu.launches.clear()
        w = normalized_weight(v, g, 0)
        grads = torch.autograd.grad(w, (v, g), torch.linspace(-1, 1, w.numel()).view(w.shape))
        seen = gpu.seen(v=v, g=g, w=w, dv=grads[0], dg=grads[1])
        results.append((w, *grads, [each.kernel for each in seen], w.grad_fn.name()))
    assert learnt == ["norm", "norm_backward"], recipes.refused
    assert results[2][4] == "NormkitNormalizeBackward" != results[3][4]
    assert results[2][3] == results[3][3]
    assert all(torch.equal(a, b) for a, b in zip(results[2][:3], results[3][:3], strict=True))


def test_tensors_that_are_the_same_are_not_confused(gpu, learnt):
    """The call that is written down has one tensor as x and as residual, the next one has two."""
    x, w, b = (t.detach() for t in leaves((6, 96)))
    other = torch.randn_like(x)
    three(lambda: layer_norm(x, (96,), w, w, residual=x))
    assert learnt == ["norm"]
    got = layer_norm(x, (96,), w, b, residual=other)
    assert learnt == ["norm"]
    assert torch.equal(got, layer_norm(x + other, (96,), w, b))


def test_the_current_stream_is_used(gpu, learnt):
    x, w, b = (t.detach() for t in leaves((6, 96)))
    three(lambda: layer_norm(x, (96,), w, b))
    for stream in (64, None, 128):
        gpu.launches.clear()
        gpu.library.stub_stream(ctypes.c_void_p(stream))
        layer_norm(x, (96,), w, b)
        assert [each.stream for each in gpu.seen()] == [stream]
    assert learnt == ["norm"]


def test_an_error_of_the_driver_is_raised(gpu):
    x, w, b = (t.detach() for t in leaves((6, 96)))
    want = three(lambda: layer_norm(x, (96,), w, b))
    gpu.library.stub_error(719)
    with pytest.raises(RuntimeError, match="the GPU's driver has refused a launch: CUDA_ERROR_LAUNCH_FAILED"):
        layer_norm(x, (96,), w, b)
    gpu.library.stub_error(0)
    assert torch.equal(layer_norm(x, (96,), w, b), want)


def test_a_thread_without_a_context_gets_one(gpu):
    x, w, b = (t.detach() for t in leaves((6, 96)))
    want, out = three(lambda: layer_norm(x, (96,), w, b)), []
    before = gpu.library.stub_contexts()
    thread = threading.Thread(target=lambda: out.extend(layer_norm(x, (96,), w, b) for _ in range(2)))
    thread.start()
    thread.join()
    assert gpu.library.stub_contexts() == before + 1
    assert all(torch.equal(y, want) for y in out)


def test_threads_share_recipes(gpu, learnt):
    x, w, b = (t.detach() for t in leaves((6, 96)))
    want, wrong = layer_norm(x, (96,), w, b), []

    def work():
        for _ in range(30):
            y = layer_norm(x.requires_grad_(), (96,), w, b)
            if not torch.equal(y, want):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(learnt) <= 4


def test_a_backward_pass_gets_other_strides_and_changed_tensors(gpu):
    x, w, b = leaves((3, 8, 5, 7), features=8)
    three(lambda: group_norm(x, 2, w, b).sum().backward())
    dy = draw(3, 8, 7, 5).transpose(2, 3)
    got = torch.autograd.grad(group_norm(x, 2, w, b), (x, w, b), dy)
    want = torch.autograd.grad(group_norm(x, 2, w, b), (x, w, b), dy.contiguous())
    assert all(torch.equal(a, c) for a, c in zip(got, want, strict=True))
    y = group_norm(x, 2, w, b)
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_more_recipes_than_are_kept(gpu, monkeypatch):
    x, w, b = (t.detach() for t in leaves((6, 96)))
    want = three(lambda: layer_norm(x, (96,), w, b))
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "norm", lambda *_: (x, None, None, None, None))
        for n in range(5000):
            layer_norm(x, (96,), w, b, eps=1 + n)
            assert 0 < fastpath.known_recipes() <= 4096
    assert torch.equal(three(lambda: layer_norm(x, (96,), w, b)), want)


def test_plans_that_python_has_given_up(gpu, learnt):
    """The graph of a call remembers its plan by a number that Python does not know any more."""
    x, w, b = leaves((6, 96))
    want = torch.autograd.grad(layer_norm(x, (96,), w, b).sum(), x)[0]
    y = three(lambda: layer_norm(x, (96,), w, b))
    layout.forget_plans()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], want)
    with torch.no_grad():
        assert torch.equal(three(lambda: layer_norm(x, (96,), w, b)), y)
    assert learnt == ["norm", "norm_backward", "norm"]


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("name", CALLS)
def test_a_gpu_that_is_there_gives_the_same_bits(name, extras, monkeypatch):
    method, options = CALLS[name]
    x, w, b = leaves(**options)
    extras = with_residual(x.detach(), EXTRAS[extras])
    upstream = [torch.randn_like(x) for _ in range(2)]
    wanted = [t for t in (x, w, b if name != "rms" else None) if t is not None]

    def results():
        out = method(x, w, b, **extras)
        outs = out if isinstance(out, tuple) else (out,)
        return [*outs, *torch.autograd.grad(outs, wanted, upstream[: len(outs)])]

    got = three(results)
    assert recipes.state()[0], recipes.state()
    assert not by_python(got[0]), recipes.refused
    known = fastpath.known_recipes()
    got = results()
    assert fastpath.known_recipes() == known
    shut(monkeypatch)
    want = results()
    assert by_python(want[0])
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
