"""The benchmark of a GPU, as far as it goes without one: clocks, cells, peers, tables, and a dry run of everything."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from benchmarks import show
from benchmarks.gpu import cells as grid
from benchmarks.gpu import check, clock, layers, report, run
from benchmarks.speed import oracle
from benchmarks.speed.contestants import contestants
from benchmarks.speed.peers import PEERS, Peer
from benchmarks.speed.workloads import Cell
from torch import Tensor
from typer.testing import CliRunner

# Clocks ----------------------------------------------------------------------------------------------------


class Cuda:
    """In place of `torch.cuda`: a GPU whose queue is a list, and whose sleep of a cycle takes a microsecond."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue: list[str] = []
        self.idle = False

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=0)

    def Event(self, enable_timing: bool) -> SimpleNamespace:  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(at=0.0)
        event.record = lambda: (self.queue.append("event"), setattr(event, "at", self.now))
        event.elapsed_time = lambda other: other.at - event.at
        event.query = lambda: self.idle
        return event

    def _sleep(self, cycles: int) -> None:
        self.queue.append("sleep")
        self.now += cycles * 1e-3

    def synchronize(self) -> None:
        self.queue.append("wait")

    def call(self) -> None:
        self.queue.append("call")
        self.now += 3.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(clock, "LEAST_BUFFER", 16)
    return made


def test_a_call_is_queued_while_the_gpu_sleeps_and_finds_the_cache_empty(cuda: Cuda):
    gpu = clock.GpuClock(cuda, "cpu")
    assert gpu.cycles == pytest.approx(1000)  # for a millisecond
    gpu.buffer.fill_(1)
    cuda.queue.clear()
    assert gpu.device(cuda.call, 0.5) == (3.0, True)
    assert cuda.queue == ["sleep", "event", "call", "event", "wait"]
    assert not gpu.buffer.any()
    cuda.idle = True
    assert gpu.device(cuda.call, 0.5) == (3.0, False)
    assert gpu.host(cuda.call, 0.5, 4) is None
    cuda.idle = False
    assert gpu.host(cuda.call, 0.5, 4) >= 0
    assert 0 < gpu.ahead(cuda.call) < clock.LONGEST
    assert gpu.wall(cuda.call) >= 0


class Programmed(clock.HostClock):
    """Gives the times it was made with, each with whether the call was queued."""

    def __init__(self, times: list[tuple[float, bool]]) -> None:
        self.times, self.given = iter(times), []

    def ahead(self, call: Callable[[], object]) -> float:
        return 1.0

    def device(self, call: Callable[[], object], ahead: float) -> tuple[float, bool]:
        self.given.append((call(), ahead))
        return next(self.times)


def test_calls_take_turns_and_late_ones_do_not_count():
    programmed = Programmed([(3, True), (90, False), (5, True), (10, True), (4, True), (12, True)])
    times = clock.interleaved({"a": lambda: "a", "b": lambda: "b"}, 0, programmed, least=3)
    assert times["a"] == clock.Times(4, 3, 3)
    assert times["b"] == clock.Times(11, 10, 2, queued=0.667)
    assert programmed.given == [("a", 1), ("b", 1), ("a", 1), ("b", 2), ("a", 1), ("b", 2)]
    # A call that always waits for the GPU is taken as it comes.
    always = clock.interleaved({"a": lambda: None}, 0, Programmed([(7, False)] * 3), least=3)
    assert always["a"] == clock.Times(7, 7, 3, queued=0.0)


def test_the_cpu_time_of_a_call_is_the_least_of_many():
    programmed = Programmed([])
    taken = {"a": iter([3.0, None, 2.0]), "b": iter([None, None, None])}
    programmed.host = lambda call, ahead, number: next(taken[call()])
    assert clock.host_times({"a": lambda: "a", "b": lambda: "b"}, programmed, repeats=3) == {"a": 2.0, "b": None}


# Cells and peers -------------------------------------------------------------------------------------------


def test_cells_and_their_units():
    every = list(grid.cells())
    assert len(every) == 44
    assert len(list(grid.cells(("bfloat16", "float32"), small=True))) == 2 * (44 + 16)
    assert set(grid.SAMPLE) < {cell.name for cell in every}
    assert {cell.method for cell in every if cell.name in grid.SAMPLE} == {*grid.OF_IMAGES, *grid.OF_ROWS}
    assert {(cell.method == "batch_norm", cell.backward): grid.units(cell) for cell in every} == {
        (True, False): 3, (True, True): 8, (False, False): 2, (False, True): 5,
    }  # fmt: skip


