"""The same C++ on other processors and compilers: cross-compiled, emulated, and held against the reference.

Needs no device: ``apt install g++-aarch64-linux-gnu qemu-user clang`` is all that runs every row of `TARGETS`.
"""

import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normkit.kernels import formula
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.layout import Layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DNORMKIT_ISA=baseline", f"-I{ROOT / 'csrc'}"]
# Loops for packed types use captures that those for other types leave alone, in one lambda of `if constexpr`.
CLANG = ["clang++", "-Wno-unused-lambda-capture"]
NATIVE = ["-march=native"] if platform.machine() == "x86_64" else []
TARGETS = {
    "host": (["c++"], []),
    "host-clang": ([*CLANG, *NATIVE], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
    "aarch64-clang": ([*CLANG, "--target=aarch64-linux-gnu", "-static"], ["aarch64-linux-gnu-g++", "qemu-aarch64"]),
}
"""Name: how to compile, and which other programs must be there; the last of them runs what was compiled."""

STORAGE = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
PATTERNS = ["[b] c [...]", "b [c ...]", "b [c] ...", "b c [...]", "b (g=2 [c]) [...]", "[b] c [h] w"]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}
# Together they cross every block, tile, strip and chunk; (90, 8, 1, 1) has rows narrow enough to be turned.
SHAPES = [(7, 6, 11, 13), (2, 64, 17, 9), (40, 6, 3, 1), (90, 8, 1, 1), (3, 4, 300, 7), (1, 2, 35000, 1)]


def layout_of(x: Tensor, pattern: str) -> Layout:
    return Layout(Arguments(x, None, None, pattern, 0.0, True))


@dataclass(frozen=True)
class Data:
    """Random numbers to normalize: randn * scale + offset."""

    scale: float = 1.0
    offset: float = 3.0
    eps: float = 1e-5


ORDINARY = Data()
# Subnormal in the type itself, and a mean far above the deviations from it.
HARD = {
    torch.float64: [Data(1.0, 1e9), Data(1e-310, 0.0)],
    torch.float32: [Data(1.0, 1e4), Data(1e-40, 0.0), Data(1e30, 0.0)],
    torch.bfloat16: [Data(1.0, 30.0), Data(1e-40, 0.0)],
    torch.float16: [Data(1.0, 100.0), Data(1e-6, 0.0, 1e-6)],
}


