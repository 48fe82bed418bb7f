"""Compiles the kernels that calls would launch, for any GPU: ``python compile_triton.py cuda:90 hip:gfx942``.

With ``--few`` first, fewer of them, but each kernel; with ``--cells``, those of the large tensors that
`benchmarks.gpu.run` measures, in bfloat16; with ``--extended``, those of calls that fuse a gate, or have other weights
for each sample or group.

Prints one line for each form: kernel, target, warps, how many of its loads and stores take four words at a time, how
many there are, how often a loop rearranges a tile among its threads, registers and bytes of stack of a thread (-1 where
that is not known), and how many numbers a kernel with tensors of float64 takes as float32. Ends with an error if
floating-point instructions depend on whether a call keeps its moments.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
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
TYPES |= {torch.float8_e4m3fn: "fp8e4nv", torch.int8: "i8"}
FLOATING = re.compile(r"\b(?:fma|mul|add|sub|div|sqrt|rcp)\.[a-z.]*f(?:32|64)")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


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


def rearranged(text: str) -> int:
    """How often a loop of the GPU's intermediate code changes the layout of a matrix."""
    count, loops = 0, []
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() and not line.startswith("#"):
            loops = [loop for loop in loops if loop < depth]
        if "scf.for" in line:
            loops.append(depth)
        elif loops and re.search(r"convert_layout.*tensor<\d*[02-9]\d*x\d*[02-9]", line):
            count += 1
    return count


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    if not CUOBJDUMP.exists():
        return -1, -1
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        done = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