def stand_ins() -> dict[str, ModuleType]:
    """Modules with the public signatures of the peers, which compute with torch."""

    def module(**functions: object) -> ModuleType:
        made = ModuleType("stand-in")
        vars(made).update(functions)
        return made

    def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], w, eps)

    class LigerRMSNormFunction:
        @staticmethod
        def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
            assert (offset, casting_mode, in_place) == (0.0, "llama", False)
            return rms(X, W, eps)

    def layernorm_fwd(x, weight, bias=None, eps=1e-6, return_rstd=False, return_mean=False):
        assert weight.dtype == bias.dtype == torch.float32
        var, mean = torch.var_mean(x, -1, correction=0)
        rstd = (var + eps).rsqrt()
        y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return (y, rstd, mean) if return_rstd and return_mean else y

    def layernorm_bwd(x, weight, dout, rstd, mean, has_bias=True):
        z = (x - mean[:, None]) * rstd[:, None]
        g = dout * weight
        dx = (g - g.mean(-1, keepdim=True) - z * (g * z).mean(-1, keepdim=True)) * rstd[:, None]
        return dx, (dout * z).sum(0), dout.sum(0)

    def group(X, weight, bias, num_channels, num_groups, eps):
        assert X.shape[1] == num_channels
        return F.group_norm(X, num_groups, weight, bias, eps)

    liger = module(
        liger_layer_norm=lambda X, W, B, eps: F.layer_norm(X, X.shape[-1:], W, B, eps),
        liger_rms_norm=lambda X, W, eps, offset=0.0, casting_mode="llama", in_place=True: rms(X, W, eps),
        liger_group_norm=group,
    )
    fused = module(
        fused_layer_norm_affine=lambda x, w, b, shape, eps=1e-6, memory_efficient=False: F.layer_norm(
            x, shape, w, b, eps
        ),
        fused_rms_norm_affine=lambda x, w, shape, eps=1e-6, memory_efficient=False: F.rms_norm(x, shape, w, eps),
    )

    def rmsnorm(x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6):
        return rms(x, weight, eps)

    return {
        "liger_kernel.transformers": module(functional=liger),
        "liger_kernel.ops.cutedsl.ops.rms_norm": module(LigerRMSNormFunction=LigerRMSNormFunction),
        "quack.rmsnorm": module(rmsnorm=rmsnorm, layernorm_fwd=layernorm_fwd, layernorm_bwd=layernorm_bwd),
        "flashinfer.norm": module(
            rmsnorm=lambda input, weight, eps=1e-6, out=None, enable_pdl=None: rms(input, weight, eps),
            layernorm=lambda input, gemma, beta, eps=1e-6: F.layer_norm(input, input.shape[-1:], gemma, beta, eps),
        ),
        "apex.normalization": module(fused_layer_norm=fused),
    }


@pytest.mark.parametrize("backward", [False, True])
def test_peers_compute_the_same(monkeypatch: pytest.MonkeyPatch, backward: bool):
    """Their public functions are called as their sources have them; without a GPU, by what stands in for them."""
    for name, module in stand_ins().items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        monkeypatch.setitem(sys.modules, name, module)
    seen = set()
    for method, shape in (("rms_norm", (6, 32)), ("layer_norm", (6, 32)), ("group_norm", (2, 32, 3, 3))):
        cell = Cell(method, shape, "contiguous", "float32", backward, "memory")
        running, failed = contestants(cell, compiled=False, peers=PEERS)
        assert failed == {}
        seen |= set(running) - {"torch", "normkit", "onednn"}
        expected = running["torch"].train() if backward else ()
        for name in set(running) - {"onednn"}:
            assert oracle.error(cell, running[name]) < oracle.BOUND, name
            for mine, theirs in zip(running[name].train() if backward else (), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert seen == {name for name, peer in PEERS.items() if "flashinfer" not in name}
    half = Cell("rms_norm", (6, 32), "contiguous", "bfloat16", backward, "memory")
    assert ("flashinfer" in contestants(half, compiled=False, peers=PEERS)[0]) != backward


def test_a_peer_that_fails_is_a_note(monkeypatch: pytest.MonkeyPatch):
    def broken(cell: Cell, eps: float, groups: int) -> None:
        raise ImportError("no compiler for this GPU\nand more")

    def wrong(cell: Cell, eps: float, groups: int) -> Callable[..., Tensor]:
        return lambda x, w: x

    cell = Cell("rms_norm", (8, 32), "contiguous", "bfloat16", False, "memory")
    peers = {"broken": Peer("broken", broken), "wrong": Peer("wrong", wrong)}
    row = run.measured(cell, 0, clock.HostClock(), 1e6, compiled=False, peers=peers)
    assert row["milliseconds"]["broken"] is None
    assert row["failed"] is None
    assert row["limit"] == 2 * 8 * 32 * 2 / 1e6
    notes = report.notes({"cells": [row], "left out": ["models: ViT-S"]})
    assert notes[0].startswith("broken failed: ImportError: no compiler for this GPU (in 1 cells, such as rms_norm")
    assert notes[1].startswith("wrong computes something else")
    assert notes[2] == "no time for models: ViT-S"
    monkeypatch.setattr(oracle, "error", lambda *_: float("nan"))
    assert run.measured(cell, 0, clock.HostClock(), 1e6, compiled=False)["failed"] == "error nan is above 4"


# A dry run -------------------------------------------------------------------------------------------------


def test_a_dry_run_of_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Everything but the tests, which are tests themselves: on the CPU, with tiny shapes."""
    monkeypatch.setenv("OUT", str(tmp_path))
    result = CliRunner().invoke(check.app, ["--dry", "--no-tests"])
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("nothing failed")
    assert "CUDA graphs: 9 of 9 layers" in result.output
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


def test_the_tests_of_the_check():
    line = check.command(dry=False)
    assert line[line.index("-m", 3) + 1] == "gpu"
    assert all((check.ROOT / path).is_dir() for path in check.TESTS)
    assert check.counts("==== 2 failed, 30 passed, 1 error in 8.21s ====") == {"failed": 2, "passed": 30, "error": 1}


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
        facts = {"name": name, "method": method, "backward": backward, "limit": limit, "failed": None}
        return {**facts, "milliseconds": milliseconds, "times": times, "failed by": {}, "error": {"normkit": 0.5}}

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
    assert "| all, forward | 1 of 2 | 5.66 | 1.00 | 0.70 | 0.50 |" in text
    assert "| rows, forward+backward | 0 of 1 | 1.00 | 0.50 | 0.25 | 0.25 |" in text
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
