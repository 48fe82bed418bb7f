"""Times normkit against torch on a CPU: ``python -m benchmarks.run``; numbers go to benchmarks/results/."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from benchmarks.speed import oracle, saved
from benchmarks.speed.contestants import calls, contestants
from benchmarks.speed.measure import RESULTS, keep_memory, machine, quiet
from benchmarks.speed.report import summary
from benchmarks.speed.workloads import Cell, cells
from normkit import show_backends

app = typer.Typer()


@app.command()
def main(
    match: Annotated[str, typer.Option(help="only cells whose name has a word that begins with each of these")] = "",
    least: Annotated[int, typer.Option(help="only cells with at least this number of elements")] = 0,
    most: Annotated[int, typer.Option(help="only cells with at most this number of elements")] = 1 << 62,
    seconds: Annotated[float, typer.Option(help="seconds for each cell")] = 0.4,
    save: Annotated[
        Path | None,
        typer.Option(
            help="result file, written after every cell; by default by the instruction set", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what the file has, unless the machine was not quiet")
    ] = False,
    compile: Annotated[bool, typer.Option(help="whether torch.compile takes part")] = True,
    warm: Annotated[bool, typer.Option("--warm", help="only compile, which fills the cache on disk")] = False,
) -> None:
    """Time every cell and measure the error of its y; exit with 1 if normkit's error is above its bound."""
    every = list(cells())
    chosen = [cell for cell in saved.matching(every, match) if least <= cell.elements <= most]
    console = Console(width=160, highlight=False)
    save = save or RESULTS / f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}.json"
    results: dict[str, Any] = {"machine": machine(), **show_backends().to_dict(), "cells": []}
    results["cells"] = saved.kept(save, results["machine"], chosen, resume=resume)
    if not (resume or warm) and len(chosen) < len(every):
        saved.refuse_part(save, RESULTS)
    done = {row["name"] for row in results["cells"]}
    for cell in track([c for c in chosen if c.name not in done], "compiling" if warm else "timing", console=console):
        row = measure(cell, seconds, compile, warm)
        if warm:
            continue
        results["cells"].append(row)
        saved.store(save, results)
        console.print(escape(_line(row)), soft_wrap=True)
    if warm:
        return
    console.print(summary([results]), markup=False, soft_wrap=True)
    errors = {row["name"]: row["error"]["normkit"] for row in results["cells"]}
    wrong = [name for name, error in errors.items() if error is None or error > oracle.BOUND]
    if wrong:
        heading = f"normkit failed, or its error is above {oracle.BOUND:g} eps (1 + |mean| / std)"
        console.print("\n".join((f"{heading}:", *wrong)), markup=False, soft_wrap=True)
        raise typer.Exit(1)


def measure(cell: Cell, seconds: float, compiled: bool, warm: bool = False) -> dict[str, Any]:
    """One cell: facts, milliseconds of each contestant (None if it failed, with the reason), and errors of y."""
    torch.manual_seed(0)
    torch.compiler.reset()
    running, failed = contestants(cell, compiled)
    facts = {**asdict(cell), "name": cell.name, "units": cell.units, "bytes": cell.bytes, "limit": cell.at_the_limit}
    if warm:
        return facts
    error = {name: oracle.error(cell, running[name]) if name in running else None for name in ("torch", "normkit")}
    times, was_quiet = quiet(calls(cell, running), seconds)
    milliseconds = {**times, **dict.fromkeys(failed)}
    return {**facts, "quiet": was_quiet, "milliseconds": milliseconds, "failed": failed, "error": error}


def _line(row: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {'failed' if t is None else f'{t:.4g}'}" for name, t in row["milliseconds"].items())
    errors = "  ".join(f"{name} {'-' if e is None else f'{e:.2g}'}" for name, e in row["error"].items())
    return f"{row['name']}: ms {times}; error {errors}{'' if row['quiet'] else '; machine not quiet'}"


if __name__ == "__main__":
    keep_memory()
    app()
