"""Draws docs/figures/watch.svg from a training run: ``python -m benchmarks.watch.picture``, some seconds."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normkit

DEPTH, WIDTH, STEPS = 16, 64, 300


def main() -> None:
    """Sixteen linear layers with batch norm and ReLU, without a shortcut, on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(DEPTH):
        parts[f"linear{i + 1}"] = nn.Linear(WIDTH, WIDTH)
        parts[f"norm{i + 1}"] = nn.BatchNorm1d(WIDTH)
        parts[f"relu{i + 1}"] = nn.ReLU()
    model = nn.Sequential(parts | {"head": nn.Linear(WIDTH, 10)})
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with normkit.watch(model, every=10) as watched:
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (64,))
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    watched.heat_map(Path(__file__).parents[2] / "docs" / "figures" / "watch.svg", value="grad_output")


if __name__ == "__main__":
    main()
