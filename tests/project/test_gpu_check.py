"""The check of a GPU and its tables, as far as they go without one: a dry run, its tests, made-up results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import show
from benchmarks.gpu import check, clock, layers, report, run
from typer.testing import CliRunner


def test_a_dry_run_of_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Everything but the tests, which are tests themselves: on the CPU, with tiny shapes."""
    monkeypatch.setenv("OUT", str(tmp_path))
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests"])
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("nothing failed")
    assert "CUDA graphs: 9 of 9 layers" in result.output
    assert "fast path: " in result.output
    kept = json.loads((tmp_path / "gpu-check.json").read_text())
    assert {part: len(kept[part]) for part in ("cells", "calls", "models", "graphs")} == {
        "cells": 20, "calls": 10, "models": 5, "graphs": 9,
    }  # fmt: skip
    assert [row["norms"] for row in kept["models"]] == [1, 3, 2, 2, 2]
    assert all(set(row["milliseconds"]) == {"training", "inference"} for row in kept["models"])
    assert kept["machine"]["gpu"].startswith("none")
    assert {"native", "packages", "triton", "torch"} <= set(kept["machine"])


def test_wrong_numbers_fail_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("normkit.functional.rms_norm", lambda x, *_, **__: x * 2)
    monkeypatch.setattr(layers, "CAPTURED", {})
    monkeypatch.setattr(layers, "CALLED", {})
    monkeypatch.setattr(run.models, "SUBJECTS", {})
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests"])
    assert result.exit_code == 1
    assert "FAILED:\ncells: rms_norm [4, 64] contiguous bfloat16 forward: error" in result.output


def test_a_gpu_that_fails_everywhere_still_gives_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access was encountered\nand more")

    monkeypatch.setenv("OUT", str(tmp_path))
    for name in ("host", "device", "wall"):
        monkeypatch.setattr(clock.HostClock, name, lost)
    monkeypatch.setattr(run, "bandwidth", lambda *_: 1e6)
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests"])
    assert result.exit_code == 1
    for row in ("cells: rms_norm [4, 64] contiguous bfloat16 forward", "calls: RMSNorm [64, 768] no_grad forward"):
        assert f"{row}: RuntimeError: an illegal memory access was encountered\n" in result.output
    assert "models: ViT-S: RuntimeError: an illegal" in result.output


def test_the_tests_of_the_check():
    found = check.gpu_tests()["without the extension"]
    assert {"tests/functional/test_torch_samples.py", "tests/kernels/test_triton.py"} <= set(found)
    assert "tests/layers/test_on_gpu.py" in check.gpu_tests()["with the extension"]
    line = check.commands(dry=False)["without the extension"]
    assert line[line.index("-m", 3) + 1] == "gpu"
    assert line[-len(found) :] == found
    assert check.counts("==== 2 failed, 30 passed, 1 error in 8.21s ====") == {"failed": 2, "passed": 30, "error": 1}


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        (
            "print('FAILED a.py::b - x'); print('1 failed, 2 passed in 1s'); raise SystemExit(1)",
            "status 1, {'failed': 1",
        ),
        ("print('84 skipped in 24.69s')", "none has run: {'skipped': 84}"),
        ("print('3 passed, 1 skipped in 2s')", None),
        ("raise SystemExit(5)", None),
        ("print('2 passed in 1s', flush=True); import time; time.sleep(60)", "not over after 1 s"),
    ],
)
def test_a_row_of_tests(tmp_path: Path, code: str, failed: str | None):
    row = check.tested("of nothing", [sys.executable, "-c", code], 1.0, tmp_path / "log")
    assert (row["failed"] or "").startswith(failed or "")
    assert bool(row["failed"]) == bool(failed)
    assert row["names"] == (["a.py::b"] if "FAILED" in code else [])


def test_the_script_calls_the_check(tmp_path: Path):
    done = subprocess.run(
        [check.ROOT / "benchmarks" / "gpu_check.sh", "--dry", "--minutes", "3"],
        env={**os.environ, "PYTHON": "echo", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "-m benchmarks.gpu.check --dry --minutes 3\n"
    assert list(tmp_path.iterdir()) == []


def test_the_extension_is_put_in_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Only what is missing is built."""
    target = tmp_path / "normkit"
    target.mkdir()
    started = []

    class Built:
        def __init__(self, command: list[str], log: Path) -> None:
            started.append(command)
            self.folder = Path(command[command.index("--build-lib") + 1]) / "normkit"

        def status(self, seconds: float) -> int:
            self.folder.mkdir()
            (self.folder / "_fastpath.so").write_text("built")
            return 0

    monkeypatch.setattr(check, "Group", Built)
    (target / "_native.abi3.so").write_text("carried")
    assert check.Extension(tmp_path / "log", target).finish(1) == "extension: built _fastpath"
    assert (target / "_fastpath.so").read_text() == "built"
    assert check.Extension(tmp_path / "log", target).finish(1) == "extension: as it was found"
    assert [command[3] for command in started] == ["normkit._fastpath"]


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


def test_results_are_shown_in_the_page(tmp_path: Path):
    path, page = tmp_path / "gpu.json", tmp_path / "page.md"
    path.write_text(json.dumps(made_up()))
    page.write_text(f"before\n{show.MARKER}\nold\n{show.MARKER}\nafter\n")
    result = CliRunner().invoke(show.app, [str(path), "--docs", str(page)])
    assert result.exit_code == 0, result.output
    assert "](gpu-bars.svg)" in page.read_text()
    assert "old" not in page.read_text()
    assert (tmp_path / "gpu-bars.svg").read_text().rstrip().endswith("</svg>")
