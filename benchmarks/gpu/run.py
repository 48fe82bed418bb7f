"""``python -m benchmarks.gpu.run``: cells, calls of layers, whole models and CUDA graphs on this machine's GPU.

Numbers go to benchmarks/results/gpu.json; `benchmarks.show` makes tables of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu import cells as grid
from benchmarks.gpu import layers, models, report
from benchmarks.gpu.clock import Clock, GpuClock, HostClock, bandwidth, facts, interleaved
from benchmarks.speed import oracle
from benchmarks.speed.contestants import Contestant, calls, contestants
from benchmarks.speed.measure import RESULTS, machine
from benchmarks.speed.peers import Peer
from benchmarks.speed.workloads import Cell
from normkit import show_backends

COPY = 512 << 20
"""Bytes of the copy whose bandwidth is the limit."""
WARMERS = 6
"""Processes that compile ahead. Each holds a context of the GPU and the tensors of one cell."""

app = typer.Typer(pretty_exceptions_enable=False)


class Run:
    """A run in progress: the results so far, and the time that is left."""

    def __init__(self, path: Path, minutes: float, gpu: bool) -> None:
        self.path, self.gpu = path, gpu
        self.end = time.monotonic() + 60 * minutes
        self.clock: Clock = GpuClock() if gpu else HostClock()
        speed = bandwidth(self.clock, COPY if gpu else 1 << 20, layers.where(gpu).type, 0.5 if gpu else 0.02)
        self.results: dict[str, Any] = {
            "machine": {**machine(), **facts()},
            **show_backends().to_dict(),
            "copy": {"bytes": COPY if gpu else 1 << 20, "bytes per ms": speed},
            **{part: [] for part in ("tests", "cells", "calls", "models", "graphs", "left out")},
        }

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(self, part: str, rows: Iterable[dict[str, Any]], say: Callable[[str], None] = print) -> None:
        """Write each row as soon as it is there."""
        for row in rows:
            self.results[part].append(row)
            self.save()
            say(f"{part}: {row['name']}{' failed: ' + str(row['failed']) if row.get('failed') else ''}")

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")

    def each(self, part: str, names: Sequence[str], one: Callable[[str], dict[str, Any]], reserve: float = 0) -> None:
        """One row for each name until only `reserve` seconds are left; what is left out is in the results, too."""
        for at, name in enumerate(names):
            if self.left() < reserve:
                self.results["left out"] += [f"{part}: {rest}" for rest in names[at:]]
                self.save()
                return
            self.add(part, [one(name)])


def prepared(
    cell: Cell, gpu: bool, autotuned: bool = False, peers: Mapping[str, Peer] | None = None
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The contestants of a cell, those of torch.compile on a GPU; and why others failed."""
    with layers.where(gpu):
        running, failed = contestants(cell, compiled=False, peers=peers)
    running.pop("onednn", None)  # in a dry run; it has tensors of its own kind
    modes: dict[str, str | None] = {"compile": None} if gpu else {}
    modes |= {"compile max-autotune": "max-autotune-no-cudagraphs"} if autotuned else {}
    # Not where tensors are made: a compiled function is compiled again when the default device has changed.
    for name, mode in modes.items() if "torch" in running else ():
        compiled = running["torch"].compiled(mode)
        try:
            compiled.train() if cell.backward else compiled.infer()
        except Exception as error:
            failed[name] = layers.reason(error)
        else:
            running[name] = compiled
    return running, failed


def _errors(
    cell: Cell, running: dict[str, Contestant], failed: dict[str, str], device: torch.device
) -> dict[str, float]:
    """The error of y of each contestant; one that fails here is no longer running."""
    errors = {}
    for name, contestant in list(running.items()):
        try:
            y = contestant.function(*contestant.inputs)
            with device:
                errors[name] = oracle.error(cell, replace(contestant, function=lambda *_, y=y: y))
        except Exception as error:
            failed[name] = layers.reason(error)
            del running[name]
    return errors


