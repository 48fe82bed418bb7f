"""The scores of trained copies: over whole sets, with little memory, and which runs count as trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_metrics import f1, rmse
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.task import Task
from normkit.study.training import design, evaluation
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(1200, 4, generator=GENERATOR)
CLASSES = (X[:, 0] + 0.3 * torch.randn(1200, generator=GENERATOR) > 0.8).long()


def error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) != targets).double().mean())


def by_value(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by the targets."""
    order = y.flatten().argsort()
    return x[order], y[order]


def runs(task: Task, seeds: int = 1, steps: int = 40, kind: Any = "measure", rate: float = 0.1) -> list[Run]:
    plan = design.design(("BN",), (16,), 2, 3, steps, 0)
    trials = [Trial(kind, "none", 16, rate, 100 + seed) for seed in range(seeds)]
    return Trainer().train(task, plan, trials, stacked=seeds > 1)


@pytest.mark.parametrize(
    ("outputs", "targets", "given"),
    [
        (1, X[:, :1] ** 3 * 10, {"loss": F.mse_loss, "metric": rmse}),
        # A loss that is no mean over the samples, reported by default.
        (1, X[:, :1] ** 3 * 10, {"loss": rmse}),
        (2, CLASSES, {"metric": f1, "higher_is_better": True}),
        (2, CLASSES, {}),
        (2, CLASSES, {"metric": F.cross_entropy}),
    ],
    ids=["RMSE", "RMSE as loss", "F1", "error", "cross entropy"],
)
def test_the_metric_of_a_run_is_that_of_the_whole_set(outputs: int, targets: Tensor, given: dict[str, Any]) -> None:
    """In chunks, an RMSE was 10.6 for 14.3, and an F1 0.83 for 0.43."""
    data = by_value(X, targets)
    metric: Callable[[Tensor, Tensor], Any] = given.get("metric") or given.get("loss", error)

    def probe(model: nn.Module) -> dict[str, float]:
        return {"right": float(metric(model(data[0]), data[1]))}

    (run,) = runs(Task(lambda: nn.Linear(4, outputs), data, data, probe=probe, **given))
    assert run.test_error == pytest.approx(run.probes["right"], rel=1e-5)


def test_further_metrics_are_reported() -> None:
    data = by_value(X, CLASSES)
    (run,) = runs(
        Task(lambda: nn.Linear(4, 2), data, data, metrics={"F1": f1, "accuracy": lambda a, b: 1 - error(a, b)})
    )
    assert run.test_error is not None
    assert run.probes["accuracy"] == pytest.approx(1 - run.test_error)
    assert 0.5 < run.probes["F1"] < 1
    (tuned,) = runs(Task(lambda: nn.Linear(4, 2), data, data, metrics={"F1": f1}), kind="tune")
    assert not tuned.probes


def test_outputs_are_kept_of_few_copies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(lambda: nn.Linear(4, 2), (X, CLASSES), (X, CLASSES), metric=f1, higher_is_better=True)
    at_once = runs(task, seeds=5)
    passes: list[int] = []
    some_scores = evaluation._some_scores

    def watched(*given: Any) -> list[Any]:
        found = some_scores(*given)
        passes.append(len(found))
        return found

    monkeypatch.setattr(evaluation, "_some_scores", watched)
    # Two copies of the test data: 1200 samples, two numbers of four bytes.
    monkeypatch.setattr(evaluation, "KEPT", 2 * 1200 * 2 * 4)
    assert runs(task, seeds=5) == at_once
    # Those of the validation data, a fifth, are small enough.
    assert passes[:4] == [5, 2, 2, 1]
    monkeypatch.setattr(evaluation, "KEPT", 1)
    assert runs(task, seeds=5) == at_once


def test_the_training_samples_of_the_gap_are_of_every_class() -> None:
    data = by_value(X, CLASSES)
    (run,) = runs(Task(lambda: nn.Linear(4, 2), data, data, validation=data))
    assert run.train_error is not None
    assert run.test_error is not None
    # The first 256 are all of the class that is guessed, so their error was near 0.
    assert run.train_error == pytest.approx(run.test_error, abs=0.06)


def test_a_run_that_breaks_off_on_sorted_data_is_scored_as_the_most_frequent_class() -> None:
    """The first 256 are of one class, with which guessing had no error, and such a run was the best."""
    data = by_value(X, CLASSES)
    (broken,) = runs(Task(lambda: nn.Linear(4, 2), data, data, validation=data), rate=1e38)
    assert broken.state == "untrained"
    share = float(CLASSES.double().mean())
    assert broken.validation_error == broken.test_error == broken.train_error == pytest.approx(share)
    assert share > 0.2
    (trained,) = runs(Task(lambda: nn.Linear(4, 2), data, data, validation=data))
    assert trained.state == "trained"


def test_noisy_labels_train_if_they_beat_guessing() -> None:
    """Four errors in ten at best, and a loss near that of guessing, ln 2."""
    x = torch.randn(3000, 4, generator=GENERATOR)
    flipped = torch.rand(3000, generator=GENERATOR) < 0.4
    labels = (x[:, 0] > 0).long() ^ flipped.long()
    found = runs(Task(lambda: nn.Linear(4, 2), (x[:1000], labels[:1000]), (x[1000:], labels[1000:])), 4, 120, rate=0.01)
    for run in found:
        assert run.test_error is not None
        assert 0.38 < run.test_error < 0.46
        assert run.losses[-1] > 0.6
        assert run.state == "trained"


def test_labels_that_cannot_be_learned_do_not_train() -> None:
    x = torch.randn(3000, 4, generator=GENERATOR)
    labels = torch.randint(0, 2, (3000,), generator=GENERATOR)
    found = runs(Task(lambda: nn.Linear(4, 2), (x[:1000], labels[:1000]), (x[1000:], labels[1000:])), 4, 120, rate=0.01)
    assert [run.state for run in found] == ["untrained"] * 4
    assert {run.message for run in found} == {"at the end no better than guessing"}


def test_a_metric_without_a_value_on_some_training_samples_is_not_measured_there() -> None:
    def needs_all(outputs: Tensor, targets: Tensor) -> float:
        if len(targets) < 300:
            raise ValueError("few")
        return error(outputs, targets)

    data = (X, CLASSES)
    task = Task(lambda: nn.Linear(4, 2), data, data, validation=data, metric=needs_all, share=True)
    (run,) = runs(task)
    assert run.train_error is None
    assert run.test_error is not None
