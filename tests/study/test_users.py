"""Mistakes and mishaps of tasks as users write them, from `compare` to the text of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import made_up
import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F

from normkit import study
from normkit.errors import ArgumentError
from normkit.study.analysis import verdict
from normkit.study.analysis.stats import Interval
from normkit.study.comparison import Comparison
from normkit.study.report.writing import formatting
from normkit.study.report.writing.answer import answer
from normkit.study.report.writing.decision import decisions, why
from normkit.study.task import Task
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long()


def net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


@pytest.mark.parametrize(
    ("model", "targets", "loss", "message"),
    [
        (lambda: net(1), X[:, 0], nn.MSELoss(), r"outputs \(4, 1\) float32 and targets \(4,\) float32 .*target size"),
        (lambda: net(1), X[:, 0], broadcast, "compares each one with all targets: give both one shape"),
        (lambda: net(1), LABELS, None, "an output for each class"),
        (net, LABELS.float(), None, "Cross entropy takes whole numbers"),
        (net, LABELS[:, None], None, "targets .4, 1. int64"),
        (net, torch.where(torch.arange(80) == 70, 5, LABELS), None, "highest targets of the (train|validation) data"),
        (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            LABELS,
            None,
            r"the model must take a batch of the data, but model\(\(2, 6\)\) raised",
        ),
    ],
)
def test_what_a_loss_cannot_take_is_refused(model: Any, targets: Tensor, loss: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        prepared(Task(model, (X, targets), (X, targets), loss=loss), batch_sizes=[8], steps=40)


@pytest.mark.parametrize("loss", [lambda o, t: F.mse_loss(o.squeeze(1), t), lambda o, t: F.mse_loss(o[:, 0], t)])
def test_a_loss_that_knows_the_shape_of_the_outputs_is_allowed(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    Task(lambda: net(1), (X, X[:, 0]), (X, X[:, 0]), loss=loss).rehearse()


def test_a_generator_that_forward_feeds_with_data_is_named() -> None:
    task = Task(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 6)),
        X,
        X,
        training_step=lambda model, x: model(torch.randn(len(x), 3)).square().mean(),
        evaluate=lambda model, loader: {"size": model(torch.zeros(8, 3)).square().mean()},
    )
    with pytest.raises(ArgumentError, match="also if training_step and evaluate make none"):
        prepared(task, batch_sizes=[8], steps=40)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


def test_methods_that_do_not_fit_beside_a_mask_are_left_out() -> None:
    inputs = X.unsqueeze(1).expand(-1, 3, -1), torch.zeros(80, 3, dtype=torch.bool)
    task = Task(Attention, (inputs, LABELS), (inputs, LABELS), mask=lambda both: ~both[1])
    (main, *_), _ = prepared(task, batch_sizes=[8], steps=40)
    assert "layer_norm" in main.design.methods
    assert "batch_norm" not in main.design.methods


def strict(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(outputs.sigmoid(), targets)


@pytest.mark.parametrize("own", [False, True])
def test_a_run_whose_loss_refuses_nan_has_diverged(own: bool) -> None:
    data = X, LABELS.float()[:, None]
    step = (lambda model, batch: strict(model(batch[0]), batch[1])) if own else None
    task = Task(lambda: net(1), data, data, loss=strict, training_step=step, rates=(1e-2, 1e30))
    (main, *_), _ = prepared(task, methods=["BN"], batch_sizes=[8], steps=40)
    (run,) = Trainer().execute(task, main.design, [Trial("measure", "none", 8, 1e30, 0)])
    assert run.state == "untrained"
    assert run.message.startswith("the loss was nan")
    assert run.test_error == task.chance


def test_a_loss_that_fails_for_finite_outputs_is_a_failure() -> None:
    calls: list[int] = []

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(0)
        if len(calls) > 60:
            raise ValueError("broken")
        return F.cross_entropy(outputs, targets)

    task = Task(net, (X, LABELS), (X, LABELS), loss=failing, patience=20)
    (main, *_), _ = prepared(task, methods=["BN"], batch_sizes=[8], steps=80)
    (run,) = Trainer().execute(task, main.design, [Trial("tune", "none", 8, 1e-3, 0)])
    assert (run.state, run.message) == ("failed", "ValueError: broken")


def test_a_method_of_which_no_run_trained_is_not_recommended(found: Comparison) -> None:
    size = made_up.SIZES[0]
    leader, lost, *others = made_up.METHODS
    states = {lost: "untrained"}
    cells = tuple(
        replace(cell, runs=tuple(replace(run, state=states.get(cell.method, "trained")) for run in cell.runs))
        for cell in found.cells
    )
    standing = verdict.Standing(size, leader, unresolved=(lost, *others))
    study_ = replace(found, cells=cells, standings=(standing,))
    (decision,) = decisions(study_)
    assert [choice.method for choice in decision.avoid] == [lost]
    assert lost not in [choice.method for choice in decision.take]
    text = answer(study_)
    assert f"no run of {formatting.inline(lost, 'en')} trained" in text.to("en")
    assert "rule out none" not in text.to("en")
    assert "all other methods" not in text.to("en")
    assert "not resolved with" in why(study_, decision, decision.avoid[0], "en")
    assert "未能分辨" in why(study_, decision, decision.avoid[0], "zh")


def test_differences_of_fractions_are_possible_ones() -> None:
    wide = Interval(0.025, -36.7, 36.8, 2)
    assert formatting.difference(wide) == ("+2.5", "−100.0 to +100.0")


task = Task(net, (X, LABELS), (X, LABELS))


def test_the_command_names_the_task_of_a_script() -> None:
    assert study._name(task) == f"{__name__}:task"
    assert study._name(replace(task)) == "pkg.module:task"
    assert study._name(replace(task, origin="mine:task")) == "mine:task"
