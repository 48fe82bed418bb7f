"""The error of recalibrated running statistics compared with all the data: ``python -m benchmarks.recalibration``."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import normkit
from benchmarks.speed.measure import RESULTS, machine

Batches = list[Tensor]


def draw(sizes: list[int], mean: float = 0.0, std: float = 1.0, drift: float = 0.0) -> Batches:
    """Batches of 8 channels and 4 x 4 positions, whose mean changes by `drift` standard deviations over all of them."""
    g = torch.Generator().manual_seed(0)
    steps = torch.linspace(0, drift, len(sizes))
    return [(torch.randn(n, 8, 4, 4, generator=g) + s) * std + mean for n, s in zip(sizes, steps, strict=True)]


DATA: Mapping[str, Batches] = {
    "even batches, no drift": draw([32] * 16),
    "last batch of 1": draw([32] * 15 + [1], drift=1.0),
    "sorted data": draw([32] * 16, drift=4.0),
    "mean 1e4, std 1e-2": draw([32] * 16, mean=1e4, std=1e-2),
    "2 per batch": draw([2] * 200, drift=2.0),
}


def averaged(model: nn.Module, batches: Batches, squares: bool = False) -> None:
    """The two averages of precise BN: of the variances of batches, or of squares weighted by size, both in float32."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: [torch.zeros(8), torch.zeros(8), 0.0] for norm in norms}
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    handles = [norm.register_forward_hook(lambda m, args, _: add(sums[m], m, args[0])) for norm in norms]

    def add(total: list, norm: nn.BatchNorm2d, x: Tensor) -> None:
        n = x.numel() // 8
        weight = float(n) if squares else 1.0
        second = norm.running_var * (n - 1) / n + norm.running_mean.square() if squares else norm.running_var
        total[2] += weight
        for i, value in enumerate((norm.running_mean, second)):
            total[i] = total[i] + (value - total[i]) * (weight / total[2])

    with torch.no_grad():
        for x in batches:
            model.train()(x)
    for norm, handle, momentum in zip(norms, handles, momenta, strict=True):
        handle.remove()
        norm.momentum = momentum
        mean, second, _ = sums[norm]
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(second - mean.square() if squares else second)


METHODS: Mapping[str, Callable[[nn.Module, Batches], object]] = {
    "update_bn": lambda model, batches: update_bn(batches, model),
    "mean of variances": averaged,
    "mean of squares": lambda model, batches: averaged(model, batches, squares=True),
    "recalibrate": normkit.recalibrate,
}


def single_layer() -> list[dict]:
    """One norm on raw data: the errors of mean (in standard deviations) and variance (relative), worst channel."""
    rows = []
    for data, batches in DATA.items():
        everything = torch.cat(batches).double().transpose(0, 1).flatten(1)
        mean, var = everything.mean(1), everything.var(1, correction=1)
        errors = {}
        for name, method in METHODS.items():
            norm = nn.BatchNorm2d(8)
            method(nn.Sequential(norm), batches)
            errors[name] = {
                "mean": float(((norm.running_mean.double() - mean) / var.sqrt()).abs().max()),
                "var": float((norm.running_var.double() / var - 1).abs().max()),
            }
        rows.append({"data": data, "errors": errors})
    return rows


def deep_stack(depth: int = 6) -> list[dict]:
    """For each norm of a stack, the relative error of its stored variance against that of its input in evaluation."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(depth)]
    model, batches = nn.Sequential(*layers), DATA["2 per batch"]
    methods = dict(METHODS) | {
        f"recalibrate, {phases} phases": lambda m, b, phases=phases: normkit.recalibrate(m, b, phases=phases)
        for phases in (2, 3, depth)
    }
    rows = []
    for name, method in methods.items():
        subject = copy.deepcopy(model)
        method(subject, batches)
        x, errors = torch.cat(batches), []
        with torch.no_grad():
            for layer in subject.eval():
                seen = layer[0](x).double().transpose(0, 1).flatten(1).var(1, correction=1)
                errors.append(float((layer[1].running_var.double() / seen - 1).abs().max()))
                x = layer(x)
        rows.append({"method": name, "errors": errors})
    return rows


def main(
    save: Annotated[str, typer.Option(help="name of the result file; empty to write none")] = "recalibration",
) -> None:
    """Print the errors against float64 statistics of all the data."""
    single, deep = single_layer(), deep_stack()
    table = Table("data", *METHODS, title="one norm: error of the mean in standard deviations / of the variance")
    for row in single:
        table.add_row(row["data"], *(f"{e['mean']:.1e} / {e['var']:.1e}" for e in row["errors"].values()))
    stack = Table("method", *(f"norm {i + 1}" for i in range(6)), title="six norms, 2 per batch: error of the variance")
    for row in deep:
        stack.add_row(row["method"], *(f"{error:.1e}" for error in row["errors"]))
    for shown in (table, stack):
        Console(width=130).print(shown)
    if save:
        RESULTS.mkdir(exist_ok=True)
        content = {"machine": machine(), "one_norm": single, "six_norms": deep}
        (RESULTS / f"{save}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
