"""Metrics of whole sets, their direction, and what guessing gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from normkit.errors import ArgumentError, ShapeError
from normkit.study.task import Task
from normkit.study.task.metric import ERROR
from normkit.study.task.scoring import guess
from normkit.study.task.scoring.direction import looks_higher, looks_share, name_of
from normkit.study.task.scoring.scores import WholeScore, mean_weight, of_metric

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(1200, 4, generator=GENERATOR)
RARE = (torch.arange(1200) < 100).long()
"""Sorted by class, as data in folders are."""


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def f1(outputs: Tensor, targets: Tensor) -> float:
    found = outputs.argmax(1)
    return float(2 * (found * targets).sum() / (found + targets).sum().clamp(min=1))


def auc(outputs: Tensor, targets: Tensor) -> float:
    """The probability that a positive sample has the higher score; without both classes there is none."""
    if len(targets.unique()) < 2:
        raise ValueError("only one class")
    scores = (outputs[:, 1] - outputs[:, 0]).double()
    ranks = scores.unsqueeze(1) - scores.unsqueeze(0)
    return float(((ranks > 0).double() + 0.5 * (ranks == 0))[targets == 1][:, targets == 0].mean())


class F1Score:
    """A metric object with the interface of torchmetrics."""

    higher_is_better = True

    def __init__(self, positive: int = 1) -> None:
        self.positive = positive
        self.reset()

    def reset(self) -> None:
        self.hits, self.all = 0.0, 0.0

    def update(self, preds: Tensor, target: Tensor) -> None:
        found, right = preds.argmax(1) == self.positive, target == self.positive
        self.hits += float((found & right).sum())
        self.all += float(found.sum() + right.sum())

    def compute(self) -> Tensor:
        return torch.tensor(2 * self.hits / max(1.0, self.all))


def scored(metric: Any, outputs: Tensor, targets: Tensor, chunk: int = 512) -> float:
    score = of_metric(metric)
    for at in torch.arange(len(targets)).split(chunk):
        score.update(outputs[at], targets[at])
    return float(score.compute())


@pytest.mark.parametrize("metric", [rmse, f1, auc, accuracy])
def test_a_metric_gets_all_samples_at_once(metric: Callable[[Tensor, Tensor], float]) -> None:
    outputs = torch.randn(1200, 2, generator=GENERATOR)
    outputs[:, 1] += RARE
    targets = RARE
    if metric is rmse:
        # Errors that grow along the set: the mean of the roots is not the root of the mean.
        outputs, targets = torch.arange(1200.0).unsqueeze(1) ** 2, torch.zeros(1200, 1)
    right = float(metric(outputs, targets))
    assert scored(metric, outputs, targets) == pytest.approx(right, rel=1e-6)
    if metric in (rmse, f1):
        chunks = [float(metric(outputs[i : i + 512], targets[i : i + 512])) for i in range(0, 1200, 512)]
        assert abs(sum(chunks) / len(chunks) - right) > 0.01


@pytest.mark.parametrize("metric", [F1Score(), F1Score, partial(F1Score, positive=1)])
def test_a_metric_object_is_updated_and_computed_once(metric: Any) -> None:
    outputs = torch.randn(1200, 2, generator=GENERATOR)
    if isinstance(metric, F1Score):
        metric.update(outputs, RARE)
    before = vars(metric) | {} if isinstance(metric, F1Score) else None
    assert scored(metric, outputs, RARE) == pytest.approx(f1(outputs, RARE))
    # The user's own object is not touched, and one score does not continue another.
    assert before is None or vars(metric) == before
    assert scored(metric, outputs, RARE) == pytest.approx(f1(outputs, RARE))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 3.0])),
        partial(F.cross_entropy, ignore_index=1),
        F.mse_loss,
        nn.SmoothL1Loss(),
    ],
)
def test_a_mean_is_weighted_by_what_it_is_a_mean_of(loss: Any) -> None:
    outputs, targets = torch.randn(1200, 2, generator=GENERATOR), RARE
    if not isinstance(loss, (nn.CrossEntropyLoss, partial)):
        targets = torch.randn(1200, 2, generator=GENERATOR) * torch.arange(1200).unsqueeze(1) / 600
    assert mean_weight(loss) is not None
    assert scored(loss, outputs, targets) == pytest.approx(float(loss(outputs, targets)), rel=1e-5)


def test_outputs_of_several_lengths_cannot_be_joined() -> None:
    score = WholeScore(rmse)
    for length in (3, 4):
        score.update(torch.zeros(2, length), torch.zeros(2, length))
    with pytest.raises(
        ShapeError, match=r"must have one shape .*, got \(3,\), \(4,\): pad them to one length, or give"
    ):
        score.compute()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def task(targets: Tensor = RARE, **given: Any) -> Task:
    return Task(net, (X, targets), (X, targets), **given)


# Direction


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": accuracy}, "a metric named 'accuracy' needs its direction, got higher_is_better=None: say True if"),
        ({"metric": lambda a, b: 1.0, "metric_name": "mean IoU"}, "a metric named 'mean IoU' needs its direction"),
        ({"metric": F1Score(), "higher_is_better": False}, "got False, but of F1 score higher values are better"),
        ({"metric": nn.CrossEntropyLoss(), "higher_is_better": True}, "got True, but of cross entropy loss lower"),
        ({"metric": 3}, r"metric must be a function of \(outputs, targets\), or an object with update"),
        ({"metrics": {"depth": "deep"}}, r"depth must be a function of \(outputs, targets\), or an object"),
    ],
)
def test_a_metric_of_an_unknown_or_the_wrong_direction_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        task(**given)


def test_metrics_of_scikit_learn_take_targets_first() -> None:
    def accuracy_score(targets: Tensor, found: Tensor) -> float:
        return accuracy(found, targets)

    # The package is known by the name of its modules, and takes seconds to import.
    accuracy_score.__module__ = "sklearn.metrics._classification"
    with pytest.raises(ArgumentError, match="accuracy_score of scikit-learn takes the targets first: write lambda"):
        task(metric=accuracy_score)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"metric": lambda a, b: accuracy(a, b)},
            "got None, but the metric is 1 for perfect outputs and 0.9167 for con",
        ),
        (
            {"metric": lambda a, b: 1 - accuracy(a, b), "higher_is_better": True},
            "so lower values are better: say higher",
        ),
        ({"metric": auc, "higher_is_better": True}, None),
        ({"metric": lambda a, b: 1 - auc(a, b), "metric_name": "1 - AUC"}, None),
        ({"metric": F1Score}, None),
    ],
)
def test_the_values_of_a_metric_show_its_direction(given: dict[str, Any], message: str | None) -> None:
    made = task(**given)
    if message is None:
        made.scheme.check()
    else:
        with pytest.raises(ArgumentError, match=message):
            made.scheme.check()


def test_a_metric_in_other_units_than_the_loss_is_not_judged_by_targets_as_outputs() -> None:
    """Outputs that equal these targets are wrong, because the model gives their logarithms."""
    targets = X[:, :1].exp() + 1
    made = Task(
        lambda: nn.Linear(4, 1),
        (X, targets),
        (X, targets),
        loss=lambda outputs, targets: F.mse_loss(outputs, targets.log()),
        metric=lambda outputs, targets: (outputs.exp() - targets).abs().mean(),
    )
    made.scheme.check()
    assert made.scheme._ends("test") is None


def test_a_metric_that_part_of_the_data_cannot_give_is_refused_before_training() -> None:
    one_class = (X[200:], RARE[200:])
    made = Task(net, (X, RARE), (X, RARE), validation=one_class, metric=auc, higher_is_better=True)
    with pytest.raises(ArgumentError, match=r"a number on the validation data, got ValueError \(only one class\)"):
        made.scheme.check()


@pytest.mark.parametrize(
    ("metric", "given", "name", "share", "higher", "nonnegative"),
    [
        (accuracy, {"higher_is_better": True}, "accuracy", True, True, False),
        (F1Score(), {}, "F1 score", True, True, False),
        (auc, {"higher_is_better": True}, "auc", True, True, False),
        (
            lambda a, b: 100 * accuracy(a, b),
            {"metric_name": "accuracy", "higher_is_better": True},
            "accuracy",
            False,
            1,
            0,
        ),
        (lambda a, b: 1 - f1(a, b), {"metric_name": "1 - F1"}, "1 - F1", True, False, False),
        (nn.CrossEntropyLoss(), {}, "cross entropy loss", False, False, True),
    ],
)
def test_how_a_metric_is_written(
    metric: Any, given: dict[str, Any], name: str, share: bool, higher: bool, nonnegative: bool
) -> None:
    reported = task(metric=metric, **given).reported
    found = (reported.name, reported.share, reported.higher_is_better, reported.nonnegative)
    assert found == (name, share, bool(higher), bool(nonnegative))


@pytest.mark.parametrize(
    ("name", "higher", "share"),
    [
        ("MulticlassF1Score", True, True),
        ("BinaryAUROC", True, True),
        ("MulticlassJaccardIndex", True, True),
        ("mIoU", True, True),
        ("R2Score", True, False),
        ("dice_loss", False, False),
        ("one_minus_accuracy", False, True),
        ("negative log likelihood", False, False),
        ("log_likelihood", True, False),
        ("error rate", False, True),
        ("brier_score", False, False),
        ("surprise", None, False),
    ],
)
def test_what_a_name_says(name: str, higher: bool | None, share: bool) -> None:
    assert (looks_higher(name), looks_share(name)) == (higher, share)


def test_no_interval_shows_what_cannot_be() -> None:
    targets = X[:, :2]
    reported = task(targets, loss=F.mse_loss, metric=rmse, metric_name="RMSE").reported
    assert reported.span(-0.4, 1.2) == "0 to 1.20"
    assert task(metric=accuracy, higher_is_better=True).reported.span(0.9, 1.1) == "90.0 to 100.0"
    assert task(targets, loss=lambda a, b: -a.mean()).reported.span(-0.5, 0.5) == "−0.500 to 0.500"


# Guessing


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


def test_names_of_metrics() -> None:
    assert name_of(F1Score) == name_of(F1Score()) == "F1 score"
    assert name_of(accuracy) == "accuracy"


@pytest.mark.slow
def test_metrics_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics")
    outputs = torch.randn(1200, 2, generator=GENERATOR)
    outputs[:, 1] += RARE
    kinds = metrics.classification
    for metric, right in (
        (kinds.MulticlassAUROC(num_classes=2), auc(outputs, RARE)),
        (kinds.MulticlassF1Score(num_classes=2, average="micro"), accuracy(outputs, RARE)),
        (partial(kinds.MulticlassAccuracy, num_classes=2, average="micro"), accuracy(outputs, RARE)),
    ):
        assert scored(metric, outputs, RARE) == pytest.approx(right, rel=1e-5)
        made = task(metric=metric)
        made.scheme.check()
        assert (made.reported.higher_is_better, made.reported.share) == (True, True)
    assert task(metric=kinds.MulticlassAUROC(num_classes=2)).chance == pytest.approx(0.5)
    targets = X[:, :1]
    made = Task(lambda: nn.Linear(4, 1), (X, targets), (X, targets), loss=F.mse_loss, metric=metrics.R2Score())
    made.scheme.check()
    assert (made.reported.name, made.reported.higher_is_better, made.reported.share) == ("R2 score", True, False)
    assert made.chance == pytest.approx(0, abs=1e-5)
    with pytest.raises(ArgumentError, match="got True, but of mean squared error lower values are better"):
        task(metric=metrics.MeanSquaredError(), higher_is_better=True)


def test_guessing_counts_all_targets_of_dictionaries_and_of_unpacked_tensors() -> None:
    labels = torch.cat([torch.zeros(700), torch.ones(500)]).long()
    for data, unpack in (({"x": X, "labels": labels}, None), ((X, labels), lambda batch: ((batch[0],), batch[1]))):
        made = Task(Named, data, data, loss=F.cross_entropy, unpack=unpack)
        assert made.chance == pytest.approx(500 / 1200)
        assert made.reported == ERROR


class Named(nn.Linear):
    """A model with one named input."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
