"""Recipes: what a call launches on the GPU, written down so that C++ can launch it again without Python.

C++ (csrc/fastpath/gpu/) calls `norm` and `norm_backward` for a call that it has no recipe for yet. They carry out the
call and return the results together with its recipe, or with None for a call that stays with Python. A recipe names the
tensors by their part in the call (`Slot`), so it holds for every call of the same plan, dtypes and options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from normkit.kernels import fastpath
from normkit.kernels.backend import Want
from normkit.kernels.formula import GATES, Arguments
from normkit.kernels.triton import device, launch
from normkit.kernels.triton.recorder import Recipe, Recorder, Slot, Tensors


def _distinct(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, each in memory of its own, so that a recipe cannot take one for another."""
    seen: set[int] = set()
    out: list[Tensor | None] = []
    for t in tensors:
        repeated = t is not None and t.numel() > 0 and t.data_ptr() in seen
        out.append(t.clone() if t is not None and repeated else t)
        if t is not None:
            seen.add(t.data_ptr())
    return out


# Calls from C++ -----------------------------------------------------------------------------------------------

_names = list(GATES)


def norm(
    plan: int, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, std: Tensor | None,
    residual: Tensor | None, gate: Tensor | None, skip: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float, count: int, eps: float, center: bool, activation: int,
    gate_activation: int, gate_first: bool, moments: bool, length: bool, zero_centered: bool, cast_first: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Recipe | None] | None:  # fmt: skip
    """A call without gradients, and its recipe: y, the sum, and the moments if they are computed.

    With `length` it is weight normalization, and the last of the results is the length. None for a plan that has been
    given up.
    """
    x, weight, bias, mean, std, residual, gate, skip = _distinct(  # type: ignore[assignment]
        x, weight, bias, mean, std, residual, gate, skip
    )
    given = {Slot.X: x, Slot.WEIGHT: weight, Slot.BIAS: bias, Slot.MEAN: mean, Slot.STD: std, Slot.RESIDUAL: residual}
    given |= {Slot.GATE: gate, Slot.SKIP: skip, Slot.RUNNING_MEAN: running_mean, Slot.RUNNING_VAR: running_var}

    def call() -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        if length:
            assert weight is not None
            w, own = launch.weight_norm(x, weight, plan)
            return w, None, None, own
        gates = gate, skip, _names[gate_activation], gate_first, zero_centered, cast_first
        a = Arguments(x, weight, bias, "", eps, center, mean, std, residual, None, _names[activation], *gates)
        out = launch.norm(a, plan, std, eps, None, moments)
        if running_mean is not None:
            numbers = running_mean, running_var, *out[2:], count
            recorder.move(lambda momentum: launch.move_running(*numbers, momentum), momentum)  # type: ignore[arg-type]
        return out

    recorder = Recorder()
    out = recorder.watch(call, plan, x)
    if out is None:
        return None
    y, total, own_mean, own_std = out
    made: Tensors = {Slot.Y: y, Slot.SUM: total}
    if std is None:
        made |= {Slot.MEAN: own_mean, Slot.STD: own_std}
    recipe = recorder.recipe(given, made)
    _note(recorder)
    return y, total, own_mean, own_std, recipe


def norm_backward(
    plan: int, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, std: Tensor,
    dsum: Tensor | None, gate: Tensor | None, skip: Tensor | None, eps: float, center: bool, activation: int,
    gate_activation: int, gate_first: bool, fixed: bool, wanted: Sequence[bool], weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None, length: bool, zero_centered: bool,
) -> tuple[Tensor | Recipe | None, ...] | None:  # fmt: skip
    """The gradients that are wanted, of x, weight, bias, gate and skip, and their recipe.

    None for a plan that has been given up.
    """
    x, dy, weight, bias, mean, std, dsum, gate, skip = _distinct(  # type: ignore[assignment]
        x, dy, weight, bias, mean, std, dsum, gate, skip
    )
    given = {Slot.DY: dy, Slot.X: x, Slot.WEIGHT: weight, Slot.BIAS: bias, Slot.MEAN: mean, Slot.STD: std}
    given |= {Slot.RESIDUAL: dsum, Slot.GATE: gate, Slot.SKIP: skip}
    want = Want(*wanted)

    def call() -> tuple[Tensor | None, ...]:
        if length:
            assert weight is not None
            return *launch.weight_norm_backward(dy, x, weight, std, plan), None, None, None
        gates = gate, skip, _names[gate_activation], gate_first, zero_centered
        a = Arguments(x, weight, bias, "", eps, center, mean, std, dsum, None, _names[activation], *gates)
        return launch.norm_backward(dy, a, plan, std, eps, None, fixed, want, (weight_dtype, bias_dtype))

    recorder = Recorder()
    grads = recorder.watch(call, plan, x)
    if grads is None:
        return None
    out = [t if one else None for t, one in zip(grads, want, strict=True)]
    slots = (Slot.DX, Slot.DWEIGHT, Slot.DBIAS, Slot.DGATE, Slot.DSKIP)
    recipe = recorder.recipe(given, dict(zip(slots, out, strict=True)))
    _note(recorder)
    return *out, recipe


# Whether C++ carries out calls on the GPU ---------------------------------------------------------------------

refused: list[str] = []
"""Why the last calls stay with Python, the latest last."""


def _note(recorder: Recorder) -> None:
    if recorder.problem:
        refused.append(recorder.problem)
        del refused[:-100]


_driver = ""
"""The path of the driver, once C++ is connected to it."""


def state() -> tuple[bool, str]:
    """Whether C++ takes calls on the GPU, and why or why not; connects it the first time that it can."""
    global _driver
    if not fastpath.in_use:
        return False, fastpath.reason
    if not device.is_known:
        return False, f"Triton {triton.__version__} may pass other parameters than the versions that are known"
    if not _driver:
        driver = fastpath.loaded_library("libcuda.so", "libamdhip64.so")
        runtime = fastpath.loaded_library("libtorch_cuda.so", "libtorch_hip.so")
        if driver is None or runtime is None or not fastpath.connect_gpu(driver, runtime, "cuda"):
            return False, "the GPU's driver, or torch's library for it, is not loaded or lacks a function"
        _driver = driver
    return True, f"launches through {_driver}"


def cache_plan(
    pattern: str,
    shape: torch.Size,
    strides: tuple[int, ...],
    varying: int,
    over_features: bool,
    plan: int,
    numbers: tuple[int, ...],
) -> bool:
    """As `normkit.kernels.fastpath.cache_plan`, on a GPU."""
    known_by = (pattern, shape, strides, varying, over_features)
    return plan >= 0 and state()[0] and fastpath.cache_gpu_plan(*known_by, plan, *numbers)
