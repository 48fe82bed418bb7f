"""The check of a GPU and its tables, as far as they go without one: a dry run, its tests, made-up results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks import show
from benchmarks.gpu import check, clock, layers, report, run
from torch import Tensor, nn
from typer.testing import CliRunner

import normkit
from normkit.kernels import fastpath


def test_a_dry_run_of_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Everything but the tests, which are tests themselves: on the CPU, with tiny shapes.

    A default device is a mode of torch's. It is in force while tensors are made, and in no call that is timed.
    """
    made, modes = [], []

    def counted(of: str) -> None:
        real = getattr(clock.HostClock, of)

        def timed(self: clock.HostClock, call: Callable[[], object], *numbers: float) -> object:
            modes.append(torch._C._len_torch_function_stack())
            return real(self, call, *numbers)

        monkeypatch.setattr(clock.HostClock, of, timed)

    for of in ("device", "host", "wall"):
        counted(of)
    real = layers.where
    for module in (layers, run.models):
        monkeypatch.setattr(module, "where", lambda gpu: made.append(gpu) or real(gpu))
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests", "--save", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("nothing failed")
    assert "CUDA graphs: 9 of 9 layers" in result.output
    assert "fast path: " in result.output
    taken = 10 if fastpath.in_use else 0
    assert f"C++ carries out {taken} of 10 calls: {fastpath.reason}\n" in result.output
    assert len(modes) > 1000
    assert not any(modes)
    assert made.count(False) == len(made) > 40
    kept = json.loads((tmp_path / "gpu-check.json").read_text())
    assert {part: len(kept[part]) for part in ("cells", "calls", "models", "graphs")} == {
        "cells": 20, "calls": 10, "models": 5, "graphs": 9,
    }  # fmt: skip
    assert [row["norms"] for row in kept["models"]] == [1, 3, 2, 2, 2]
    assert all(set(row["milliseconds"]) == {"training", "inference"} for row in kept["models"])
    assert kept["machine"]["gpu"].startswith("none")
    assert {"native", "packages", "triton", "torch"} <= set(kept["machine"])


def test_wrong_numbers_fail_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("normkit.functional.rms_norm", lambda x, *_, **__: x * 2)
    monkeypatch.setattr(layers, "CAPTURED", {})
    monkeypatch.setattr(layers, "CALLED", {})
    monkeypatch.setattr(run.models, "SUBJECTS", {})
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests", "--save", str(tmp_path)])
    assert result.exit_code == 1
    assert "FAILED:\ncells: rms_norm [4, 64] contiguous bfloat16 forward: error" in result.output


def test_a_gpu_that_fails_everywhere_still_gives_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access was encountered\nand more")

    for name in ("host", "device", "wall"):
        monkeypatch.setattr(clock.HostClock, name, lost)
    monkeypatch.setattr(run, "bandwidth", lambda *_: 1e6)
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests", "--save", str(tmp_path)])
    assert result.exit_code == 1
    for row in ("cells: rms_norm [4, 64] contiguous bfloat16 forward", "calls: RMSNorm [64, 768] no_grad forward"):
        assert f"{row}: RuntimeError: an illegal memory access was encountered\n" in result.output
    assert "models: ViT-S: RuntimeError: an illegal" in result.output


