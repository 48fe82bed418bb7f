"""Metrics of whole sets, and their direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from example_metrics import F1Score, accuracy, auc, f1, rmse
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ArgumentError, ShapeError
from normkit.study.task import Task
from normkit.study.task.scoring.direction import looks_higher, looks_share, name_of
from normkit.study.task.scoring.scores import WholeScore, mean_weight, of_metric

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(1200, 4, generator=GENERATOR)
RARE = (torch.arange(1200) < 100).long()
"""Sorted by class, as data in folders are."""


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
