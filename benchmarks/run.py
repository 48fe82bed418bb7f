"""Times normkit against torch: ``python -m benchmarks.run``; numbers go to benchmarks/results/."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.contestants import calls
from benchmarks.measure import keep_memory, machine, quiet
from benchmarks.workloads import cells
from normkit import show_backends

RESULTS = Path(__file__).parent / "results"


def main(
    match: Annotated[str, typer.Option(help="only cells whose name holds this text")] = "",
    seconds: Annotated[float, typer.Option(help="seconds for each cell")] = 0.4,
    save: Annotated[str, typer.Option(help="name of the result file; empty to write none")] = "cpu",
) -> None:
    """Time every cell and print normkit's share of torch's time (below 1 is faster)."""
    keep_memory()
    torch.manual_seed(0)
    rows = []
    chosen = [cell for cell in cells() if all(word in cell.name for word in match.split())]
    for cell in track(chosen, "timing"):
        times, was_quiet = quiet(calls(cell), seconds)
        facts = {"dtype": str(cell.dtype)[6:], "name": cell.name, "quiet": was_quiet}
        rows.append({**asdict(cell), **facts, "milliseconds": times})
    table = Table("cell", "torch ms", "normkit ms", "normkit / torch", "of copy bandwidth")
    ratios = []
    for row in rows:
        times = row["milliseconds"]
        ratio = times["normkit"] / times["torch"]
        if row["quiet"]:
            ratios.append(ratio)
        limit = times["copy"] * (2.5 if row["backward"] else 1)
        style = "red" if ratio > 1.25 else "yellow" if ratio > 1 else ""
        cols = (f"{times['torch']:.2f}", f"{times['normkit']:.2f}", f"{ratio:.2f}", f"{limit / times['normkit']:.2f}")
        table.add_row(row["name"] + ("" if row["quiet"] else " (machine not quiet)"), *cols, style=style)
    console = Console(width=140)
    console.print(table)
    if not ratios:
        console.print("no cell was measured on a quiet machine: stop what else runs and try again")
        raise typer.Exit(1)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    measured = f"{len(ratios)} of {len(rows)} cells measured quietly"
    console.print(f"{measured}, geometric mean {mean:.2f}, worst {max(ratios):.2f} of torch's time")
    if save:
        RESULTS.mkdir(exist_ok=True)
        facts = {"machine": machine(), **show_backends().to_dict(), "geometric_mean": mean, "worst": max(ratios)}
        (RESULTS / f"{save}.json").write_text(json.dumps({**facts, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
