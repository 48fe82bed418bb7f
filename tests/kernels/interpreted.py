"""What tests of the Triton kernels share. They run on a GPU, or else on the CPU in Triton's interpreter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from normkit.kernels import devices, fastpath, formula, layout, operator
from normkit.kernels.backend import Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.triton.schedule import Schedule
from normkit.pattern import parse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

marks = [pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")]  # Triton 3.6's
if DEVICE == "cuda":
    marks.append(pytest.mark.gpu)

PATTERNS = {
    "batch": "[b] c [...]",
    "instance": "b c [...]",
    "group": "b (g=2 [c]) [...]",
    "image": "b [c ...]",
    "pixel": "b [c] ...",
    "all": "[...]",
    "rows": "... [c]",
    "mixed": "[b] (g [c=2]) [...]",
}
SHAPES = [(3, 8, 5, 7), (2, 6, 40, 33), (2, 130, 3, 5), (1, 4, 150, 150)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def slow_if(costly: bool, *values: Any) -> Any:
    """A parameter that the interpreter takes long for; on small tensors, test_triton_walks.py has every walk."""
    return pytest.param(*values, marks=pytest.mark.slow if costly and DEVICE == "cpu" else ())


@contextmanager
def language_replaced() -> Iterator[None]:
    """Triton's language is that of the interpreter, which does here only what has a result.

    It replaces some 300 functions at each launch, and again at each call of a function in a kernel: once is enough. It
    computes whether numbers overflow, and looks at that only in debug mode: half of the time of a kernel.
    """
    from triton import language
    from triton.runtime import interpreter

    if DEVICE != "cpu" or not hasattr(interpreter, "_LangPatchScope"):  # another Triton, which does it in its own way
        yield
        return
    scope = interpreter._patch_lang(SimpleNamespace(__globals__={"language": language, "core": language.core}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda _: interpreter._LangPatchScope())
        builder = interpreter.interpreter_builder
        assert not builder.options.debug
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield
    scope.restore()


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call through the operators is carried out by the Triton kernels."""
    kernels = devices.triton_kernels()
    monkeypatch.setattr(devices, "kernels_on", lambda device: kernels)
    for name in ("norm", "weight_norm"):
        monkeypatch.setattr(fastpath, name, lambda *_: None)
    monkeypatch.setattr(fastpath, "cache_plan", lambda *_: False)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    layout.forget_plans()  # other kernels know plans by other numbers
    with language_replaced():
        yield
    layout.forget_plans()
    torch.set_default_device(None)


