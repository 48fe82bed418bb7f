"""Runs a kernel on the device of its tensors, with little work in Python for each call."""

from __future__ import annotations

import contextlib
import threading
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from normkit.errors import ShapeError
from normkit.kernels.dtypes import arithmetic_dtype

Pointers = tuple[Tensor | None, ...]
Grid = tuple[int, int, int]

MOST_FORMS = 4096
"""Compiled forms that are remembered."""

KNOWN = ("3.6.", "3.7.", "3.8.", "3.9.")
"""Versions of Triton whose launcher we have read: how it is called, and in which order it passes parameters."""
is_known: bool = triton.__version__.startswith(KNOWN)

_forms: dict[tuple[Any, ...], Any] = {}


class _Recording(threading.local):
    """What writes down the launches of this thread, see recipes.py; None most of the time."""

    recorder: Any = None


recording = _Recording()


def launch(kernel: Any, grid: Grid, warps: int, pointers: Pointers, *rest: Any) -> None:
    """Run a kernel; `rest` are its numbers, tuples and constants."""
    recorder = recording.recorder
    if recorder is None:
        _run(kernel, grid, warps, pointers, rest)
    else:
        recorder.launch(lambda: _run(kernel, grid, warps, pointers, rest), grid, (*pointers, *rest))


def _run(kernel: Any, grid: Grid, warps: int, pointers: Pointers, rest: tuple[Any, ...]) -> Any:
    """Run a kernel and return its compiled form, None in the interpreter.

    Triton works out on every call which of its compiled forms serves; that takes longer than a small kernel. Where
    all pointers are aligned it follows from the numbers, constants and dtypes, so the form is kept under these.
    """
    if not isinstance(kernel, triton.JITFunction):
        kernel[grid](*pointers, *rest, num_warps=warps)
        return None
    dtypes: list[torch.dtype | None] = []
    aligned = True
    for p in pointers:
        if p is None:
            dtypes.append(None)
        else:
            dtypes.append(p.dtype)
            aligned = aligned and not p.data_ptr() % 16
            device = p.device
    with _on(device):
        if not aligned:
            return kernel[grid](*pointers, *rest, num_warps=warps)
        # A number that changes from step to step, such as a momentum, makes no other form.
        numbers = tuple([float if type(number) is float else number for number in rest])
        key = (kernel, device.index, warps, tuple(dtypes), numbers)
        form = _forms.get(key)
        if form is None:
            if len(_forms) >= MOST_FORMS:
                _forms.clear()  # Triton keeps the code
            form = _forms[key] = kernel[grid](*pointers, *rest, num_warps=warps)
        elif is_known and device.type != "xpu" and not is_watched():
            # As `form[grid]` does, which asks for the current device, and makes a description of each launch for hooks.
            stream = triton.runtime.driver.active.get_current_stream(device.index)
            nobody = (None, None, None)
            form.run(*grid, stream, form.function, form.packed_metadata, *nobody, *pointers, *rest)
        else:
            form[grid](*pointers, *rest)
        return form


def is_watched() -> bool:
    """Whether hooks of Triton watch launches, as its profiler does."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


_HERE = contextlib.nullcontext()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.index == torch.accelerator.current_device_index():
        return _HERE
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]


def name() -> str:
    """The GPU in use and the compiler, which a tuned schedule is for."""
    module = torch.get_device_module()
    gpu = module.get_device_name() if torch.accelerator.is_available() else "interpreter"
    return f"{gpu}, triton {triton.__version__}"


@cache
def multiprocessors(device: torch.device) -> int:
    """How many there are. The interpreter has few, so that tests reach the loops over blocks."""
    if device.type == "cpu":
        return 2
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 64))


def empty(x: Tensor, *sizes: int) -> Tensor:
    """An uninitialized tensor in the dtype that x is computed in."""
    return torch.empty(sizes, dtype=arithmetic_dtype(x.dtype), device=x.device)


def aligned(t: Tensor) -> Tensor:
    """Kernels read wide where memory is aligned, and add in another order where it is not; bits are to be the same."""
    return t.clone() if t.data_ptr() % 16 else t


def check_length(t: Tensor | None, length: int, name: str) -> None:
    if t is not None and t.numel() != length:
        raise ShapeError(f"normkit: {name} must have {length} elements for this region, got {t.numel()}")
