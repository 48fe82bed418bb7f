"""The GPU kernels: every kernel and flag against the definition, on a GPU where there is one, else interpreted."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreted import DEVICE, by_triton  # noqa: F401
from torch import Tensor

import contract
from cases import CASES
from normkit import functional
from normkit.errors import ShapeError
from normkit.functional.call.running import Running, update
from normkit.kernels import formula, operator, weight
from normkit.kernels.backend import Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import ACTIVATIONS, Arguments
from normkit.kernels.layout import forget_plans, plan_of
from normkit.kernels.triton import launch
from normkit.kernels.triton.schedule import Features, Schedule, Walk, schedule
from normkit.pattern import parse

pytestmark = [pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")]  # Triton 3.6's
if DEVICE == "cuda":
    pytestmark.append(pytest.mark.gpu)

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


def draw(*sizes: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
    return torch.randn(sizes, device=DEVICE).to(dtype).contiguous(memory_format=layout)


def error(got: Tensor, want: Tensor) -> float:
    """In units of the largest entry, at least 1."""
    return ((got.double().cpu() - want.double().cpu()).abs().max() / max(1.0, want.abs().max().item())).item()


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same on a CPU in float64, where the definition is the oracle."""
    return [None if t is None else t.detach().double().cpu() for t in tensors]


def last_schedule() -> Schedule:
    return list(launch._schedules.values())[-1]


def check(pattern, shape, layout, dtype, affine, center=True):
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
    got = (y, mean, std, *grads)
    xe, we, be, dye = exact(x, w, b, dy)
    call = Arguments(xe, we, be, pattern, 1e-5, center)
    y64, _, *moments64 = formula.norm(call)
    want = (y64, *moments64, *formula.norm_backward(dye, call, False))
    assert y.stride() == got[3].stride() == x.stride()
    assert y.dtype == got[3].dtype == dtype
    # What rounding the mean does to y and to all gradients; those are sums, too, of up to 90 000 terms.
    far = 1 + ((want[1].abs() if center else 0 * want[2]) / (want[2].square() + 1e-5).sqrt()).max().item()
    eps, fine = torch.finfo(dtype).eps, torch.finfo(stat).eps
    units = (4 * far * eps, 4 * fine, 4 * fine, 16 * far * eps, 16 * far * fine, 16 * far * fine)
    for one, other, bound in zip(got, want, units, strict=True):
        if one is not None and one.numel():
            assert error(one, other) <= bound, (error(one, other) / bound, str(last_schedule()))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_give_what_the_definition_gives(pattern, layout, shape):
    if DEVICE == "cpu" and pattern == "rows" and shape == SHAPES[3]:
        pytest.skip("thousands of programs, which the interpreter takes one after another")
    for index, dtype in enumerate(DTYPES if math.prod(shape) < 10000 else DTYPES[::3]):
        check(PATTERNS[pattern], shape, layout, dtype, affine=index != 2, center=index != 3)


def test_that_covers_every_way_to_walk_and_to_add_up():
    seen = set()
    for pattern, shape, layout in itertools.product(PATTERNS.values(), SHAPES, LAYOUTS):
        x = torch.empty(shape).contiguous(memory_format=layout)
        s = schedule(*_numbers(pattern, x))
        seen |= {(s.walk, s.along), s.features, ("columns", s.c > 1)}
    assert {walk for walk, _ in filter(lambda one: isinstance(one, tuple), seen)} >= set(Walk) - {Walk.GIVEN}
    assert seen >= {(walk, Features.CELL) for walk in (Walk.WHOLE, Walk.TWICE, Walk.PARTS)}
    assert seen >= {(walk, Features.R0) for walk in (Walk.WHOLE, Walk.TWICE)}
    assert seen >= {(walk, Features.R1) for walk in (Walk.WHOLE, Walk.TWICE)}
    assert seen >= {Features.APART, ("columns", True)}