def test_the_tests_of_the_check():
    groups = check.gpu_tests()
    found = groups["without the extension"]
    assert {"tests/functional/test_torch_samples.py", "tests/kernels/test_triton.py"} <= set(found)
    # The most telling first.
    assert found[:2] == ["tests/functional/test_torch_samples.py", "tests/kernels/test_triton.py"]
    others = groups["with the extension"]
    assert others[0] == "tests/layers/test_on_gpu.py"
    assert "tests/kernels/test_gpu_fastpath.py" in others
    line = check.commands(dry=False)["without the extension"]
    assert line[line.index("-m", 3) + 1] == "gpu"
    assert line[-len(found) :] == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("pytestmark = marks", True),
        ("pytestmark = [*marks, pytest.mark.slow]", True),
        ("pytestmark = [\n    *marks,\n    pytest.mark.slow,\n]", True),
        ("@pytest.mark.gpu\ndef test_it(): ...", True),
        ("GPU = pytest.param('cuda', marks=(pytest.mark.gpu,))", True),
        ("pytestmark = pytest.mark.slow", False),
        ("marks = 'pytestmark = marks'", False),
    ],
)
def test_files_for_a_gpu_are_found_by_their_marks(source: str, found: bool):
    assert check.needs_gpu(source) == found


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n", "2", "--dist", "load", "--maxschedchunk", "4"), marks=pytest.mark.slow)]
)
def test_what_has_run_is_known_when_time_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: tuple[str, ...]
):
    """A test that does not end is interrupted, and ended if it does not heed that."""
    if workers:
        pytest.importorskip("xdist")
    names = [f"test_{i}" for i in range(6)]
    lines = ["import signal, time, pytest"]
    lines += [f"def {name}(): assert {i} != 1" for i, name in enumerate(names)]
    lines += ["def test_skipped(): pytest.skip('no')", "@pytest.mark.parametrize('at', ['a b', 'c - d'])"]
    lines += ["def test_deaf(at):", "    signal.signal(signal.SIGINT, signal.SIG_IGN)", "    time.sleep(600)"]
    file = tmp_path / "test_made_up.py"
    file.write_text("\n".join(lines))

    class Patient(check.Group):
        def status(self, seconds: float) -> int | None:
            end = time.monotonic() + 60
            while len(check.outcomes(self.log.read_text())) < 7 and time.monotonic() < end:
                time.sleep(0.1)
            return super().status(seconds)

    monkeypatch.setattr(check, "Group", Patient)
    monkeypatch.setattr(check, "GRACE", 1.0)
    command = [*check.PYTEST, *workers, "-c", str(check.ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", str(file)]
    row = check.tested("of nothing", command, 1, tmp_path / "log")
    assert row["counts"] == {"passed": 5, "failed": 1, "skipped": 1}, (tmp_path / "log").read_text()
    assert [name.rpartition("::")[2] for name in row["names"]] == ["test_1"]
    assert row["note"] == "not over after 1 s, so the others have not run"
    assert row["failed"].startswith("not over after 1 s")


def test_the_tests_of_a_dry_run(tmp_path: Path):
    ((name, command),) = check.commands(dry=True).items()
    row = check.tested(name, command, 120, tmp_path / "log")
    assert (row["counts"], row["failed"]) == ({"passed": 1}, None)


def test_pytest_reports_when_it_is_interrupted(tmp_path: Path):
    code = "import time\ntry: print(flush=True); time.sleep(600)\nexcept KeyboardInterrupt: print('the report')"
    assert check.Group([sys.executable, "-c", code], tmp_path / "log").status(1) is None
    assert "the report" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        (
            "print('a.py::a PASSED [ 50%]\\nFAILED a.py::b - x\\n1 failed, 1 passed in 1s'); raise SystemExit(1)",
            "status 1, {'passed': 1, 'failed': 1",
        ),
        ("print('a.py::a SKIPPED (no GPU) [ 50%]')", "none has passed: {'skipped': 1}"),
        ("print('a.py::a PASSED [ 50%]\\na.py::b SKIPPED (no) [100%]')", None),
        ("raise SystemExit(5)", None),
        ("raise SystemExit(3)", "status 3, "),
        # Out of time: a note if some have passed and none has failed.
        ("print('a.py::a PASSED [ 50%]', flush=True); import time; time.sleep(60)", None),
        ("import time; time.sleep(60)", "none has passed"),
        (
            "print('a.py::a PASSED\\na.py::b FAILED [ 9%]', flush=True); import time; time.sleep(60)",
            "not over after 1 s",
        ),
    ],
)
def test_a_row_of_tests(tmp_path: Path, code: str, failed: str | None):
    row = check.tested("of nothing", [sys.executable, "-c", code], 1.0, tmp_path / "log")
    assert (row["failed"] or "").startswith(failed or "")
    assert bool(row["failed"]) == bool(failed)
    assert row["names"] == (["a.py::b"] if "FAILED" in code else [])
    assert bool(row["note"]) == ("sleep" in code)


