"""How the GPU kernels are scheduled, tuned and compiled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreted import (
    LAYOUTS,
    PATTERNS,
    by_triton,  # noqa: F401
    check,
    last_schedule,
    marks,
)

from normkit.kernels.formula import Arguments
from normkit.kernels.layout import forget_plans
from normkit.kernels.triton import device, launch
from normkit.kernels.triton.arguments import Axes
from normkit.kernels.triton.recorder import Recorder
from normkit.kernels.triton.schedule import Schedule, schedule

pytestmark = marks


def test_schedules_say_what_they_do():
    s: Schedule = schedule((1, 32, 64, 12544), 64, 12544)
    assert str(s) == "region 32 x 12544, cut into 4 x 5, tile 1 x 8 x 256; normalized in tiles of 1 x 2 x 2048"
    assert str(schedule((8192, 1, 1, 768), 768, 1)) == "region 1 x 768, read once, tile 4 x 1 x 1024, 4 warps"
    assert str(schedule((2048, 1, 1, 25088), 256, 3136)) == "region 8 x 3136, walked twice, tile 1 x 1 x 2048, 8 warps"


def test_a_gpu_takes_the_grids_of_large_tensors():
    """Along all dimensions but the first it takes 65,535 programs at most."""
    for view in ((1, 256 * 112 * 112, 64, 1), (1, 32 * 512 * 512, 64, 1), (1, 1, 1, 2**31), (2**22, 1, 1, 768)):
        s = schedule(view, view[2] * view[3], 1)
        for p in (s.forward, s.backward, s.parts, s.sums, s.apply):
            assert p is None or (p.grid[0] < 2**31 and p.grid[1:] == (1, 1))


def test_sizes_of_64_bits_are_passed_as_they_are():
    """Triton gives a number 64 bits if it needs them; one that is divided first may not, and its product overflows."""
    for view in ((2, 1, 1, 2**31), (1, 2, 4, 2**29), (1, 2**31, 1, 1)):
        s = schedule(view, 1, 2**31)
        assert all(p.tile.align == 1 and p.tile.wide for p in (s.parts, s.sums, s.apply))
    assert schedule((2**22, 1, 1, 1024), 1024, 1).apply.tile.align == 16


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tiles_do_not_depend_on_the_number_of_regions(itemsize):
    """So the bits of a sample's output do not depend on its batch."""
    rows = [(n, 1, 1, size) for size in (49, 768, 30000, 100000) for n in (1, 7, 4096)]
    images = [(n, 3136, 32, 8) for n in (1, 64)] + [(n, 256, 3136, 1) for n in (1, 64)]
    found: dict[tuple[int, ...], set[object]] = {}
    for view in rows + images:
        s = schedule(view, 256, 1, itemsize)
        passes = [
            p and (p.tile._replace(wide=False), p.parts, p.warps) for p in (s.forward, s.backward, s.parts, s.sums)
        ]
        found.setdefault(view[1:], set()).add(tuple(passes))
    assert {len(tiles) for tiles in found.values()} == {1}


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cuda:90", ["--few"]),
        *(pytest.param(target, [], marks=pytest.mark.slow) for target in ("cuda:90", "hip:gfx942")),
    ],
)
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path, target, options):
    """The interpreter takes more than the compiler does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).parent / "compile_triton.py", *options, target],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == {
        "add_up", "feature_sums", "merge_along", "merge_lengths", "merge_moments", "merge_sums", "normalize",
        "part_along", "part_gradient", "part_lengths", "part_moments", "part_sums", "quantize", "region_gradient",
        "update_running", "weight_norm", "weight_norm_backward",
    }  # fmt: skip
    if target == "cuda:90":
        numbers = [(name, *map(int, rest)) for name, _, *rest in lines]
        # Memory is read and written in words of 16 bytes: a kernel's first forms are those of large images and rows.
        wide: dict[str, int] = {}
        for name, _, words, *_ in numbers:
            wide.setdefault(name, words)
        assert all(wide[name] >= 4 for name in ("normalize", "part_moments", "part_sums", "part_gradient"))
        assert wide["region_gradient"] >= 12
        # Lanes are lanes: no loop moves a tile from thread to thread, but for masks, whose bytes lie in another way.
        assert sum(moved > 0 for _, _, _, _, moved, *_ in numbers) <= 4
        assert all(stack <= 64 for *_, stack, _ in numbers)
        # A number passed as float32 is wrong by 1e-8, which float64 statistics show; so a momentum comes in two pieces.
        assert {name: narrow for name, *_, narrow in numbers if narrow} == {"update_running": 2}


@pytest.mark.slow
def test_calls_with_gates_and_weights_of_samples_spill_no_registers(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).parent / "compile_triton.py", "--extended", "cuda:90"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) > 20
    assert all(int(stack) == 0 for *_, stack, _ in lines)


def test_tuned_schedules_are_measured_once_and_right(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMKIT_AUTOTUNE", "1")
    monkeypatch.setenv("NORMKIT_CACHE", str(tmp_path / "new"))
    tried = []

    def bench(call):
        call()
        tried.append(last_schedule())
        return -len(tried)  # the last of them is the best

    monkeypatch.setattr(launch, "_bench", bench)
    for pattern, shape in (("batch", (2, 1, 150, 150)), ("rows", (2, 3, 5, 7))):
        check(PATTERNS[pattern], shape, LAYOUTS[0], torch.float32, affine=True)
    assert len(tried) == 18
    assert len({s.apply.warps for s in tried}) > 2
    assert len({s.apply.tile.r1 for s in tried}) > 2
    used = last_schedule()
    count = len(tried)
    forget_plans()
    check(PATTERNS["rows"], (2, 3, 5, 7), LAYOUTS[0], torch.float32, affine=True)
    assert len(tried) == count
    assert last_schedule() == used


def test_tuning_is_not_written_down(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMKIT_AUTOTUNE", "1")
    monkeypatch.setenv("NORMKIT_CACHE", str(tmp_path))
    tried = []
    monkeypatch.setattr(launch, "_bench", lambda call: (tried.append(call()), 1.0)[1])
    x, plan = torch.randn(4, 8), launch.plan(4, 1, 1, 8, 8, 1, 0, 1, 0, 0, 0)
    recorder = Recorder()
    a = Arguments(x, None, None, "", 1e-5, True)
    assert recorder.watch(lambda: launch.norm(a, plan, None, 1e-5, None, True), plan, x) is not None
    assert tried
    assert len(recorder.launched) == 1
    assert recorder.watch(lambda: launch.norm(a, plan + 1, None, 1e-5, None, True), plan + 1, x) is None


class Kernel(device.triton.JITFunction):
    """In place of a kernel: counts how often it is asked for a compiled form, and how often that is run."""

    def __init__(self) -> None:
        self.asked = self.run_again = 0

    __hash__ = object.__hash__

    def __getitem__(self, grid):
        def compile_and_run(*args, num_warps):
            self.asked += 1
            return {grid: self.run_form}

        return compile_and_run

    def run_form(self, *args):
        self.run_again += 1


def test_compiled_forms_are_kept_for_the_same_numbers_and_dtypes(monkeypatch):
    monkeypatch.setattr(device, "_on", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(device, "_forms", {})
    monkeypatch.setattr(device, "MOST_FORMS", 3)
    monkeypatch.setattr(device, "is_known", False)  # then forms are run in a way that needs no driver
    kernel, x = Kernel(), torch.zeros(64)
    axes = Axes(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)

    def asked(*arguments) -> bool:
        """Whether Triton has to choose a form."""
        before = kernel.asked, kernel.run_again
        device.launch(kernel, (1, 1, 1), 4, *arguments)
        after = kernel.asked, kernel.run_again
        assert sum(after) == sum(before) + 1
        return after[0] > before[0]

    assert asked((x, None), 1, axes)
    assert not asked((x + 1, None), 1, axes)
    assert not asked((x, None), 1, Axes(*axes))
    assert asked((x, None), 2, axes)
    assert asked((x, None), 1, axes._replace(r0=2))
    assert asked((x.double(), None), 1, axes)
    # There was room for three forms, so the first three have been given up.
    assert len(device._forms) == 1
    assert asked((x, None), 1, axes)
    # Memory that is not aligned is for Triton to judge.
    assert all(asked((x[1:], None), 1, axes) for _ in range(2))