def measured(
    cell: Cell,
    seconds: float,
    clock: Clock,
    bytes_per_ms: float,
    gpu: bool = True,
    autotuned: bool = False,
    peers: Mapping[str, Peer] | None = None,
) -> dict[str, Any]:
    """One cell: facts, milliseconds of each contestant and the reasons of those that failed, and errors of y."""
    units = grid.units(cell)
    limit = units * cell.bytes / bytes_per_ms
    row = {**asdict(cell), "name": cell.name, "units": units, "bytes": cell.bytes, "limit": limit}
    row |= {"milliseconds": {}, "times": {}, "failed by": {}, "error": {}}
    try:
        torch.manual_seed(0)
        torch.compiler.reset()
        running, failed = prepared(cell, gpu, autotuned, peers)
        error = _errors(cell, running, failed, layers.where(gpu))
        timed = calls(cell, running)
        del timed["copy"]
        times = interleaved(timed, seconds, clock)
    except (
        Exception
    ) as wrong:  # a GPU that has lost its context fails in every cell, and the table still has all others
        return {**row, "failed": layers.reason(wrong)}
    row |= {"failed by": failed, "error": error, "failed": _failure(failed, error)}
    row["milliseconds"] = {name: t.median for name, t in times.items()} | dict.fromkeys(failed)
    return {**row, "times": {name: asdict(t) for name, t in times.items()}}


def _failure(failed: dict[str, str], error: dict[str, float]) -> str | None:
    """What is wrong with normkit in a cell; a peer's failure is only noted."""
    if "normkit" in failed:
        return failed["normkit"]
    # Not `>`: an error that is no number is a failure, too.
    return None if error["normkit"] <= oracle.BOUND else f"error {error['normkit']:.2g} is above {oracle.BOUND:g}"


def warm(wanted: Sequence[Cell], workers: int = WARMERS) -> ProcessPoolExecutor:
    """Compile for these cells in other processes, which fill the caches of Triton and Inductor on disk."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    with contextlib.suppress(BrokenProcessPool):  # then the measurement compiles for itself
        for cell in wanted:
            pool.submit(_compile, cell)
    return pool


def _compile(cell: Cell) -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    prepared(cell, gpu=True)


def everything(run: Run, wanted: Sequence[Cell], seconds: float, autotuned: bool = False) -> None:
    """Fill in all parts, in the order of their weight."""
    speed, by_name = run.results["copy"]["bytes per ms"], {cell.name: cell for cell in wanted}
    run.add("graphs", layers.graphs(run.gpu))
    run.add("calls", layers.called(run.clock, run.gpu, repeats=30 if run.gpu else 2))
    run.each("cells", list(by_name), lambda n: measured(by_name[n], seconds, run.clock, speed, run.gpu, autotuned))
    for compiled in (False, True) if run.gpu else (False,):
        run.each(
            "models",
            list(models.SUBJECTS),
            partial(models.measured, clock=run.clock, compiled=compiled, gpu=run.gpu, seconds=seconds),
        )


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="for everything; what there is no time for is left out")] = 60,
    match: Annotated[str, typer.Option(help="only cells whose name has each of these words")] = "",
    float32: Annotated[bool, typer.Option("--float32", help="float32 as well as bfloat16")] = False,
    small: Annotated[bool, typer.Option("--small", help="also [128, 512, 14, 14]")] = False,
    autotuned: Annotated[bool, typer.Option("--autotuned", help="also torch.compile's max-autotune")] = False,
    seconds: Annotated[float, typer.Option(help="seconds for each cell")] = 0.6,
    save: Annotated[Path, typer.Option(help="result file, written after every row")] = RESULTS / "gpu.json",
    workers: Annotated[int, typer.Option(help="processes that compile for the cells beforehand")] = WARMERS,
    dry: Annotated[bool, typer.Option("--dry", help="on the CPU with tiny shapes: shows that it runs")] = False,
) -> None:
    """Measure everything; exit with 1 if normkit failed, or if its error is above its bound."""
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: use --dry to try the benchmark")
    if dry and save == RESULTS / "gpu.json":
        raise typer.BadParameter("a dry run measures nothing: name another --save")
    end = time.monotonic() + 60 * minutes
    dtypes = ("bfloat16", "float32") if float32 else ("bfloat16",)
    wanted = [c for c in grid.cells(dtypes, small, dry) if all(word in c.name for word in match.split())]
    if not dry and workers:
        warm(wanted, workers).shutdown()
    run = Run(save, (end - time.monotonic()) / 60, not dry)
    everything(run, wanted, seconds, autotuned)
    typer.echo(report.summary(run.results))
    if report.failures(run.results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
