"""Small nets on scikit-learn's digits, and the sentences that compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

Result = tuple[str, dict[str, Any]]
SEEDS = 5


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 8, 8) and labels; scaled to about 0 mean and unit variance."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x[order] - 4.9) / 6.0, y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def net(norm: Callable[[int], nn.Module], *, between: nn.Module | None = None, bias: bool = False) -> nn.Sequential:
    """Two convolutions with a norm each, and a linear layer."""
    first = [nn.Conv2d(1, 16, 3, padding=1, bias=bias), norm(16), nn.ReLU(), between or nn.Identity()]
    second = [nn.Conv2d(16, 16, 3, padding=1, bias=bias), norm(16), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def fit(model: nn.Module, batch: int = 64, steps: int = 60, lr: float = 0.05, decay: float = 0.0) -> nn.Module:
    """Train on digits with momentum."""
    x, y, _, _ = digits()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr, momentum=0.9, weight_decay=decay
    )
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor | None = None, training: bool = False) -> float:
    """Percent right on the test images, in evaluation mode."""
    _, _, test, y = digits()
    model.train(training)
    return 100 * float((model(test if x is None else x).argmax(1) == y).float().mean())


def mean_of(make: Callable[[], float]) -> float:
    """Over the seeds."""
    values = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        values.append(make())
    return round(sum(values) / len(values), 1)


def against(bad: float, good: float, what: str, other: str) -> Result:
    return f"Digits, {SEEDS} seeds: {bad:.1f}% right {what}, {good:.1f}% {other}.", {"bad": bad, "good": good}


def variances(between: nn.Module) -> tuple[float, float]:
    """Running over true variance of the second norm in evaluation, and percent right."""
    model = fit(net(nn.BatchNorm2d, between=between))
    norm, seen = model[5], []  # type: ignore[index]
    handle = norm.register_forward_pre_hook(lambda m, args: seen.append(args[0].transpose(0, 1).flatten(1).var(1)))
    right = accuracy(model)
    handle.remove()
    return float((norm.running_var / seen[0]).median()), right
