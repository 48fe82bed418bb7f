"""What guessing gives, and which values are better by their interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from example_metrics import accuracy, auc, f1
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from normkit.study.task import Task
from normkit.study.task.metric import ERROR
from normkit.study.task.scoring import guess

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(1200, 4, generator=GENERATOR)
RARE = (torch.arange(1200) < 100).long()
"""Sorted by class, as data in folders are."""


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def task(targets: Tensor = RARE, **given: Any) -> Task:
    return Task(net, (X, targets), (X, targets), **given)


class Folder(Dataset[tuple[Tensor, int]]):
    """Sorted by class, with a list of its targets if `lists`; counts the samples that are loaded."""

    def __init__(self, labels: Tensor, lists: bool) -> None:
        self.labels, self.loaded = labels, 0
        if lists:
            self.targets = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded += 1
        return X[index], int(self.labels[index])


def test_guessing_on_sorted_data_is_the_most_frequent_class_of_all() -> None:
    labels = torch.cat([torch.zeros(500), torch.ones(400), torch.full((300,), 2)]).long()
    tensors = Task(lambda: nn.Linear(4, 3), (X, labels), (X, labels))
    assert tensors.chance == pytest.approx(1 - 500 / 1200)
    listed = Task(lambda: nn.Linear(4, 3), (X, labels), Folder(labels, lists=True))
    assert listed.chance == tensors.chance
    assert listed.test.data.loaded < 20
    loaded = Task(lambda: nn.Linear(4, 3), (X, labels), Folder(labels, lists=False))
    # Of 256 random samples: three standard deviations.
    assert loaded.chance == pytest.approx(1 - 500 / 1200, abs=3 * (0.42 * 0.58 / 256) ** 0.5)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        # Everything is called positive.
        ({"metric": f1, "higher_is_better": True, "metric_name": "F1"}, 2 * 100 / 1300),
        ({"metric": auc, "higher_is_better": True}, 0.5),
        ({"metric": F.cross_entropy}, -(1 / 12) * torch.tensor(1 / 12).log() - 11 / 12 * torch.tensor(11 / 12).log()),
        ({"metric": lambda a, b: 1 - accuracy(a, b)}, 100 / 1200),
    ],
    ids=["F1", "AUC", "cross entropy", "error"],
)
def test_guessing_is_the_best_constant(given: dict[str, Any], value: float) -> None:
    assert task(**given).chance == pytest.approx(float(value), rel=1e-4)


def test_guessing_of_a_regression_is_the_mean_or_the_median() -> None:
    targets = X[:, :1].exp()
    squared = Task(lambda: nn.Linear(4, 1), (X, targets), (X, targets), loss=F.mse_loss)
    assert squared.chance == pytest.approx(float(targets.var(correction=0)), rel=1e-4)
    absolute = Task(lambda: nn.Linear(4, 1), (X, targets), (X, targets), loss=F.l1_loss)
    assert absolute.chance == pytest.approx(float((targets - targets.median()).abs().mean()), rel=1e-3)


def test_guessing_without_constants_is_an_untrained_model() -> None:
    made = Task(lambda: nn.Sequential(nn.Linear(4, 4)), (X, X), (X, X), loss=lambda outputs, _: outputs.square().mean())
    values = [float(made._untrained_outputs(seed, X).square().mean()) for seed in range(3)]
    assert made.chance == pytest.approx(min(values), rel=0.3)
    assert not made.scheme.beats_guess("test", made.chance)


@pytest.mark.parametrize(
    ("value", "value_of_guess", "count", "kind", "better"),
    [
        (0.41, 0.5, 1000, {"share": True, "higher": False}, True),
        (0.41, 0.5, 50, {"share": True, "higher": False}, False),
        (0.59, 0.5, 1000, {"share": True, "higher": True}, True),
        (0.41, 0.5, 1000, {"share": True, "higher": True}, False),
        (0.97, 1.0, 1000, {"share": False, "higher": False}, True),
        (0.997, 1.0, 1000, {"share": False, "higher": False}, False),
        (1.03, 1.0, 1000, {"share": False, "higher": True}, True),
    ],
)
def test_better_than_guessing_is_so_by_its_interval(
    value: float, value_of_guess: float, count: int, kind: dict[str, bool], better: bool
) -> None:
    assert guess.beats(value, guess.Guess(value_of_guess, 1.0), count, **kind) == better


def test_outputs_that_know_nothing_seldom_beat_a_guess() -> None:
    """A regression on noise: the chance to pass the bound is that of a wrong finding in one of 20 runs, one-sided."""
    draw = torch.Generator().manual_seed(1)
    passed = 0
    for _ in range(1000):
        targets, noise = (torch.randn(200, generator=draw, dtype=torch.float64) for _ in range(2))
        # The best multiple of the noise, which no training knows.
        best = targets.mean() + (noise - noise.mean()) * torch.cov(torch.stack([noise, targets]))[0, 1] / noise.var()
        error, constant = (targets - best).square().mean(), targets.var(correction=0)
        passed += guess.beats(
            float(error), guess.Guess(float(constant), float(constant)), 200, share=False, higher=False
        )
    # 50 expected; 80 is more than four standard deviations above.
    assert passed < 80


class Named(nn.Linear):
    """A model with one named input."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_guessing_counts_all_targets_of_dictionaries_and_of_unpacked_tensors() -> None:
    labels = torch.cat([torch.zeros(700), torch.ones(500)]).long()
    for data, unpack in (({"x": X, "labels": labels}, None), ((X, labels), lambda batch: ((batch[0],), batch[1]))):
        made = Task(Named, data, data, loss=F.cross_entropy, unpack=unpack)
        assert made.chance == pytest.approx(500 / 1200)
        assert made.reported == ERROR
