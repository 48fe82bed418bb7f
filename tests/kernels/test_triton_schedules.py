"""How the GPU kernels are scheduled, tuned and compiled."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreted import (
    LAYOUTS,
    PATTERNS,
    SHAPES,
    by_triton,  # noqa: F401
    check,
    last_schedule,
    marks,
)
from torch import Tensor

from normkit.functional.call import running
from normkit.kernels.layout import forget_plans, plan_of
from normkit.kernels.triton import device, launch
from normkit.kernels.triton.arguments import Along, Axes, Walk
from normkit.kernels.triton.schedule import Schedule, schedule

pytestmark = marks


def test_the_shapes_of_the_tests_cover_every_walk_and_way_to_add_up():
    seen = set()
    for pattern, shape, layout in itertools.product(PATTERNS.values(), SHAPES, LAYOUTS):
        x = torch.empty(shape).contiguous(memory_format=layout)
        s = schedule(*_numbers(pattern, x))
        seen |= {(s.walk, s.along), s.features, ("columns", s.tile.columns > 1)}
    assert {walk for walk, _ in filter(lambda one: isinstance(one, tuple), seen)} >= set(Walk) - {Walk.GIVEN}
    assert seen >= {(walk, Along.CELL) for walk in (Walk.WHOLE, Walk.TWICE, Walk.PARTS)}
    assert seen >= {(walk, Along.R0) for walk in (Walk.WHOLE, Walk.TWICE)}
    assert seen >= {(walk, Along.R1) for walk in (Walk.WHOLE, Walk.TWICE)}
    assert seen >= {Along.OFFSET, ("columns", True)}


def _numbers(pattern: str, x: Tensor) -> tuple[tuple[int, int, int, int], int, int]:
    plan = plan_of(pattern, x.shape, x.stride())
    return plan.view, plan.period, plan.inner


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
        "feature_sums", "input_gradient", "normalize", "part_along", "part_lengths", "part_moments", "part_sums",
        "quantize", "update_running", "weight_norm", "weight_norm_backward",
    }  # fmt: skip
    if target == "cuda:90":
        # Memory is read and written in words of 16 bytes: a kernel's first form is that of fp32, side by side.
        first = {name: int(wide) for name, _, _, wide, *_ in reversed(lines)}
        assert first["normalize"] >= 8
        assert first["input_gradient"] >= 8
        # A number passed as float32 is wrong by 1e-8, which float64 statistics show: no such kernel may update them.
        on_gpu = SimpleNamespace(is_cpu=False, dtype=torch.float64, is_contiguous=lambda: True, requires_grad=False)
        narrow = {name for name, *_, numbers in lines if int(numbers)}
        assert narrow <= (set() if running._has_kernel(on_gpu) else {"update_running"})


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
    chunks = {s.tile.r0 * s.tile.r1 for s in tried}
    assert len(tried) > 4
    assert len({s.warps for s in tried}) > 2
    assert len(chunks) > 2
    used = last_schedule()
    count = len(tried)
    forget_plans()
    check(PATTERNS["rows"], (6, 8, 5, 7), LAYOUTS[0], torch.float32, affine=True)
    assert len(tried) == count
    assert last_schedule() == used


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
    kernel, x = Kernel(), torch.zeros(64)
    axes = Axes(1, 2, 3, 4, 5, 6, 7, 8)

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
