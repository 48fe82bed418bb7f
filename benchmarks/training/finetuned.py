"""What rounded weights cost, and lost norms, after training: ``python -m benchmarks.training.finetuned``."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit
from benchmarks.speed.measure import RESULTS, machine
from normkit.study.suite.data import Pair, digits
from normkit.study.suite.networks import convnet, mlp

SEEDS = range(3)
EPOCHS = 12
"""Of the training before, and of the training after."""

RATES = 0.05, 0.01
"""Learning rates of the two."""

BATCH = 50


def rounded(weight: Tensor, bits: int) -> Tensor:
    """One scale for the whole tensor, and the gradient of the weight itself."""
    largest = 2 ** (bits - 1) - 1
    step = weight.detach().abs().max() / largest
    return weight + ((weight / step).round() * step - weight).detach()


class Rounded(nn.Module):
    """The same as a parametrization, of a layer whose norm is not folded."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight, self.bits)


def train(
    model: nn.Module, data: Pair, rate: float, seed: int, after_step: Callable[[int], object] = lambda _: None
) -> list[float]:
    """The loss of each step; `after_step` gets the share of the training that is done, in percent."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    generator, losses = torch.Generator().manual_seed(seed), []
    steps = EPOCHS * (len(data[1]) // BATCH)
    model.train()
    while len(losses) < steps:
        for index in torch.randperm(len(data[1]), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(data[0][index]), data[1][index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            after_step(100 * len(losses) // steps)
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, data: Pair) -> float:
    """The share of images that are classified correctly."""
    return float((model.eval()(data[0]).argmax(1) == data[1]).float().mean())


def quantized(seed: int, bits: int) -> dict[str, float]:
    """Test accuracy with rounded weights of all convolutions, by how the model was trained."""
    fit, _, test = digits((1000, 0, 797), noise=0.3, seed=seed)
    model = convnet("batch_norm", seed, channels=((8, 1), (16, 2), (16, 1), (16, 1)))
    train(model, fit, RATES[0], seed)
    found = {"not rounded": accuracy(model, test)}

    def folded_and_rounded(net: nn.Module) -> nn.Module:
        plain, report = normkit.fold(net.eval(), fit[0][:2])
        assert len(report.folds) == 4
        for layer in plain.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = rounded(layer.weight.data, bits)
        return plain

    found["folded, then rounded"] = accuracy(folded_and_rounded(model), test)
    apart = copy.deepcopy(model)
    for layer in list(apart.modules()):
        if isinstance(layer, nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", Rounded(bits))
    train(apart, fit, RATES[1], seed)
    found["trained rounded beside its norm: as trained"] = accuracy(apart, test)
    for layer in list(apart.modules()):
        if isinstance(layer, nn.Conv2d):
            parametrize.remove_parametrizations(layer, "weight")
    found["the same, then folded and rounded again"] = accuracy(folded_and_rounded(apart), test)
    for name, freeze_at in {"fold_for_training": None, "the same, statistics frozen halfway": 50}.items():
        net, _ = normkit.fold_for_training(model, fit[0][:2], weight_fake_quant=lambda weight: rounded(weight, bits))

        def after_step(percent: int, net: nn.Module = net, freeze_at: int | None = freeze_at) -> None:
            if percent == freeze_at:
                for module in net.modules():
                    if isinstance(module, normkit.TrainableFold):
                        module.freeze_statistics()

        train(net, fit, RATES[1], seed, after_step)
        found[name] = accuracy(normkit.finish(net), test)
    return found


def without_norms(seed: int, method: str) -> dict[str, dict[str, float]]:
    """The loss before the change, in the first step after it, and at most in any; and on test data at the end."""
    fit, _, test = digits((1000, 0, 797), noise=0.3, seed=seed)
    model = mlp("layer_norm", seed, inputs=64, width=64, depth=6)
    before = train(model, fit, RATES[0], seed)
    batches = [fit[0][:500]]
    steps = EPOCHS * (len(fit[1]) // BATCH)
    ways: Mapping[str, dict] = {
        "at once": {},
        "at once, calibrated": {"calibrate": batches},
        "fading over half of the steps": {"schedule": steps // 2},
        "fading, calibrated": {"schedule": steps // 2, "calibrate": batches},
    }
    found = {}
    for name, options in {"norm kept": None, **ways}.items():
        net = copy.deepcopy(model) if options is None else normkit.convert(model, to=method, **options)[0]
        fades = bool(options) and "schedule" in options
        losses = train(net, fit, RATES[1], seed + 100, lambda _, net=net, fades=fades: fades and normkit.advance(net))
        net = normkit.finish(net) if fades else net
        with torch.no_grad():
            loss = F.cross_entropy(net.eval()(test[0]), test[1])
        found[name] = {
            "before": statistics.mean(before[-20:]),
            "first step": losses[0],
            "largest": max(losses),
            "test loss": float(loss),
            "accuracy": accuracy(net, test),
        }
    return found


def main(save: Annotated[str, typer.Option(help="name of the result file; empty to write none")] = "finetuned") -> None:
    """Print the medians over the seeds."""
    torch.set_num_threads(1)
    rounding = {bits: [quantized(seed, bits) for seed in SEEDS] for bits in (4, 3)}
    table = Table("training", *(f"{bits} bits" for bits in rounding), title="test accuracy with rounded weights")
    for name in rounding[4][0]:
        table.add_row(name, *(f"{statistics.median(row[name] for row in rows):.3f}" for rows in rounding.values()))
    Console(width=130).print(table)
    leaving = {method: [without_norms(seed, method) for seed in SEEDS] for method in ("dyt", "derf", "identity")}
    for method, rows in leaving.items():
        shown = Table("change", *rows[0]["norm kept"], title=f"layer norm -> {method}")
        for name, figures in rows[0].items():
            medians = [statistics.median(row[name][key] for row in rows) for key in figures]
            shown.add_row(name, *(f"{value:.3f}" for value in medians))
        Console(width=130).print(shown)
    if save:
        content = {"machine": machine(), "rounded": rounding, "without_norms": leaving}
        (RESULTS / f"{save}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
