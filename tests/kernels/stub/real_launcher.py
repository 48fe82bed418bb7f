"""Compares the parameters that C++ passes with those of Triton's own launcher, for real machine code of a GPU.

A process of its own, because Triton must not interpret: ``python real_launcher.py FOLDER``. Only the driver is a stub,
so nothing is computed. The types of the parameters are those in the machine code's assembler text.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1])
path = folder / "libcuda.so.1"
source = Path(__file__).with_name("driver.cpp")
subprocess.run(["g++", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{path.name}", "-o", path, source], check=True)
os.environ |= {"TRITON_LIBCUDA_PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.nvidia.driver import CudaDriver  # noqa: E402

from normkit.functional import batch_norm, group_norm, layer_norm, rms_norm  # noqa: E402
from normkit.kernels import devices, fastpath, layout  # noqa: E402
from normkit.kernels.triton import device, recipes, recorder  # noqa: E402

SIZES = {"u64": ctypes.c_uint64, "u32": ctypes.c_uint32, "f32": ctypes.c_float, "f64": ctypes.c_double}
SIZES |= {"b64": ctypes.c_uint64, "b32": ctypes.c_uint32}


class Driver(CudaDriver):  # type: ignore[misc]
    """Triton's driver, without the questions that it asks torch about the GPU."""

    def __init__(self) -> None:
        with contextlib.suppress(AttributeError, AssertionError, RuntimeError):
            super().__init__()
        self.get_device_capability = lambda _: (9, 0)
        self.get_current_stream = lambda _: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda _: None


forms: dict[int, Any] = {}
launches: list[tuple[Any, ...]] = []


def parameter_types(form: Any) -> list[str]:
    """Of the entry of the machine code."""
    entry = re.search(r"\.entry[^(]*\((.*?)\)", form.asm["ptx"], re.DOTALL)
    assert entry is not None
    return re.findall(r"\.param\s+\.(\w+)", entry[1])


def seen(function: int, x: int, y: int, z: int, threads: int, shared: int, stream: Any, cells: Any) -> None:
    launches.append((function, (x, y, z), threads, shared, stream))
    # Triton launches a form for the first time before its caller has it.
    if function in forms:
        types = parameter_types(forms[function])
        launches[-1] += (tuple((t, SIZES[t].from_address(cells[i]).value) for i, t in enumerate(types)),)


def checked(launched: Any, *rest: Any, written: Any = recorder._launch) -> Any:
    """A launch as a recipe has it; it has as many parameters as the machine code."""
    out = written(launched, *rest)
    assert len(out[-1]) == len(parameter_types(launched.form)), launched.form.metadata.name
    return out


def connect() -> Any:
    """Make the stub the GPU of Triton and of the fast path; its tensors are those of the CPU."""
    triton.runtime.driver.set_active(Driver())
    kernels = devices.triton_kernels()
    devices.kernels_on = lambda _: kernels
    device._on = lambda _: contextlib.nullcontext()
    device.programs = lambda _: 528
    recorder._launch = checked
    recipes.state = lambda: (True, "the stub")
    fastpath.cache_plan = lambda *key: recipes.cache_plan(
        *key, next(numbers for (numbers, _), number in layout._numbered.items() if number == key[-1])
    )
    run = device._run

    def run_and_know(*args: Any) -> Any:
        form = run(*args)
        forms[form.function] = form
        return form

    device._run = run_and_know
    assert fastpath.connect_gpu(str(path), str(path), "cpu")
    kind = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, *[ctypes.c_uint] * 5, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    )
    callback = kind(seen)
    library.stub_callback(callback)
    return callback


def calls() -> Iterator[tuple[str, Callable[..., Any], list[Tensor | None]]]:
    def leaves(*sizes: int, features: int, dtype: torch.dtype = torch.float32, last: bool = False) -> list[Any]:
        x = torch.randn(sizes).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        affine = torch.float64 if dtype is torch.float64 else torch.float32
        return [x, torch.randn(features, dtype=affine), torch.randn(features, dtype=affine)]

    images = (8, 16, 28, 28)
    running = torch.zeros(16), torch.ones(16)
    yield "layer", lambda x, w, b: layer_norm(x, (768,), w, b), leaves(64, 768, features=768)
    half = leaves(64, 768, features=768, dtype=torch.bfloat16)
    yield "layer, half", lambda x, w, b: layer_norm(x, (768,), w, b, activation="gelu"), half
    double = leaves(64, 20000, features=20000, dtype=torch.float64)
    yield "layer, double", lambda x, w, b: layer_norm(x, (20000,), w, b), double
    yield "rms", lambda x, w, b: rms_norm(x, (768,), w), [*leaves(64, 768, features=768)[:2], None]
    for last in (False, True):
        x = leaves(*images, features=16, last=last)
        yield "group", lambda x, w, b: group_norm(x, 4, w, b, residual=x), x
        yield "batch", lambda x, w, b: batch_norm(x, *running, w, b, training=True), x
        yield "eval", lambda x, w, b: batch_norm(x, *running, w, b), x


def both(method: Callable[..., Any], leaves: list[Tensor | None]) -> list[tuple[Any, ...]]:
    """The launches of a forward and a backward pass, with numbers in place of addresses."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]
    launches.clear()
    out = method(*leaves)
    forward = launches.copy()
    launches.clear()
    wanted = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(out, wanted, torch.ones_like(out))
    assert len(grads) == len(wanted)
    names = {t.data_ptr(): f"leaf {i}" for i, t in enumerate(leaves) if t is not None}
    names |= {out.data_ptr(): "output", 0: "null"}
    named = []
    for launched in (*forward, *launches):
        parameters = [(t, names.setdefault(v, len(names)) if v > 2**32 else v) for t, v in launched[-1]]
        named.append((*launched[:-1], tuple(parameters)))
    return named


def main() -> None:
    callback = connect()
    for name, method, leaves in calls():
        for _ in range(3):
            x, w, b = (None if t is None else t.detach().requires_grad_() for t in leaves)
            y = method(x, w, b)
            y.backward(torch.ones_like(y))
        recipes_known = fastpath.known_recipes()
        replayed = both(method, leaves)
        assert fastpath.known_recipes() == recipes_known
        through, fastpath.norm = fastpath.norm, lambda *_: None
        python = both(method, leaves)
        fastpath.norm = through
        same = replayed == python
        kernels = [forms[function].metadata.name for function, *_ in replayed]
        counts = [len(each[-1]) for each in replayed]
        verdict = "same" if same else f"{replayed} by C++, {python} by Triton"
        print(f"{name}: {verdict}", *zip(kernels, counts, strict=True))
    print("refused:", *dict.fromkeys(recipes.refused), sep="\n")
    del callback


if __name__ == "__main__":
    main()