def test_the_script_calls_the_check(tmp_path: Path):
    """What is compiled stays in one folder for the next run, and wheels are installed on request."""
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\necho "$@"\necho $TRITON_CACHE_DIR $TORCHINDUCTOR_CACHE_DIR $PYTHONPATH\n')
    echo.chmod(0o755)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    environment = {**os.environ, "PYTHON": str(echo), "TMPDIR": str(tmp_path)}
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        environment.pop(name, None)

    def lines(*options: str) -> list[str]:
        script = check.ROOT / "benchmarks" / "gpu_check.sh"
        done = subprocess.run(
            [script, *options], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    work = tmp_path / f"normkit-gpu-check-{os.getuid()}"
    call, settings = lines("--dry", "--minutes", "3")
    assert call == "-m benchmarks.gpu.check --dry --minutes 3"
    assert settings.startswith(f"{work}/triton {work}/inductor {check.ROOT}/src:{check.ROOT}")
    install, _, call, again = lines("--save", "there", "--wheels", "wheels", "--dry")
    assert install.endswith(f"--target {work}/site wheels/one.whl")
    assert call == "-m benchmarks.gpu.check --save there --dry"
    assert again == f"{settings}:{work}/site"
    echo.write_text("#!/bin/sh\nexit 1\n")
    done = subprocess.run(
        [check.ROOT / "benchmarks" / "gpu_check.sh"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, b"needs a Python that has torch" in done.stderr) == (1, True)


def test_the_extension_is_put_in_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A fast path that is there may be of another torch, so it is built each time; the kernels if they are missing."""
    target = tmp_path / "normkit"
    target.mkdir()
    started = []

    class Built:
        def __init__(self, command: list[str], log: Path) -> None:
            started.append(command)
            self.folder = Path(command[command.index("--build-lib") + 1]) / "normkit"

        def status(self, seconds: float) -> int:
            self.folder.mkdir()
            (self.folder / "_fastpath.so").write_text(f"built {len(started)}")
            return 0

    monkeypatch.setattr(check, "Group", Built)
    (target / "_native.abi3.so").write_text("carried")
    assert check.Extension(tmp_path / "log", target).finish(1) == "extension: built _fastpath"
    assert (target / "_fastpath.so").read_text() == "built 1"
    assert check.Extension(tmp_path / "log", target).finish(1) == "extension: built _fastpath"
    assert (target / "_fastpath.so").read_text() == "built 2"
    (target / "_native.abi3.so").unlink()
    check.Extension(tmp_path / "log", target).finish(1)
    assert [command[3] for command in started] == [*["normkit._fastpath"] * 2, "normkit._native,normkit._fastpath"]
    assert [path.name for path in target.iterdir()] == ["_fastpath.so"]


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path):
    short = run.Run(tmp_path / "gpu.json", minutes=0, gpu=False)
    short.each("cells", ["a", "b"], lambda name: {"name": name})
    assert short.results["cells"] == []
    assert json.loads((tmp_path / "gpu.json").read_text())["left out"] == ["cells: a", "cells: b"]


def test_a_graph_that_differs_or_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    made = layers.CAPTURED["LayerNorm"]
    monkeypatch.setattr(layers, "CAPTURED", {"good": made, "bad": made, "broken": (lambda of: of.Nothing(), (2, 3))})
    values = iter([0.0, 0.5])
    real = layers.captured
    monkeypatch.setattr(layers, "captured", lambda make, *rest: next(values) if make is made[0] else real(make, *rest))
    rows = list(layers.graphs(gpu=False))
    assert [row["failed"] for row in rows][:2] == [None, "differs by 0.5"]
    assert "Nothing" in rows[2]["failed"]


def test_a_gradient_that_is_no_number_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    """Also where other gradients, which are right, come first."""

    class Broken(nn.LayerNorm):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.bias.register_hook(lambda grad: grad * float("nan"))

    monkeypatch.setattr(layers, "CAPTURED", {"broken": (lambda of: Broken(8), (2, 8))})
    (row,) = layers.graphs(gpu=False)
    assert row["failed"] == "differs by nan"


def test_calls_that_cpp_does_not_take_are_a_failure_where_it_could(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "CALLED", {"LayerNorm": layers.CALLED["LayerNorm"]})
    monkeypatch.setattr(layers, "cpp_state", lambda gpu: (True, "is ready"))
    monkeypatch.setattr(layers, "by_cpp", lambda *_: False)
    rows = list(layers.called(clock.HostClock(), gpu=False, repeats=1))
    assert [row["failed"] for row in rows] == ["C++ does not carry out the call: is ready"] * 2
    monkeypatch.setattr(layers, "cpp_state", lambda gpu: (False, "not built"))
    assert [row["failed"] for row in layers.called(clock.HostClock(), gpu=False, repeats=1)] == [None] * 2


@pytest.mark.skipif(not fastpath.in_use, reason=fastpath.reason)
def test_cpp_is_known_by_its_node():
    make, shape = layers.CALLED["LayerNorm"]
    assert layers.by_cpp(make(normkit), shape, layers.where(False))
    assert not layers.by_cpp(make(nn), shape, layers.where(False))


class Failing(nn.Module):
    """Part of a model of torch's that fails, or a norm that does."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel")


def missing() -> nn.Module:
    raise ModuleNotFoundError("No module named 'timm'")


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (missing, "left out: ModuleNotFoundError: No module named 'timm'"),
        (lambda: nn.Sequential(Failing(), nn.LayerNorm(12)), "torch left out: RuntimeError: no kernel"),
    ],
)
def test_what_normkit_has_no_part_in_is_a_note(monkeypatch: pytest.MonkeyPatch, make: object, note: str):
    models = run.models
    monkeypatch.setitem(models.SUBJECTS, "net", models.Subject(make, (2, 12), make, (2, 12)))
    row = models.measured("net", clock.HostClock(), compiled=False, gpu=False, seconds=0)
    results = {**made_up(), "models": [row]}
    assert report.failures(results) == []
    assert f"models: net: {note}" in report.notes(results)