def _numbers(pattern: str, x: Tensor) -> tuple[tuple[int, int, int, int], int, int]:
    plan = plan_of(pattern, x.shape, x.stride())
    return plan.view, plan.period, plan.inner


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(launch, "FAR", 0)
    for pattern, layout in itertools.product(("batch", "group", "rows", "mixed", "all"), LAYOUTS):
        check(PATTERNS[pattern], SHAPES[1], layout, torch.float32, affine=True)


# What is fused ---------------------------------------------------------------------------------------------


CASES_OF_FUSED = list(
    itertools.product(
        ("batch", "instance", "group", "image", "pixel", "mixed"),
        [(3, 8, 5, 7), (2, 6, 40, 33), (1, 4, 100, 100), (2, 64, 9, 3)],
        LAYOUTS,
        DTYPES[:3],
        ACTIVATIONS,
        [False, True],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize("part", range(6))
def test_what_is_fused_gives_what_the_definition_gives(part):
    """A sample of all combinations, the same in every run."""
    gen = torch.Generator().manual_seed(part)
    for index in torch.randperm(len(CASES_OF_FUSED), generator=gen)[:15].tolist():
        torch.manual_seed(index)
        check_fused(*CASES_OF_FUSED[index], fixed=index % 4 == 0)


def check_fused(pattern, shape, layout, dtype, activation, residual, padded, affine, fixed):
    x = (2 * draw(*shape) + 1).to(dtype).contiguous(memory_format=layout)
    stat = arithmetic_dtype(dtype)
    levels = parse(PATTERNS[pattern]).levels(shape)
    features = math.prod(level.size for level in levels if level.feature)
    cells = math.prod(level.size for level in levels if not level.reduced)
    mask = None
    if padded:
        lead = (1 if pattern == "instance" else shape[0], 1)
        mask = torch.rand(*lead, *shape[2:], device=DEVICE) > 0.4
        # What stands in padding reaches nothing.
        x = torch.where(mask, x, torch.tensor(torch.nan, dtype=dtype)).contiguous(memory_format=layout)
    extra = draw(*shape, dtype=dtype, layout=layout) if residual else None
    w, b = (draw(features, dtype=stat), draw(features, dtype=stat)) if affine else (None, None)
    mean, std = (draw(cells, dtype=stat), draw(cells, dtype=stat).abs() + 0.5) if fixed else (None, None)
    dy, dsum = draw(*shape, dtype=dtype, layout=layout), draw(*shape, dtype=dtype, layout=layout) if residual else None
    rest = (PATTERNS[pattern], 1e-5, True)
    whole = None if mask is None else mask.expand(shape[0], *mask.shape[1:])
    out = operator.norm(Arguments(x, w, b, *rest, mean, std, extra, whole, activation))
    source = out.sum if residual else x
    moments = (mean, std) if fixed else (out.mean, out.std)
    call = Arguments(source, w, b, *rest, *moments, dsum, whole, activation)
    got = operator.norm_backward(dy, call, fixed, Want(True, affine, affine))

    se, we, be, me, sde, dye, dse = exact(source.nan_to_num(), w, b, mean, std, dy, dsum)
    on_cpu = None if whole is None else whole.cpu()
    leaves = [t.requires_grad_() for t in (se, we, be) if t is not None]
    want = formula.norm(Arguments(se, we, be, *rest, me, sde, None, on_cpu, activation))
    grads = list(torch.autograd.grad(want.y, leaves, dye))
    grads[0] = grads[0] if dse is None else grads[0] + dse
    eps, fine = torch.finfo(dtype).eps, torch.finfo(stat).eps
    if residual:
        assert error(torch.where(whole, source, 0) if padded else source,
                     torch.where(whole, x + extra, 0) if padded else x + extra) <= eps  # fmt: skip
    if padded:
        assert not out.y.masked_select(~whole).any()
    if not fixed:
        # Where all is padding, the deviation counts as 1.
        assert error(out.std, want.std) <= 16 * fine
        assert error(out.mean, want.mean) <= 16 * fine
    far = ((1 + want.mean.abs()) / (want.std.square() + 1e-5).sqrt()).max().item() if not fixed else 8
    near = fine * far + eps
    assert error(out.y, want.y) <= 4 * near
    kink = activation in ("relu", "leaky_relu")
    for one, other in zip((t for t in got if t is not None), grads, strict=True):
        off = (one.double().cpu() - other).abs() > 32 * near * max(1.0, other.abs().max().item())
        # An input may fall on the other side of a kink; then its own gradient differs, and sums by little.
        if kink and one.shape == x.shape:
            assert off.double().mean() < 2e-3
        elif not kink:
            assert not off.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_agree_with_torch_everywhere(activation):
    z = torch.cat([torch.linspace(-30, 30, 1024), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 200.0, -200.0])]).to(DEVICE)
    x, one = z.view(1, 1, -1), torch.ones(1, device=DEVICE)
    for dtype in (torch.float32, torch.float64):
        moments = (0 * one.to(dtype), one.to(dtype))
        call = Arguments(x.to(dtype), None, None, "[b] c [...]", 0.0, True, *moments, activation=activation)
        y = operator.norm(call).y
        ones = torch.ones_like(x, dtype=dtype)
        dx, *_ = operator.norm_backward(ones, call, True, Want(True, False, False))
        wide = x.to(dtype).double().cpu().requires_grad_()
        want = ACTIVATIONS[activation](wide)
        (slope,) = torch.autograd.grad(want.sum(), wide)
        eps = torch.finfo(dtype).eps
        # A few roundings of a number up to max(1, |z|); the exponential's argument may be rounded, too.
        scale = wide.detach().abs().clamp(min=1)
        assert ((y.double().cpu() - want).abs() / scale).max() <= 8 * eps
        away = (wide != 0) | (activation not in ("relu", "leaky_relu"))
        assert ((dx.double().cpu() - slope).abs() / scale)[away].max() <= 16 * eps


