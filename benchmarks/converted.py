"""Times whole models before and after `normkit.convert`: ``PYTHONPATH=tests python -m benchmarks.converted``."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

import normkit
import zoo
from benchmarks.speed.measure import keep_memory, machine, quiet

MODELS = ("convnext_atto", "poolformer_s12", "resnet18", "llama", "t5")


def subject(name: str) -> tuple[nn.Module, Tensor]:
    """A model of the tests' zoo and a batch of 8."""
    model, x = zoo.language_model(name) if name in zoo.TEXT + zoo.SOUND else zoo.image_model(name)
    return model, x.repeat(4, *(1,) * (x.dim() - 1))


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    model.zero_grad()
    model(x).sum().backward()


def main(names: list[str]) -> None:
    """One line for each model: milliseconds before and after, forward and with backward, and the ratios."""
    torch.set_num_threads(1)
    print(machine())
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, x = subject(name)
        converted, report = normkit.convert(model)
        with torch.no_grad():
            forward, still = quiet({"before": lambda: model(x), "after": lambda: converted(x)}, 5)  # noqa: B023
        both, calm = quiet({"before": lambda: step(model, x), "after": lambda: step(converted, x)}, 5)  # noqa: B023
        cells = [
            f"{t['before']:8.2f} -> {t['after']:8.2f} ms, ratio {t['before'] / t['after']:.2f}" for t in (forward, both)
        ]
        print(
            f"{name:24s} {len(report.changes):3d} norms | forward {cells[0]} | with backward {cells[1]}"
            + ("" if still and calm else " (not quiet)"),
            flush=True,
        )


if __name__ == "__main__":
    keep_memory()
    main(sys.argv[1:] or list(MODELS))