def test_a_norm_that_fails_in_a_model_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    models = run.models
    monkeypatch.setattr("normkit.LayerNorm.forward", Failing.forward)
    row = models.measured("ViT-S", clock.HostClock(), compiled=False, gpu=False, seconds=0)
    assert row["failed"] == "RuntimeError: no kernel"


# Tables ----------------------------------------------------------------------------------------------------


def made_up() -> dict[str, object]:
    """Results that no machine has given."""

    def cell(method: str, backward: bool, limit: float, **milliseconds: float | None) -> dict[str, object]:
        times = {name: {"queued": 1.0} for name in milliseconds}
        name = f"{method} {'forward+backward' if backward else 'forward'}"
        facts = {
            "name": name,
            "dtype": "bfloat16",
            "method": method,
            "backward": backward,
            "limit": limit,
        }
        return {
            **facts,
            "milliseconds": milliseconds,
            "times": times,
            "failed by": {},
            "error": {"normkit": 0.5},
            "failed": None,
        }

    return {
        "machine": {"gpu": "made up", "torch": "0", "triton": "0", "driver": "0", "date": "never", "native": "none"},
        "copy": {"bytes": 1 << 29, "bytes per ms": 4e9},
        "cells": [
            cell("rms_norm", False, 0.9, torch=4.0, compile=2.0, quack=1.0, normkit=1.0),
            cell("rms_norm", True, 1.0, torch=4.0, compile=2.0, quack=None, normkit=4.0),
            cell("batch_norm", False, 0.5, torch=8.0, compile=0.5, normkit=1.0),
        ],
        "calls": [{"name": "LayerNorm forward", "microseconds": {"torch": 20.0, "normkit": 10.0}, "failed": None}],
        "models": [{"name": "net", "compiled": True, "failed": None, "milliseconds": {"training": {"torch": 2.0}}}],
        "graphs": [{"name": "LayerNorm", "difference": 0.0, "failed": None}],
        "tests": [],
        "left out": [],
    }


def test_tables_of_results():
    text = report.summary(made_up())
    assert "made up, torch 0" in text
    assert "copy of 512 MiB at 4.00 TB/s" in text
    assert "| over torch.compile: geometric mean | ≥ 1.00 | 0.79 | no |" in text
    assert "| limit, forward: median | ≥ 0.90 | 0.70 | no |" in text
    assert "| limit, forward and backward: median | ≥ 0.80 | 0.25 | no |" in text
    assert "| all, bfloat16 forward | 1 of 2 | 5.66 | 1.00 | 0.70 | 0.50 |" in text
    assert "| rows, bfloat16 forward+backward | 0 of 1 | 1.00 | 0.50 | 0.25 | 0.25 |" in text
    assert "| rms_norm forward | 4000 | 2000 | quack 1000 | 1000 | 1.00 | 0.90 |" in text
    assert "| LayerNorm forward | 20.0 | – | 10.0 |" in text
    assert "| net, compiled | 2.00 | – | – | – |" in text
    assert "| 全部，bfloat16 前向 | 1 / 2 | 5.66 | 1.00 | 0.70 | 0.50 |" in report.summary(made_up(), "zh")


def test_results_are_shown_in_the_page(tmp_path: Path):
    path, page = tmp_path / "gpu.json", tmp_path / "page.md"
    path.write_text(json.dumps(made_up()))
    page.write_text(f"before\n{show.MARKER}\nold\n{show.MARKER}\nafter\n")
    result = CliRunner().invoke(show.app, [str(path), "--docs", str(page)])
    assert result.exit_code == 0, result.output
    assert "](gpu-bars.svg)" in page.read_text()
    assert "old" not in page.read_text()
    assert (tmp_path / "gpu-bars.svg").read_text().rstrip().endswith("</svg>")