# Weights, running statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((16, 8, 3, 3), 0), ((40, 300), 0), ((30, 50), 1), ((150, 150), None), ((400, 400), None), ((2, 40000), 0)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_norm(shape, dim, dtype):
    v = (draw(*shape) * torch.tensor(1e-3 if dtype is torch.float16 else 1e18)).to(dtype)
    v.view(-1)[0] = 0
    if dim == 0:
        v[1] = 0
    kept = 1 if dim is None else shape[dim]
    g, dw = draw(kept, dtype=arithmetic_dtype(dtype)), draw(*shape, dtype=dtype)
    w, length = weight.weight_norm(v, g, dim)
    dv, dg = weight.weight_norm_backward(dw, v, g, length, dim)
    ve, ge, dwe = exact(v, g, dw)
    shaped = ge.view([1 if d != dim else -1 for d in range(len(shape))]) if dim is not None else ge.reshape(())
    want = weight._reference(ve, shaped, dim)
    wants = weight._gradients(dwe, ve, shaped, dim)
    eps = torch.finfo(dtype).eps
    lengths = weight._length(ve, dim).reshape(-1)
    lengths = torch.where(lengths > 0, lengths, 1)
    assert (length.double().cpu() / lengths - 1).abs().max() <= 1e-6
    assert error(w, want) <= 2 * eps
    largest = wants[0].abs().max().item()
    assert error(dv / largest, wants[0] / largest) <= 16 * eps
    assert error(dg, wants[1].reshape(-1)) <= 64 * torch.finfo(g.dtype).eps


@pytest.mark.parametrize("samples", [1, 3])
def test_running_statistics(samples):
    channels = 300
    mean, std = draw(samples * channels), draw(samples * channels).abs()
    mean[5], std[7] = torch.nan, torch.inf
    old = (draw(channels), draw(channels).abs())
    moved, expected = [t.clone() for t in old], [t.clone().cpu() for t in old]
    update(Running(*moved, 20, 0.3), mean, std)
    m, v = mean.view(samples, -1).mean(0).cpu(), (std.square() * 20 / 19).view(samples, -1).mean(0).cpu()
    finite = m.isfinite() & v.isfinite()
    assert finite.sum() == channels - 2
    for got, first, new in zip(moved, expected, (m, v), strict=True):
        torch.testing.assert_close(got.cpu(), torch.where(finite, first.lerp(new, 0.3), first))


