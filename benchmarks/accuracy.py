"""The error of y against float64, for torch and normkit: ``python -m benchmarks.accuracy``."""

from __future__ import annotations

import json
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.speed.measure import RESULTS, machine
from normkit import functional as N
from normkit.kernels import formula

CASES = {
    "group_norm": ("b (g=2 [c]) [...]", lambda f, x: f.group_norm(x, 2)),
    "batch_norm": ("[b] c [...]", lambda f, x: f.batch_norm(x, None, None, training=True)),
    "instance_norm": ("b c [...]", lambda f, x: f.instance_norm(x)),
    "layer_norm": ("... [c]", lambda f, x: f.layer_norm(x, x.shape[-1:])),
}
DATA = {
    "mean 0": lambda x: x,
    "mean 1000": lambda x: x + 1000,
    "mean 3000": lambda x: x + 3000,
    "mean 1e4, std 1e-2": lambda x: x * 1e-2 + 1e4,
    "magnitude 1e18": lambda x: x * 1e18,
    "magnitude 1e30": lambda x: x * 1e30,
}


def main(save: Annotated[str, typer.Option(help="name of the result file; empty to write none")] = "accuracy") -> None:
    """Print the largest error of y as a multiple of eps (1 + |mean| / std); the bound is 4."""
    table = Table("method", "layout", "data", "torch", "normkit")
    rows = []
    for method, (pattern, call) in CASES.items():
        for layout, fmt in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            for data, make in DATA.items():
                x = make(torch.randn(8, 8, 16, 16, generator=torch.Generator().manual_seed(0)))
                x = x.contiguous(memory_format=fmt)
                exact, _, mean, std = formula.norm(formula.Arguments(x.double(), None, None, pattern, 1e-5, True))
                unit = torch.finfo(torch.float32).eps * (1 + (mean.abs() / std).max().item())
                scale = exact.abs().max().item() * unit
                errors = {name: (call(f, x) - exact).abs().max().item() for name, f in (("torch", F), ("normkit", N))}
                row = {"method": method, "layout": layout, "data": data}
                rows.append({**row, "error": errors, "in_units": {k: v / scale for k, v in errors.items()}})
                table.add_row(*row.values(), *(f"{v:.1e} ({v / scale:.2g})" for v in errors.values()))
    Console(width=120).print(table)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{save}.json").write_text(json.dumps({"machine": machine(), "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
