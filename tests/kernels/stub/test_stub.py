"""How a launch is written down: the parameters of its machine code, and what cannot be launched by C++."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from normkit.functional import layer_norm
from normkit.kernels import fastpath
from normkit.kernels.triton import device, recipes, recorder

needs_fast_path = pytest.mark.skipif(not fastpath.in_use, reason="the fast path is not built")


def test_which_numbers_follow_from_the_momentum():
    watching = recorder.Recorder()
    watching._momenta = 0.1, 0.2
    rounded = [ctypes.c_float(m).value for m in (0.1, 0.2)]
    assert watching._number("fp32", 0.1, 0.2) == (recorder.MOMENTUM, 0)
    assert watching._number("fp32", *rounded) == (recorder.MOMENTUM, 0)
    assert watching._number("fp32", 0.1 - rounded[0], 0.2 - rounded[1]) == (recorder.MOMENTUM_REST, 0)
    assert watching._number("fp32", 0.1, 0.1)[0] == recorder.CONSTANT
    with pytest.raises(recorder.UnsuitableError, match="cannot make of the momentum"):
        watching._number("fp32", 0.9, 0.8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"global_scratch_size": 8}, "more than a plain launch"),
        ({"profile_scratch_size": 8}, "more than a plain launch"),
        ({"num_ctas": 2}, "more than a plain launch"),
        ({"launch_cooperative_grid": True}, "more than a plain launch"),
        ({"launch_pdl": True}, "more than a plain launch"),
        ({"target": SimpleNamespace(backend="xpu", warp_size=32)}, "compiled for xpu"),
        ({"instrumentation_mode": "gsan"}, "instrumented"),
    ],
)
def test_forms_that_c_plus_plus_cannot_launch(change, reason):
    fields = {"name": "k", "num_warps": 4, "shared": 0, "num_ctas": 1, "global_scratch_size": 0}
    fields |= {"profile_scratch_size": 0, "launch_cooperative_grid": False, "launch_pdl": False}
    fields["target"] = SimpleNamespace(backend="cuda", warp_size=32)
    form = SimpleNamespace(metadata=SimpleNamespace(**fields), function=8, src=SimpleNamespace(signature={"n": "i32"}))
    one = recorder._Launched(form, (1, 1, 1), (5,), (5,))
    number = recorder.Recorder()._number
    assert recorder._launch(one, None, number) == (8, (1, 1, 1), 128, 0, ((-1, 5), (-1, 0), (-1, 0)))
    form.metadata = SimpleNamespace(**(fields | change))
    with pytest.raises(recorder.UnsuitableError, match=reason):
        recorder._launch(one, None, number)


@needs_fast_path
def test_plans_of_the_cpu_outlive_a_change_of_the_gpu():
    x = torch.randn(3, 7).requires_grad_()
    for _ in range(3):
        y = layer_norm(x, (7,))
        assert not fastpath.connect_gpu("/nowhere", "/nowhere", "cuda")
    assert y.grad_fn.name() == "NormkitNormalizeBackward"


@needs_fast_path
def test_an_unknown_triton_keeps_pythons_way(monkeypatch):
    monkeypatch.setattr(recipes.triton, "__version__", "4.0.0")
    monkeypatch.setattr(device, "is_known", False)
    assert recipes.state() == (
        False,
        "Triton 4.0.0 may pass other parameters than the versions that are known",
    )
    monkeypatch.setattr(device, "is_known", True)
    assert recipes.state() == (
        False,
        "the GPU's driver, or torch's library for it, is not loaded or lacks a function",
    )
    assert not recipes.cache_plan("... [c]", torch.Size((2, 3)), (3, 1), 2, True, 1, (2, 1, 1, 3, 3, 1, 0))


@needs_fast_path
def test_parameters_are_those_of_tritons_own_launcher(tmp_path):
    """Machine code of all walks, launched by Triton and by C++: the driver is given the same bytes."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).parent / "real_launcher.py", tmp_path],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-1] == "refused:", lines[-3:]
    assert len(lines) == 11
    for line in lines[:-1]:
        name, verdict = line.split(": ", 1)
        assert verdict.startswith("same "), name