def rounded_by_torch(values, _, output_dtype, rounding_mode):
    assert "RTNE" in str(rounding_mode)
    kinds = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
    return torch.from_numpy(values).to(kinds[str(output_dtype)]).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("given", [False, True])
def test_rows_in_eight_bits(monkeypatch, dtype, given):
    if DEVICE == "cpu":
        # The interpreter loses a carry when it rounds to 8 bits: 63 becomes 32.
        monkeypatch.setattr("triton.runtime.interpreter._convert_float", rounded_by_torch)
    for length in (7, 300):
        x, w, b = draw(5, 3, length), draw(length), draw(length)
        scale = torch.tensor(0.01, device=DEVICE) if given else None
        y, own = functional.quantized_layer_norm(x, w, b, dtype=dtype, scale=scale)
        want = torch.nn.functional.layer_norm(x, (length,), w, b)
        want = want.clamp(-own * torch.finfo(dtype).max, own * torch.finfo(dtype).max)
        assert y.shape == x.shape
        assert y.dtype == dtype
        assert own.shape == (() if given else (5, 3, 1))
        # Half a unit of the format's last place; the smallest numbers have a fixed one.
        step = torch.finfo(dtype)
        bound = (want.abs() * step.eps / 2 + own * step.smallest_normal * step.eps) * 1.01 + 1e-6
        assert ((y.float() * own - want).abs() <= bound).all()
        if not given:
            assert torch.equal(y.float().abs().amax(-1), torch.full((5, 3), step.max, device=DEVICE))
    rms, own = functional.quantized_rms_norm(x, w, dtype=dtype)
    assert (
        (rms.float() * own - torch.nn.functional.rms_norm(x, (length,), w, 1e-6)).abs() <= 0.1 * own * step.max
    ).all()


# Promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case.elementwise], ids=str)
def test_the_contract_of_every_method(case):
    for layout in ("contiguous", "channels_last") if len(case.shape) == 4 else ("contiguous", "inside"):
        contract.values(case, "float32", layout)
        contract.values(case, "bfloat16 beside float32", layout)
    contract.gradients(case, "float32", "contiguous")
    if case.torch:
        contract.running_statistics(case)


@pytest.mark.parametrize("pattern", ["instance", "group", "image", "pixel", "rows"])
@pytest.mark.parametrize("shape", [(5, 8, 5, 7), (3, 8, 24, 24)])
def test_bits_of_a_sample_do_not_depend_on_its_batch(pattern, shape):
    for layout in LAYOUTS:
        x, dy = draw(*shape, layout=layout), draw(*shape, layout=layout)
        features = math.prod(level.size for level in parse(PATTERNS[pattern]).levels(shape) if level.feature)
        w = draw(features)

        def call(x: Tensor, dy: Tensor, w: Tensor = w) -> tuple[Tensor, Tensor]:
            a = Arguments(x, w, w, PATTERNS[pattern], 1e-5, True)
            y, _, mean, std = operator.norm(a)
            return y, operator.norm_backward(dy, a._replace(mean=mean, var=std), False, Want(True, False, False))[0]

        together = call(x, dy)
        for at in (slice(0, 1), slice(1, 3)):
            for alone, part in zip(call(x[at], dy[at]), together, strict=True):
                assert torch.equal(alone, part[at])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["batch", "instance", "group", "pixel"])
def test_a_large_mean_and_outliers(pattern, layout):
    """The published bound: 4 eps (1 + |mean| / std)."""
    for x in (1e4 + 1e-2 * draw(2, 8, 60, 60), torch.where(draw(2, 8, 60, 60) > 3, 1e6, 1.0)):
        x = x.contiguous(memory_format=layout)
        y = operator.norm(Arguments(x, None, None, PATTERNS[pattern], 1e-5, True)).y
        want, _, mean, std = formula.norm(Arguments(x.double().cpu(), None, None, PATTERNS[pattern], 1e-5, True))
        far = (1 + mean.abs() / (std.square() + 1e-5).sqrt()).max()
        assert error(y, want) <= 4 * torch.finfo(torch.float32).eps * far


