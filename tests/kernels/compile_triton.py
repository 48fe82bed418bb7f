"""Compiles the kernels that calls would launch, for any GPU: ``python compile_triton.py cuda:90 hip:gfx942``.

Prints one line for each: kernel, target, warps, how many of its loads and stores take four words at a time, how many
there are, and how many numbers a kernel with tensors of float64 takes as float32.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normkit.kernels import devices, operator, weight
from normkit.kernels.backend import Want
from normkit.kernels.formula import Arguments
from normkit.kernels.triton import device, launch
from normkit.pattern import parse

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}
TYPES |= {torch.float8_e4m3fn: "fp8e4nv"}


def source(kernel: Any, pointers: tuple[Any, ...], rest: tuple[Any, ...]) -> ASTSource:
    """The form of a kernel that Triton would choose for these arguments."""
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}

    def kind(value: Any, path: tuple[int, ...], constant: bool, special: bool) -> Any:
        """The type of an argument in Triton's words; `special` if 1 and multiples of 16 are compiled in."""
        if constant or value is None or (special and isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            # For members of a tuple Triton knows no exception.
            return type(value)(*(kind(member, (*path, place), False, True) for place, member in enumerate(value)))
        if isinstance(value, float):
            return kernel.params[path[0]].annotation_type or "fp32"
        number = isinstance(value, int)
        if not number or (special and value % 16 == 0):
            hints[path] = [["tt.divisibility", 16]]
        return ("i32" if value < 2**31 else "i64") if number else "*" + TYPES[value.dtype]

    signature = {
        parameter.name: kind(value, (place,), parameter.is_constexpr, not parameter.do_not_specialize)
        for place, (parameter, value) in enumerate(zip(kernel.params, (*pointers, *rest), strict=True))
    }
    return ASTSource(kernel, signature, constants, hints)


def main(targets: list[GPUTarget]) -> None:
    seen = set()

    def compiled(kernel: Any, grid: tuple[int, ...], warps: int, pointers: tuple[Any, ...], *rest: Any) -> None:
        form = source(kernel, pointers, rest)
        key = (kernel.__name__, str(form.signature), str(form.constants), str(form.attrs), warps)
        if key in seen:
            return
        seen.add(key)
        for target in targets:
            options = {"num_warps": warps, "enable_fp_fusion": True}
            made = triton.compile(form, target=target, options=options)
            text = made.asm.get("ptx", "")
            wide = len(re.findall(r"\.v4\.b32|\.v2\.b64", text)), len(re.findall(r"(?:ld|st)\.global", text))
            narrow = text.count(".param .f32") if torch.float64 in [getattr(p, "dtype", None) for p in pointers] else 0
            print(kernel.__name__, target.backend, warps, *wide, narrow)

    launch.launch = compiled
    device.multiprocessors = lambda _: 132
    kernels = devices.triton_kernels()
    devices.kernels_on = lambda device: kernels
    for pattern in ("[b] c [...]", "b (g=8 [c]) [...]", "b [c] ...", "b [c ...]", "[b] (g [c=2]) [...]"):
        for layout in (torch.contiguous_format, torch.channels_last):
            calls(pattern, (8, 16, 56, 56), layout, torch.float32, with_mask="g=" in pattern)
    calls("... [c]", (4096, 768), torch.contiguous_format, torch.bfloat16)
    calls("... [c]", (64, 20000), torch.contiguous_format, torch.float64)
    calls("b c [...]", (2, 2, 400, 400), torch.contiguous_format, torch.float16)
    sizes = ((64, 64, 3, 3), 0), ((600, 600), None), ((4, 50000), 0), ((700, 5, 3, 3), 1), ((6000, 5, 3, 3), 1)
    for shape, dim in sizes:
        v = torch.empty(shape)
        g = torch.empty(1 if dim is None else shape[dim])
        _, length = weight.weight_norm(v, g, dim)
        weight.weight_norm_backward(v, v, g, length, dim)
    rows = torch.empty(4096, 1024, dtype=torch.bfloat16)
    launch.quantize(Arguments(rows, rows[0], rows[0], "... [c]", 1e-5, True), None, torch.float8_e4m3fn)
    for dtype in (torch.float32, torch.float64):
        launch.move_running(*(torch.empty(64, dtype=dtype) for _ in range(4)), 8, 0.1)


def calls(
    pattern: str, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, with_mask: bool = False
) -> None:
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout)
    features = math.prod(level.size for level in parse(pattern).levels(shape) if level.feature)
    w = torch.empty(features, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    a = Arguments(x, w, w, pattern, 1e-5, True)
    _, _, mean, std = operator.norm(a)
    want = Want(True, True, True)
    operator.norm_backward(x, a._replace(mean=mean, var=std), False, want)
    if with_mask:
        mask = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
        a = a._replace(residual=x, mask=mask, activation="gelu")
        out = operator.norm(a)
        operator.norm_backward(x, a._replace(x=out.sum, mean=out.mean, var=out.std), False, want)


if __name__ == "__main__":
    named = [name.split(":") for name in sys.argv[1:]]
    main([GPUTarget(b, int(arch) if arch.isdigit() else arch, 32 if b == "cuda" else 64) for b, arch in named])
