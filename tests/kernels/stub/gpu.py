"""A GPU that is not there: CPU tensors are its tensors, a stub is its driver, and Triton's interpreter computes.

A kernel gets a form as if it had been compiled. Both ways of a call, Python's and C++'s, end in the stub's
`cuLaunchKernel`. It reads the parameters from memory as machine code would, writes them down, and computes the launch
from them alone.
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("driver.cpp")
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES[torch.uint8] = "u8"
DTYPES = {"*" + name: dtype for dtype, name in TYPES.items()}
NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


class Launched(NamedTuple):
    """One launch as the driver has seen it."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    stream: int | None
    parameters: tuple[Any, ...]
    """Numbers, and pointers as ``("*fp32", address)``."""


class Parameter(NamedTuple):
    """What Triton knows of a kernel's parameter; an interpreted kernel does not keep it."""

    name: str
    is_constexpr: bool
    do_not_specialize: bool


def parameters_of(kernel: Any) -> list[Parameter]:
    plain = kernel.kwargs["do_not_specialize"] or ()
    found = inspect.signature(kernel.fn).parameters.values()
    return [Parameter(each.name, "constexpr" in str(each.annotation), each.name in plain) for each in found]


def kind(value: Any, constant: bool, special: bool) -> Any:
    """The type of an argument in Triton's words; `special` if 1 is compiled in."""
    if constant or value is None or (special and isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(kind(member, False, True) for member in value)
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


class Form:
    """A compiled form, as far as normkit looks at it."""

    def __init__(self, gpu: Gpu, number: int, kernel: Any, signature: dict[str, Any], warps: int, arguments: Any):
        self.gpu, self.kernel, self.arguments = gpu, kernel, arguments
        self.function = 4096 + 16 * number
        self.src = SimpleNamespace(signature=signature)
        self.metadata = SimpleNamespace(
            name=kernel.__name__,
            num_warps=warps,
            shared=64 * number,
            num_ctas=1,
            global_scratch_size=0,
            profile_scratch_size=0,
            launch_cooperative_grid=False,
            launch_pdl=False,
            target=SimpleNamespace(backend="cuda", arch=90, warp_size=32),
        )

    def flat(self, kinds: Any, values: Any) -> list[tuple[str, Any]]:
        """Types and values that machine code is passed; written apart from normkit.kernels.triton.recipes."""
        out = []
        for one, value in zip(kinds, values, strict=True):
            if isinstance(one, tuple):
                out += self.flat(one, value)
            elif one != "constexpr":
                out.append((one, value))
        return out

    def launch(self, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        """As Triton's launcher: pack the arguments and call the driver."""
        cells: list[Any] = []
        for one, value in self.flat(self.src.signature.values(), arguments):
            cells.append(ctypes.c_uint64(value.data_ptr()) if one.startswith("*") else NUMBERS[one](value))
        cells += [ctypes.c_uint64(0), ctypes.c_uint64(0)]
        addresses = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
        found, stream = self.metadata, ctypes.c_void_p()
        library = self.gpu.library
        library.aoti_torch_get_current_cuda_stream(-1, ctypes.byref(stream))
        library.cuCtxSetCurrent(ctypes.c_void_p(1))
        threads = found.num_warps * 32
        error = library.cuLaunchKernel(
            ctypes.c_void_p(self.function), *grid, threads, 1, 1, found.shared, stream, addresses, None
        )
        assert not error

    def run(self, launched: Launched, addresses: Any) -> None:
        """Compute a launch from the memory of its parameters."""
        place = itertools.count()

        def read(one: Any, template: Any) -> Any:
            if isinstance(one, tuple):
                return type(template)(*(read(each, value) for each, value in zip(one, template, strict=True)))
            if one == "constexpr":
                return template
            value = launched.parameters[next(place)]
            return tensor_at(*value) if isinstance(value, tuple) else value

        signature = self.src.signature.values()
        arguments = [read(one, value) for one, value in zip(signature, self.arguments, strict=True)]
        with self.gpu.interpreting:  # which changes Triton's language meanwhile
            self.kernel[launched.grid](*arguments, num_warps=self.metadata.num_warps)


def tensor_at(kind: str, address: int) -> Tensor:
    """One element at an address; interpreted kernels find the others by their distance from it."""
    dtype = DTYPES[kind]
    memory = (ctypes.c_uint8 * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


class Gpu:
    """The stub, with the forms it knows and the launches it has seen."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "libstub.so")
        subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", self.path, str(SOURCE)], check=True)
        self.library = ctypes.CDLL(self.path)
        self.interpreting = threading.Lock()
        self.launches: list[Launched] = []
        self.failures: list[BaseException] = []
        self.forms: dict[Any, Form] = {}
        self.by_function: dict[int, Form] = {}
        unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
        kind = ctypes.CFUNCTYPE(None, pointer, *[unsigned] * 5, pointer, ctypes.POINTER(pointer))
        self.callback = kind(self._seen)
        self.library.stub_callback(self.callback)

    def form(self, kernel: Any, warps: int, arguments: tuple[Any, ...]) -> Form:
        known = parameters_of(kernel)
        signature = {
            p.name: kind(value, p.is_constexpr, not p.do_not_specialize)
            for p, value in zip(known, arguments, strict=True)
        }
        constants = tuple(value for p, value in zip(known, arguments, strict=True) if p.is_constexpr)
        key = (kernel.__name__, str(signature), str(constants), warps)
        if key not in self.forms:
            form = self.forms[key] = Form(self, len(self.forms), kernel, signature, warps, arguments)
            self.by_function[form.function] = form
        return self.forms[key]

    def run(self, kernel: Any, grid: Any, warps: int, pointers: Any, rest: Any) -> Form:
        """In place of `normkit.kernels.triton.device._run`."""
        form = self.form(kernel, warps, (*pointers, *rest))
        form.launch(grid, (*pointers, *rest))
        return form

    def _seen(self, function: int, x: int, y: int, z: int, threads: int, shared: int, stream: Any, cells: Any) -> None:
        try:
            form = self.by_function[function]
            parameters: list[Any] = []
            kinds = [one for one, _ in form.flat(form.src.signature.values(), form.arguments)]
            for place, one in enumerate(kinds):
                if one.startswith("*"):
                    parameters.append((one, ctypes.c_uint64.from_address(cells[place]).value))
                else:
                    parameters.append(NUMBERS[one].from_address(cells[place]).value)
            hidden = [ctypes.c_uint64.from_address(cells[len(kinds) + i]).value for i in range(2)]
            assert hidden == [0, 0], "the two hidden parameters are null"
            launched = Launched(form.kernel.__name__, (x, y, z), threads, shared, stream, tuple(parameters))
            self.launches.append(launched)
            form.run(launched, cells)
        except BaseException as error:  # ctypes would swallow it
            self.failures.append(error)

    def seen(self, **tensors: Tensor | None) -> list[Launched]:
        """The launches since the last call, with the names of tensors in place of their addresses."""
        if self.failures:
            raise self.failures[0]
        names = {t.data_ptr(): name for name, t in tensors.items() if t is not None and t.numel()}

        def named(value: Any) -> Any:
            if not isinstance(value, tuple):
                return value
            one, address = value
            return one, names.setdefault(address, f"temporary {len(names)}")

        out = [each._replace(parameters=tuple(map(named, each.parameters))) for each in self.launches]
        self.launches.clear()
        return out