def test_views_that_are_not_aligned():
    flat = draw(2 * 8 * 35 + 1)
    x = flat[1:].view(2, 8, 5, 7)
    for pattern in ("batch", "group"):
        a = Arguments(x, None, None, PATTERNS[pattern], 1e-5, True)
        y, _, mean, std = operator.norm(a)
        assert torch.equal(y, operator.norm(a._replace(x=x.clone())).y)
        dx = operator.norm_backward(x, a._replace(mean=mean, var=std), False, Want(True, False, False))[0]
        assert dx.shape == x.shape


def test_a_weight_of_another_length_is_refused():
    x, w = draw(2, 8, 5), draw(7)
    with pytest.raises(ShapeError, match="weight must have 8 elements for this region, got 7"):
        operator.norm(Arguments(x, w, None, "[b] c [...]", 1e-5, True))
    with pytest.raises(ShapeError, match="std must have 8 elements for this region, got 7"):
        operator.norm(Arguments(x, None, None, "[b] c [...]", 1e-5, True, draw(8), w))


def test_schedules_say_what_they_do():
    s: Schedule = schedule((1, 32, 64, 12544), 64, 12544)
    assert str(s) == "region 32 x 12544, tile 1 x 1 x 2048, cut into 11 x 1, 4 warps"
    assert str(schedule((8192, 1, 1, 768), 768, 1)) == "region 1 x 768, tile 1 x 1 x 1024, read once, 2 warps"


@pytest.mark.parametrize("target", ["cuda:90", pytest.param("hip:gfx942", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path, target):
    """The interpreter takes more than the compiler does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).parent / "compile_triton.py", target],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == {
        "feature_sums", "input_gradient", "move_running", "normalize", "part_along", "part_lengths", "part_moments",
        "part_sums", "quantize", "weight_norm", "weight_norm_backward",
    }  # fmt: skip
    if target == "cuda:90":
        # Memory is read and written in words of 16 bytes: a kernel's first form is that of fp32, side by side.
        first = {name: int(wide) for name, _, _, wide, _ in reversed(lines)}
        assert first["normalize"] >= 8
        assert first["input_gradient"] >= 8


def test_tuned_schedules_are_measured_once_and_right(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMKIT_AUTOTUNE", "1")
    monkeypatch.setenv("NORMKIT_CACHE", str(tmp_path / "new"))
    tried = []

    def bench(call):
        call()
        tried.append(last_schedule())
        return -len(tried)  # the last of them is the best

    monkeypatch.setattr(launch, "_bench", bench)
    for pattern, shape in (("batch", (4, 2, 60, 70)), ("rows", (6, 8, 5, 7))):
        check(PATTERNS[pattern], shape, LAYOUTS[0], torch.float32, affine=True)
    chunks = {s.br0 * s.br1 for s in tried}
    assert len(tried) > 4
    assert len({s.warps for s in tried}) > 2
    assert len(chunks) > 2
    used = last_schedule()
    count = len(tried)
    forget_plans()
    check(PATTERNS["rows"], (6, 8, 5, 7), LAYOUTS[0], torch.float32, affine=True)
    assert len(tried) == count
    assert last_schedule() == used


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_calls_are_captured_into_a_graph():
    x, w = draw(64, 8, 5, 7), draw(8)

    def call() -> Tensor:
        a = Arguments(x, w, w, PATTERNS["batch"], 1e-5, True)
        y, _, mean, std = operator.norm(a)
        return operator.norm_backward(y, a._replace(mean=mean, var=std), False, Want(True, True, True))[0]

    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    x.copy_(draw(64, 8, 5, 7))
    graph.replay()
    assert torch.equal(captured, call())