class Compiler:
    """In place of `launch`: compiles each form once, and counts the floating-point instructions of a call."""

    def __init__(self, targets: list[GPUTarget]) -> None:
        self.targets = targets
        self.seen: dict[Any, Counter[str]] = {}
        self.instructions: list[Counter[str]] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], warps: int, pointers: tuple[Any, ...], *rest: Any) -> None:
        form = source(kernel, pointers, rest)
        key = (kernel.__name__, str(form.signature), str(form.constants), str(form.attrs), warps)
        if key not in self.seen:
            wide = any(isinstance(p, torch.Tensor) and p.dtype is torch.float64 for p in pointers)
            self.seen[key] = Counter()
            for target in self.targets:
                self.seen[key] += self.compiled(form, target, kernel.__name__, warps, wide)
        self.instructions.append(self.seen[key])

    def compiled(self, form: ASTSource, target: GPUTarget, name: str, warps: int, wide: bool) -> Counter[str]:
        made = triton.compile(form, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
        text = made.asm.get("ptx", "")
        words, all_of_them = re.findall(r"\.v4\.b32|\.v2\.b64", text), re.findall(r"(?:ld|st)\.global", text)
        used = resources(made.asm["cubin"]) if "cubin" in made.asm else (-1, -1)
        narrow = text.count(".param .f32") if wide else 0
        moved = rearranged(made.asm["ttgir"])
        print(name, target.backend, warps, len(words), len(all_of_them), moved, *used, narrow, flush=True)
        return Counter(FLOATING.findall(text))


def prepared(targets: list[GPUTarget]) -> Compiler:
    """From now on, calls compile what they would launch."""
    compiler = Compiler(targets)
    device.launch = compiler
    device.multiprocessors = lambda _: 132
    kernels = devices.triton_kernels()
    devices.kernels_on = lambda device: kernels
    return compiler


def cells(targets: list[GPUTarget]) -> None:
    compiler = prepared(targets)
    images = "[b] c [...]", "b (g=32 [c]) [...]", "b c [...]", "b [c] ..."
    for pattern in images:
        for shape in ((32, 64, 112, 112), (64, 256, 56, 56), (128, 512, 14, 14)):
            for layout in (torch.contiguous_format, torch.channels_last):
                print(pattern, shape, layout)
                calls(compiler, pattern, shape, layout, torch.bfloat16)
    for shape in ((16384, 2048), (8192, 8192), (2048, 32768)):
        for center in (True, False):
            print("layer norm" if center else "RMS norm", shape)
            calls(compiler, "... [c]", shape, torch.contiguous_format, torch.bfloat16, center=center)


def extended(targets: list[GPUTarget]) -> None:
    prepared(targets)
    for name, a in fused_calls():
        print(f"# {name}")
        both_passes(a)


def fused_calls() -> Iterator[tuple[str, Arguments]]:
    """Calls that fuse a gate, that have weights for each sample or for each group of a row, or rows with gaps."""
    x = torch.empty(16384, 2048, dtype=torch.bfloat16)
    rows = Arguments(x, x[0].clone(), None, "... [c]", 1e-6, False)
    yield "gated rows", rows._replace(gate=x.clone(), gate_activation="silu")
    yield (
        "gated rows with skip",
        rows._replace(gate=x.clone(), gate_activation="silu", skip=x.clone(), activation="gelu"),
    )
    yield "rows gated first", rows._replace(gate=x.clone(), gate_activation="silu", gate_first=True)
    yield "rows cast first", rows._replace(cast_first=True, zero_centered=True)
    tokens = torch.empty(32, 256, 1152, dtype=torch.bfloat16)
    scale = tokens[:, :1].clone()
    dit = Arguments(tokens, scale, scale, "... [c]", 1e-6, True)
    yield "modulated tokens", dit._replace(zero_centered=True)
    yield "modulated tokens with residual", dit._replace(zero_centered=True, residual=tokens.clone())
    images = torch.empty(32, 256, 32, 32, dtype=torch.bfloat16)
    scale = images[:, :, :1, :1].clone(memory_format=torch.contiguous_format)
    yield "modulated images", Arguments(images, scale, scale, "b (g=32 [c]) [...]", 1e-6, True, activation="silu")
    wide = torch.empty(8192, 4096, dtype=torch.bfloat16)
    grouped = Arguments(wide, wide[0].clone(), None, "... (g=8 [c])", 1e-6, False)
    yield "grouped rows", grouped
    yield "grouped rows gated first", grouped._replace(gate=wide.clone(), gate_activation="silu", gate_first=True)
    long = torch.empty(2048, 16384, dtype=torch.bfloat16)
    yield (
        "long gated rows",
        Arguments(long, long[0].clone(), None, "... [c]", 1e-6, False, gate=long.clone(), gate_activation="silu"),
    )
    heads = torch.empty(4, 2048, 3, 16, 128, dtype=torch.bfloat16)[:, :, 1]
    yield "heads of a fused projection", Arguments(heads, heads[0, 0, 0].clone(), None, "... [c]", 1e-6, False)


def both_passes(a: Arguments) -> None:
    out = operator.norm(a)
    back = a._replace(x=a.x if out.sum is None else out.sum, mean=out.mean, var=out.std)
    want = Want(True, a.weight is not None, a.bias is not None, a.gate is not None, a.skip is not None)
    operator.norm_backward(out.y, back, False, want)


def main(targets: list[GPUTarget], few: bool = False) -> None:
    compiler = prepared(targets)
    for pattern in ("[b] c [...]", "b (g=8 [c]) [...]", "b [c] ..."):
        for layout in (torch.contiguous_format, torch.channels_last):
            if not few or (layout == torch.channels_last) == ("g=" in pattern):
                calls(compiler, pattern, (8, 16, 56, 56), layout, torch.float32, with_mask="g=" in pattern)
    calls(compiler, "[b] (g [c=2]) [...]", (8, 16, 56, 56), torch.contiguous_format, torch.float32)
    calls(compiler, "... [c]", (4096, 768), torch.contiguous_format, torch.bfloat16)
    if not few:
        calls(compiler, "[b] c [...]", (128, 512, 14, 14), torch.contiguous_format, torch.bfloat16)
        calls(compiler, "b [c] ...", (64, 256, 56, 56), torch.contiguous_format, torch.bfloat16)
        calls(compiler, "... [c]", (64, 40000), torch.contiguous_format, torch.bfloat16, center=False)
    calls(compiler, "... [c]", (64, 20000), torch.contiguous_format, torch.float64)
    calls(compiler, "b c [...]", (2, 2, 400, 400), torch.contiguous_format, torch.float16)
    sizes = ((64, 64, 3, 3), 0), ((600, 600), None), ((4, 50000), 0), ((700, 5, 3, 3), 1), ((6000, 5, 3, 3), 1)
    for shape, dim in sizes:
        v = torch.empty(shape)
        g = torch.empty(1 if dim is None else shape[dim])
        _, length = weight.weight_norm(v, g, dim)
        weight.weight_norm_backward(v, v, g, length, dim)
    rows = torch.empty(4096, 1024, dtype=torch.bfloat16)
    a = Arguments(rows, rows[0], rows[0], "... [c]", 1e-5, True)
    launch.quantize(a, None, torch.float8_e4m3fn, "row", 0)
    a = a._replace(residual=rows, gate=rows, gate_activation="silu", zero_centered=True)
    launch.quantize(a, None, torch.int8, "group", 128)
    launch.quantize(a, None, torch.float8_e4m3fn, "mxfp8", 32)
    for dtype in (torch.float32, torch.float64):
        launch.move_running(*(torch.empty(64, dtype=dtype) for _ in range(4)), 8, 0.1)


def calls(
    compiler: Compiler,
    pattern: str,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    with_mask: bool = False,
    center: bool = True,
) -> None:
    x = torch.empty(shape, dtype=dtype, memory_format=layout if len(shape) == 4 else torch.contiguous_format)
    features = math.prod(level.size for level in parse(pattern).levels(shape) if level.feature)
    w = torch.empty(features, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    a = Arguments(x, w, w if center else None, pattern, 1e-5, center)
    compiler.instructions.clear()
    _, _, mean, std = operator.norm(a)
    kept = [*compiler.instructions]
    compiler.instructions.clear()
    operator.norm(a, moments=False)
    assert compiler.instructions == kept, f"{pattern} {shape} {dtype}: moments that are kept change the arithmetic"
    operator.norm_backward(x, a._replace(mean=mean, var=std), False, Want(True, True, center))
    if with_mask:
        mask = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
        a = a._replace(residual=x, mask=mask, activation="gelu")
        out = operator.norm(a)
        operator.norm_backward(x, a._replace(x=out.sum, mean=out.mean, var=out.std), False, Want(True, True, True))


if __name__ == "__main__":
    named = [name.split(":") for name in sys.argv[1:] if not name.startswith("--")]
    few = partial(main, few=True)
    named_calls = {"--cells": cells, "--extended": extended, "--few": few}
    next((call for option, call in named_calls.items() if option in sys.argv), main)(
        [GPUTarget(b, int(arch) if arch.isdigit() else arch, 32 if b == "cuda" else 64) for b, arch in named]
    )
