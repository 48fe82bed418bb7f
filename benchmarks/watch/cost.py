"""Measures the time that `normkit.watch` adds to training: ``python -m benchmarks.watch.cost``, about a minute."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normkit
from benchmarks.speed.measure import RESULTS, interleaved, machine

ZOO = Path(__file__).parents[2] / "tests"
EVERY = 50
NEVER = 10**9

Made = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def resnet() -> Made:
    """timm's resnet18 on 8 images of 64 x 64: 20 batch norms."""
    from zoo import image_model

    model, _ = image_model("resnet18")
    x = torch.randn(8, 3, 64, 64)
    return model, lambda model: model(x).square().mean()


def vit() -> Made:
    """timm's ViT-Tiny, 4 blocks, on 8 images of 64 x 64: 9 layer norms."""
    from zoo import image_model

    model, _ = image_model("vit_tiny_patch16_224", depth=4)
    x = torch.randn(8, 3, 64, 64)
    return model, lambda model: model(x).square().mean()


def bert() -> Made:
    """BERT-tiny, 2 layers of width 128, on 8 sequences of 64: 5 layer norms."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    ids = torch.randint(1000, (8, 64))
    return BertModel(BertConfig(vocab_size=1000, **sizes)), lambda model: model(ids).last_hidden_state.square().mean()


MODELS: Mapping[str, Callable[[], Made]] = {"resnet18": resnet, "ViT-Tiny": vit, "BERT-tiny": bert}


def step_of(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    """One training step with the cheapest optimizer; with any other, the fraction of time for a watch is smaller."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

    return step


class Idle(nn.Module):
    """Returns its input, so that the counter of a watch takes most of the time of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)

    def forward(self, x: Tensor) -> Tensor:
        return x


def counter(seconds: float) -> float:
    """The additional milliseconds of a forward between watched ones."""
    model, twin, x = Idle(), Idle(), torch.zeros(1)
    with contextlib.closing(normkit.watch(twin, every=NEVER, start=1)):
        medians, _ = interleaved({"plain": lambda: model(x), "between": lambda: twin(x)}, seconds)
    return medians["between"] - medians["plain"]


def measured(make: Callable[[], Made], between: float, seconds: float) -> dict[str, Any]:
    """Medians of a plain and a watched step, timed alternately, and the added fraction of training time by default."""
    torch.manual_seed(0)
    model, loss = make()
    model.train()
    twin = copy.deepcopy(model)
    with (
        tempfile.TemporaryDirectory() as folder,
        normkit.watch(twin, every=1, to=f"{folder}/norms.jsonl") as watched,
    ):
        medians, _ = interleaved({"plain": step_of(model, loss), "watched": step_of(twin, loss)}, seconds)
    plain = medians["plain"]
    share = (medians["watched"] - plain + (EVERY - 1) * between) / (EVERY * plain)
    return {"norms": len({r.norm for r in watched.records}), "ms": medians, "share": share}


def main(
    seconds: Annotated[float, typer.Option(help="for each model")] = 15.0,
    save: Annotated[str, typer.Option(help="name of the result file; empty to write none")] = "watching",
) -> None:
    """Print milliseconds, and the time that a watch with every=50 adds to training."""
    sys.path.insert(0, str(ZOO))
    between = counter(seconds / 10)
    rows = {name: measured(make, between, seconds) for name, make in MODELS.items()}
    table = Table("model", "norms", "plain step", "watched step", f"added at every={EVERY}")
    for name, row in rows.items():
        times = (f"{row['ms'][key]:.1f} ms" for key in ("plain", "watched"))
        table.add_row(name, str(row["norms"]), *times, f"{row['share']:.2%}")
    Console(width=130).print(table, f"a step between watched ones: {between * 1e3:.2f} microseconds more")
    if save:
        RESULTS.mkdir(exist_ok=True)
        content = {"machine": machine(), "every": EVERY, "between_ms": between, "models": rows}
        (RESULTS / f"{save}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
