"""The benchmark of a GPU, as far as it goes without one: clocks, cells, peers, tables, and a dry run of everything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from benchmarks.gpu import cells as grid
from benchmarks.gpu import clock, report, run
from benchmarks.speed import oracle
from benchmarks.speed.contestants import contestants
from benchmarks.speed.peers import PEERS, Peer
from benchmarks.speed.workloads import Cell
from torch import Tensor

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
    # The zeros are in memory, and not on their way there, when the call begins.
    kept, gpu.buffer = (
        gpu.buffer,
        SimpleNamespace(zero_=lambda: cuda.queue.append("zero"), max=lambda: cuda.queue.append("read")),
    )
    cuda.queue.clear()
    gpu.device(cuda.call, 0.5)
    assert cuda.queue == ["sleep", "zero", "read", "event", "call", "event", "wait"]
    gpu.buffer = kept
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

    def late(cell: Cell, eps: float, groups: int) -> Callable[..., Tensor]:
        numbers = iter([1])  # for the first call, and for no other

        def once(x: Tensor, w: Tensor) -> Tensor:
            return x * next(numbers)

        return once

    def wrong(cell: Cell, eps: float, groups: int) -> Callable[..., Tensor]:
        return lambda x, w: x

    cell = Cell("rms_norm", (8, 32), "contiguous", "bfloat16", False, "memory")
    peers = {"broken": Peer("broken", broken), "wrong": Peer("wrong", wrong), "late": Peer("late", late)}
    row = run.measured(cell, 0, clock.HostClock(), 1e6, gpu=False, peers=peers)
    assert row["milliseconds"]["broken"] is row["milliseconds"]["late"] is None
    assert row["failed"] is None
    assert row["limit"] == 2 * 8 * 32 * 2 / 1e6
    notes = report.notes({"cells": [row], "left out": ["models: ViT-S"]})
    assert notes[0].startswith("broken failed: ImportError: no compiler for this GPU (in 1 cells, such as rms_norm")
    assert notes[1].startswith("late failed: StopIteration")
    assert notes[2].startswith("wrong computes something else")
    assert notes[3] == "no time for models: ViT-S"
    monkeypatch.setattr(oracle, "error", lambda *_: float("nan"))
    assert run.measured(cell, 0, clock.HostClock(), 1e6, gpu=False)["failed"] == "error nan is above 4"
