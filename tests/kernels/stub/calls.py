"""Calls on the stub of a GPU, and the fixtures that make it the GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from interpreted import DEVICE, draw, language_replaced
from stub.gpu import Gpu
from torch import Tensor

from normkit.functional import batch_norm, group_norm, layer_norm, rms_norm
from normkit.kernels import devices, fastpath, layout
from normkit.kernels.triton import device, recipes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    return Gpu(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def gpu(built, monkeypatch):
    """CPU tensors are tensors of a GPU, until the test ends."""
    if DEVICE != "cpu":
        pytest.skip("the stub stands for a GPU that is not there")
    kernels = devices.triton_kernels()
    monkeypatch.setattr(devices, "kernels_on", lambda device: kernels)
    monkeypatch.setattr(device, "_run", built.run)
    monkeypatch.setattr(recipes, "state", lambda: (True, "the stub"))
    monkeypatch.setattr(fastpath, "cache_plan", lambda *key: recipes.cache_plan(*key, numbers_of(key[-1])))
    layout.forget_plans()
    recipes.refused.clear()
    assert fastpath.connect_gpu(built.path, built.path, "cpu")
    with language_replaced():
        yield built
    built.library.stub_error(0)
    built.library.stub_stream(None)
    assert not fastpath.connect_gpu("/nowhere", "/nowhere", "cpu")
    layout.forget_plans()
    built.launches.clear()
    failures = built.failures.copy()
    built.failures.clear()
    assert not failures


def numbers_of(plan: int) -> tuple[int, ...]:
    """What a plan was made known by."""
    return next(numbers for (numbers, _), number in layout._numbered.items() if number == plan)


@pytest.fixture
def learnt(monkeypatch):
    """How often Python has been asked to carry out a call and to write down its recipe."""
    seen: list[str] = []
    for name in ("norm", "norm_backward"):
        function = getattr(recipes, name)

        def counted(*args, name=name, function=function):
            seen.append(name)
            return function(*args)

        monkeypatch.setattr(recipes, name, counted)
    return seen


def shut(monkeypatch):
    for name in ("norm", "weight_norm"):
        monkeypatch.setattr(fastpath, name, lambda *_: None)


def leaves(sizes, dtype=torch.float32, memory=torch.contiguous_format, features=None, affine=torch.float32):
    x = draw(*sizes, dtype=dtype, layout=memory).requires_grad_()
    features = sizes[-1] if features is None else features
    w, b = (draw(features, dtype=affine).requires_grad_() for _ in range(2)) if affine else (None, None)
    return x, w, b


linspace = partial(torch.linspace, device=DEVICE)
CALLS = {
    "layer": (lambda x, w, b, **e: layer_norm(x, (96,), w, b, **e), {"sizes": (6, 96)}),
    "rms": (lambda x, w, b, **e: rms_norm(x, (96,), w, **e), {"sizes": (6, 96)}),
    "wide": (lambda x, w, b, **e: layer_norm(x, (40000,), w, b, **e), {"sizes": (2, 40000)}),
    "half": (lambda x, w, b, **e: layer_norm(x, (96,), w, b, **e), {"sizes": (6, 96), "dtype": torch.bfloat16}),
    "double": (
        lambda x, w, b, **e: layer_norm(x, (96,), w, b, **e),
        {"sizes": (6, 96), "dtype": torch.float64, "affine": torch.float64},
    ),
    "bare": (lambda x, w, b, **e: layer_norm(x, (96,), **e), {"sizes": (6, 96), "affine": None}),
    "group": (lambda x, w, b, **e: group_norm(x, 2, w, b, **e), {"sizes": (3, 8, 5, 7), "features": 8}),
    "group, channels last": (
        lambda x, w, b, **e: group_norm(x, 2, w, b, **e),
        {"sizes": (3, 8, 5, 7), "features": 8, "memory": torch.channels_last},
    ),
    "batch": (
        lambda x, w, b, **e: batch_norm(x, None, None, w, b, training=True, **e),
        {"sizes": (3, 8, 40, 33), "features": 8},
    ),
    "eval": (
        lambda x, w, b, **e: batch_norm(x, linspace(-1, 1, 8), linspace(0.2, 2, 8), w, b, **e),
        {"sizes": (3, 8, 5, 7), "features": 8},
    ),
}
EXTRAS = {
    "plain": {},
    "activation": {"activation": "gelu"},
    "sum": {"residual": True, "return_residual": True},
    "residual": {"residual": True},
}


def with_residual(x: Tensor, extras: dict) -> dict:
    return extras | {"residual": torch.randn_like(x)} if "residual" in extras else extras


def three(call):
    """A call that makes the plan known, one that is written down, and one of C++; the last one's result."""
    for _ in range(3):
        out = call()
    return out


def by_python(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return not y.grad_fn.name().startswith("Normkit")


def both_passes(gpu, method, leaves, extras, upstream):
    """What forward and backward have launched, the outputs, and the gradients of all leaves that want one."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in leaves]
    residual = extras.get("residual")
    if residual is not None:
        residual = residual.detach().requires_grad_()
        extras = extras | {"residual": residual}
    gpu.launches.clear()
    out = method(*leaves, **extras)
    outs = out if isinstance(out, tuple) else (out,)
    named = {"x": leaves[0], "w": leaves[1], "b": leaves[2], "residual": residual}
    named |= {f"output {i}": t for i, t in enumerate(outs)}
    launches = gpu.seen(**named)
    inputs = [t for t in (*leaves, residual) if t is not None and t.requires_grad]
    grads = torch.autograd.grad(outs, inputs, upstream[: len(outs)], allow_unused=True)
    named |= {f"gradient {i}": t for i, t in enumerate(grads)}
    return launches + gpu.seen(**named, dy=upstream[0], dsum=upstream[1]), outs, grads
