"""Times whole models on a CPU, before and after `normkit.convert` and `normkit.fold`.

``PYTHONPATH=tests python -m benchmarks.models``; numbers go to benchmarks/results/models.json, and from there into
docs/en/engine/performance.md and docs/zh/engine/performance.md. timm and transformers must be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from benchmarks.models import report
from benchmarks.models.measure import measure
from benchmarks.models.subjects import cells
from benchmarks.speed import saved
from benchmarks.speed.measure import RESULTS, keep_memory, machine
from normkit import show_backends

app = typer.Typer()


@app.command()
def main(
    match: Annotated[str, typer.Option(help="only cells whose name has a word that begins with each of these")] = "",
    seconds: Annotated[float, typer.Option(help="seconds for each cell, in which each contestant runs 7 times")] = 1.5,
    save: Annotated[Path, typer.Option(help="result file, written after every cell")] = RESULTS / "models.json",
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what the file has, unless the machine was not quiet")
    ] = False,
    warm: Annotated[bool, typer.Option("--warm", help="only compile, which fills the cache on disk")] = False,
) -> None:
    """Check and time every cell; exit with 1 if a contestant fails, or computes something else than torch's model."""
    every = list(cells())
    chosen = saved.matching(every, match)
    console = Console(width=160, highlight=False)
    results: dict[str, Any] = {"machine": machine(), **show_backends().to_dict(), "cells": []}
    results["cells"] = saved.kept(save, results["machine"], chosen, resume=resume)
    if not (resume or warm) and len(chosen) < len(every):
        saved.refuse_part(save, RESULTS)
    done = {row["name"] for row in results["cells"]}
    if warm:
        chosen = [cell for cell in chosen if cell.compiled]
    for cell in track([c for c in chosen if c.name not in done], "compiling" if warm else "timing", console=console):
        row = measure(cell, seconds, warm)
        console.print(escape(report.line(row)), soft_wrap=True)
        if not warm:
            results["cells"].append(row)
            saved.store(save, results)
    if warm:
        return
    order = {cell.name: place for place, cell in enumerate(every)}
    results["cells"].sort(key=lambda row: order[row["name"]])
    saved.store(save, results)
    console.print(report.summary(results), markup=False, soft_wrap=True)
    if save.resolve().parent == RESULTS.resolve():
        report.write_pages(results)
    if any(row["failed"] for row in results["cells"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    keep_memory()
    app()