def raw(t: Tensor | None) -> bytes:
    """The memory of a dense tensor, in its order."""
    return b"" if t is None else t.as_strided((t.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


class Results:
    """The output of the harness, one tensor after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = bytearray(data), 0

    def take(self, n: int, dtype: torch.dtype) -> Tensor:
        size = n * dtype.itemsize
        piece = torch.frombuffer(self.data, dtype=dtype, count=n, offset=self.at) if n else torch.empty(0, dtype=dtype)
        assert self.at + size <= len(self.data)
        self.at += size
        return piece


@dataclass
class Job:
    """One call as the harness takes it, and its results as tensors of the caller."""

    call: Layout
    dy: Tensor
    weight: Tensor | None
    bias: Tensor | None
    moments: tuple[Tensor, Tensor] | None
    eps: float
    center: bool

    def packed(self, threads: int) -> bytes:
        k0, r0, k1, r1, period, inner, columns = self.call.plan.numbers[:7]
        flags = (self.center, self.moments is not None, self.weight is not None, self.bias is not None)
        head = (STORAGE[self.call.x.dtype], k0, r0, k1, r1, period, inner, columns, *flags, threads)
        parts = [self.call.x, self.call.into(self.dy), self.call.parameter(self.weight), self.call.parameter(self.bias)]
        parts += [self.call.statistic(t) for t in self.moments or ()]
        return struct.pack("13qd", *map(int, head), self.eps) + b"".join(map(raw, parts))

    def unpacked(self, results: Results) -> list[Tensor]:
        """y, mean, std, dx, dweight, dbias."""
        call, stat, plan = self.call, self.call.stat, self.call.plan

        def like_x() -> Tensor:
            flat = results.take(call.x.numel(), call.x.dtype)
            return call.out(flat.as_strided(call.x.shape, call.x.stride()))

        y = like_x()
        mean, std = results.take(plan.cells if self.center else 0, stat), results.take(plan.cells, stat)
        dx = like_x()
        dweight, dbias = results.take(plan.period, stat), results.take(plan.period, stat)
        back = [call.statistic_back(mean), call.statistic_back(std)]
        return [y, *back, dx, call.parameter_back(dweight), call.parameter_back(dbias)]


class Machine:
    """The harness, compiled for one target."""

    def __init__(self, name: str, folder: Path) -> None:
        compiler, others = TARGETS[name]
        for program in (compiler[0], *others):
            if not shutil.which(program):
                pytest.skip(f"no {program} here: apt install g++-aarch64-linux-gnu qemu-user clang")
        self.program = [*others[-1:], str(folder / name)]
        sources = [ROOT / "csrc" / "isa.cpp", Path(__file__).parent / "cross" / "harness.cpp"]
        command = [compiler[0], *FLAGS, *compiler[1:], *sources, "-o", folder / name]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, jobs: list[Job], threads: int = 1) -> list[list[Tensor]]:
        done = subprocess.run(self.program, input=b"".join(job.packed(threads) for job in jobs), capture_output=True)
        assert done.returncode == 0, (done.returncode, done.stderr)
        results = Results(done.stdout)
        out = [job.unpacked(results) for job in jobs]
        assert results.at == len(done.stdout)
        return out


@pytest.fixture(scope="module", params=list(TARGETS))
def machine(request, tmp_path_factory) -> Machine:
    return Machine(request.param, tmp_path_factory.mktemp("cross"))


def job_of(shape, layout, pattern, dtype, data, *, center=True, fixed=False, parameters=True) -> tuple[Job, Tensor]:
    """A call and its x."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=gen, dtype=torch.float64) * data.scale + data.offset
    x = LAYOUTS[layout](x.to(dtype))
    dy = LAYOUTS[layout](torch.randn(shape, generator=gen).to(dtype))
    stat = arithmetic_dtype(dtype)
    w, b = (torch.randn(shape[1], generator=gen).to(stat) for _ in range(2)) if parameters else (None, None)
    moments = None
    if fixed:  # near the true ones, not equal to them
        _, _, mean, std = formula.norm(Arguments(x.double(), None, None, pattern, data.eps, center))
        moments = ((mean + 0.1 * std).to(stat), (1.1 * std).to(stat))
    return Job(layout_of(x, pattern), dy, w, b, moments, data.eps, center), x


def check(job: Job, x: Tensor, pattern: str, got: list[Tensor]) -> None:
    """y within the published bound, 4 eps (1 + |mean| / std) of the largest |y|.

    Gradients cancel, so theirs is four times that of the largest sum of magnitudes: |dy| or |dy| |x_hat|. Near the end
    of the range an operation is off by a last bit, however small its result; `lost` is what that makes of x_hat.
    """
    dtype, stat = x.dtype, job.call.stat
    a = Arguments(x.double(), job.weight, job.bias, pattern, job.eps, job.center)
    if job.moments is None:
        y, _, mean, std = formula.norm(a)
    else:
        mean, std = (t.double() for t in job.moments)
        a = a._replace(mean=mean, var=std.square())
        y = formula.norm(a).y
    grads = formula.norm_backward(job.dy, a, job.moments is not None)

    spread = (std.square() + job.eps).sqrt()
    given = a._replace(weight=None, bias=None, mean=mean if job.center else 0 * std, var=std.square())
    x_hat = largest(formula.norm(given).y)
    w = 1.0 if job.weight is None else largest(job.weight)
    dy, rstd, dy_sum = largest(job.dy), 1 / spread.min().item(), largest(of_magnitudes(job, a))
    condition = 1 + (largest(mean / spread) if job.center else 0)
    lost = 4 * smallest(stat) * (1 + rstd)

    def close(name: str, one: Tensor, other: Tensor, factor: float, of: float, floor: float, kind: torch.dtype) -> None:
        error = largest(one.double() - other)
        bound = factor * torch.finfo(kind).eps * condition * of + floor + smallest(kind)
        where = f"{pattern} {tuple(x.shape)} {job.call.plan}"
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}; {where}"

    close("y", got[0], y, 4, largest(y), lost * w, dtype)
    if job.moments is None:
        if job.center:
            close("mean", got[1], mean, 4, largest(mean) + largest(std), lost, stat)
        # Squares that eps hides may be lost, so std is seen as the kernels use it.
        close("std", (got[2].double().square() + job.eps).sqrt(), spread, 4, largest(spread), lost, stat)
    close("dx", got[3], grads[0], 16, dy * w * rstd * max(1.0, x_hat), lost * dy * w * rstd, dtype)
    close("dweight", got[4], grads[1], 16, dy_sum * x_hat, lost * dy_sum, stat)
    close("dbias", got[5], grads[2], 16, dy_sum, 0.0, stat)


def largest(t: Tensor) -> float:
    return t.abs().max().item()


def smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def of_magnitudes(job: Job, a: Arguments) -> Tensor:
    """Sums of |dy| for each weight."""
    return formula.norm_backward(job.dy.abs(), a._replace(weight=None), job.moments is not None)[2]


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_every_view_agrees_with_the_reference(machine, dtype):
    """Forward and backward, moments its own and given, and the same bits however many threads share the work."""
    rows = []
    for shape in SHAPES:
        for pattern in PATTERNS:
            for layout in LAYOUTS:
                kinds = [{}, {"center": False}, {"fixed": True}, {"parameters": False}]
                # All four for a small shape, one for each of the larger ones.
                some = kinds if shape == SHAPES[0] else kinds[len(rows) % 4 :][:1]
                rows += [(pattern, job_of(shape, layout, pattern, dtype, ORDINARY, **kind)) for kind in some]
    jobs = [job for _, (job, _) in rows]
    once, shared = machine.run(jobs), machine.run(jobs, threads=3)
    for (pattern, (job, x)), got, again in zip(rows, once, shared, strict=True):
        check(job, x, pattern, got)
        assert all(map(torch.equal, got, again)), (pattern, tuple(x.shape), str(job.call.plan))


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_subnormals_huge_offsets_and_huge_numbers(machine, dtype):
    rows = [
        (pattern, job_of((5, 6, 11, 13), layout, pattern, dtype, data))
        for pattern in PATTERNS
        for layout in LAYOUTS
        for data in HARD[dtype]
    ]
    for (pattern, (job, x)), got in zip(rows, machine.run([job for _, (job, _) in rows]), strict=True):
        check(job, x, pattern, got)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_every_length_has_its_tail(machine, dtype):
    """Rows of 1 to 200 elements, and a few about the sizes of lanes and blocks."""
    lengths = [*range(2, 200), 255, 257, 2047, 2049, 4100]
    jobs = [(job_of((5, n, 1, 1), "contiguous", "b [c] ...", dtype, ORDINARY)) for n in lengths]
    jobs += [(job_of((1, 1, 5, n), "contiguous", "b c h [w]", dtype, ORDINARY)) for n in lengths]
    jobs += [(job_of((n, 3, 1, 1), "contiguous", "[b] c ...", dtype, ORDINARY)) for n in lengths]
    patterns = [p for p in ("b [c] ...", "b c h [w]", "[b] c ...") for _ in lengths]
    for pattern, (job, x), got in zip(patterns, jobs, machine.run([job for job, _ in jobs]), strict=True):
        check(job, x, pattern, got)


def test_large_results_are_streamed_past_the_cache(machine):
    job, x = job_of((2, 3, 1100, 500), "contiguous", "b c [...]", torch.float64, ORDINARY)
    check(job, x, "b c [...]", machine.run([job])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_converts_as_torch_does(machine, dtype):
    """Every number of the type in and out again; then float32 to it: random, every tie, and what leaves its range."""
    zero, one = torch.zeros(1), torch.ones(1)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 1, -1)
    numbers = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).mul(torch.logspace(-9, 6, 100_000))
    finite = every.flatten()[every.flatten().isfinite()].float().sort().values
    ties = (finite[1:] / 2 + finite[:-1] / 2).float()
    edge = torch.tensor([65519.99, 65520.0, 1e30, -1e30, 3.4028235e38, float("nan"), -0.0])
    w = torch.cat([numbers, ties, torch.nextafter(ties, one), torch.nextafter(ties, -one), edge])
    ones = torch.ones(1, len(w), 1, 1, dtype=dtype)
    given = (torch.zeros(len(w)), torch.ones(len(w)))
    same = Job(layout_of(every, "b c [...]"), torch.zeros_like(every), None, None, (zero, one), 0.0, True)
    # x_hat = 1 and no bias, so that y is the weight rounded to the type.
    rounded = Job(layout_of(ones, "[b] c [...]"), torch.zeros_like(ones), w, None, given, 0.0, True)
    rounded_row = Job(layout_of(ones, "b [c] ..."), torch.zeros_like(ones), w, None, (zero, one), 0.0, True)
    (y, *_), (z, *_), (row, *_) = machine.run([same, rounded, rounded_row])
    # Where a processor has an instruction for bfloat16, that takes subnormals for zero.
    least = torch.finfo(dtype).smallest_normal if dtype is torch.bfloat16 else 0.0

    def same_numbers(got: Tensor, want: Tensor) -> None:
        got, want = (torch.where(t.abs() <= least, 0, t) for t in (got, want))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)

    same_numbers(y, every)
    for out in (row, z):
        same_numbers(out.flatten(), w.to(dtype))