def draw(*sizes: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
    return torch.randn(sizes, device=DEVICE).to(dtype).contiguous(memory_format=layout)


def error(got: Tensor, want: Tensor, least: float = 1.0) -> float:
    """In units of the largest entry, or of `least`."""
    return ((got.double().cpu() - want.double().cpu()).abs().max() / max(least, want.abs().max().item())).item()


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same on a CPU in float64, where the definition is the oracle."""
    return [None if t is None else t.detach().double().cpu() for t in tensors]


def last_schedule() -> Schedule:
    from normkit.kernels.triton import launch

    return list(launch._schedules.values())[-1]


def check(
    pattern: str,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    affine: bool,
    center: bool = True,
) -> None:
    """One call forward and backward against the definition in float64."""
    x = 2 * draw(*shape, layout=layout) + 3 * draw(1, shape[1], 1, 1)
    x = x.to(dtype).contiguous(memory_format=layout)
    features = math.prod(level.size for level in parse(pattern).levels(shape) if level.feature)
    stat = arithmetic_dtype(dtype)
    w, b = (draw(features, dtype=stat), draw(features, dtype=stat)) if affine else (None, None)
    dy = draw(*shape, dtype=dtype, layout=layout)
    call = Arguments(x, w, b, pattern, 1e-5, center)
    y, _, mean, std = operator.norm(call)
    assert torch.equal(operator.norm(call, moments=False).y, y)
    grads = operator.norm_backward(dy, call._replace(mean=mean, var=std), False, Want(True, affine, affine))
    got = (y, mean, std, *grads[:3])
    xe, we, be, dye = exact(x, w, b, dy)
    call = Arguments(xe, we, be, pattern, 1e-5, center)
    y64, _, *moments64 = formula.norm(call)
    want = (y64, *moments64, *formula.norm_backward(dye, call, False)[:3])
    assert y.stride() == got[3].stride() == x.stride()
    assert y.dtype == got[3].dtype == dtype
    # What rounding the mean does to y and to all gradients; those are sums, too, of up to 90 000 terms. It shifts
    # x_hat, and so the weight's gradient by a part of the bias's. In float64 the definition has an error of its own.
    far = 1 + ((want[1].abs() if center else 0 * want[2]) / (want[2].square() + 1e-5).sqrt()).max().item()
    eps, fine = torch.finfo(dtype).eps, torch.finfo(stat).eps
    own = (12 if dtype is torch.float64 else 4) * fine
    units = (4 * far * eps, own, own, 16 * far * eps, 16 * far * fine, 16 * far * fine)
    least = [1.0] * 4 + [max(1.0, want[5].abs().max().item())] * 2
    for one, other, bound, unit in zip(got, want, units, least, strict=True):
        if one is not None and one.numel():
            assert error(one, other, unit) <= bound, (error(one, other, unit) / bound, str(last_schedule()))


def check_call(a: Arguments, fixed: bool = False) -> None:
    """One call with all that it fuses, forward and backward, against the definition in float64, with its gradients by
    autograd."""
    dy = torch.empty_like(a.x).copy_(draw(*a.x.shape))
    dsum = None if a.residual is None else torch.empty_like(a.x).copy_(draw(*a.x.shape))
    out = operator.norm(a)
    moments = (a.mean, a.var) if fixed else (out.mean, out.std)
    source = a.x if out.sum is None else out.sum
    want = Want(True, a.weight is not None, a.bias is not None, a.gate is not None, a.skip is not None)
    back = a._replace(x=source, mean=moments[0], var=moments[1], residual=dsum)
    got = operator.norm_backward(dy, back, fixed, want)

    tensors = {name: t for name, t in a._asdict().items() if isinstance(t, Tensor) and name not in ("mask", "residual")}
    wide = {name: t.detach().double().cpu().nan_to_num() for name, t in tensors.items()}
    wide["x"] = source.detach().double().cpu().nan_to_num()
    leaves = [wide[name].requires_grad_() for name in ("x", "weight", "bias", "gate", "skip") if name in wide]
    exactly = formula.norm(a._replace(**wide, residual=None, mask=None if a.mask is None else a.mask.cpu()))
    grads = list(torch.autograd.grad(exactly.y, leaves, dy.double().cpu()))
    grads[0] = grads[0] if dsum is None else grads[0] + dsum.double().cpu()

    eps, fine = torch.finfo(a.x.dtype).eps, torch.finfo(arithmetic_dtype(a.x.dtype)).eps
    far = 8.0
    if not fixed:
        mean = exactly.mean.abs().max().item() if a.center else 0.0
        far = (1 + mean) / (exactly.std.square() + 1e-5).sqrt().min().item()
        assert error(out.std, exactly.std) <= 16 * fine
    near = fine * far + eps  # what rounding the mean and the result does
    assert error(out.y, exactly.y) <= (16 if a.cast_first else 4) * near
    if a.mask is not None:
        assert not out.y.masked_select(~a.mask.expand(a.x.shape)).any()
    for one, other in zip((t for t in got if t is not None), grads, strict=True):
        assert one.numel() == other.numel()
        assert one.shape == other.shape or one.dim() == 1
        assert error(one.reshape(-1), other.reshape(-1)) <= 32 * near, (error(one, other.view_as(one)) / near, a)
