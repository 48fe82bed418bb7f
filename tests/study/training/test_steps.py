"""Schedules, clipping, accumulation, averages, early stopping, own steps: as by hand, and stacked as separate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F

import normkit
from normkit.errors import ArgumentError
from normkit.study.task import Task
from normkit.study.task.recipe import factors
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer, _needs_separate
from normkit.study.training.trial import Run, Trial, batches

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(80, 6, generator=GENERATOR)
Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def task(**change: Any) -> Task:
    return Task(net, (X, Y), (X, Y), validation=(X, Y), **change)


def plan(size: int = 8, steps: int = 12) -> Design:
    return Design(("none", "layer_norm"), (size,), 2, 3, steps, gap_images=16)


def fitted(work: Task, design: Design, rate: float = 0.1) -> tuple[nn.Module, list[float]]:
    trial = Trial("tune", "layer_norm", design.batch_sizes[0], rate, 5)
    copies, losses = Trainer().fit(work, design, [trial], stacked=False)
    return copies.models[0], losses[:, 0].tolist()


def test_schedules_and_warm_up() -> None:
    assert factors("constant", 0, 3) == [1, 1, 1]
    assert factors(None, 0, 4) == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])
    assert factors(lambda step, steps: step / steps, 0.5, 4) == [0.5, 1.0, 0.0, 0.5]
    for given, message in (
        (("cosine", 5, 5), "warmup must be shorter than the run of 5 steps, got 5"),
        ((lambda step, steps: -1.0, 0, 5), "factor of at least 0 at each of 5 steps, got -1.0 at step 0"),
        ((lambda step, steps: None, 0, 5), "got None at step 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            factors(*given)  # type: ignore[arg-type]


def test_a_run_is_the_loop_that_one_would_write() -> None:
    work = task(
        optimizer=torch.optim.AdamW,
        parameters=lambda model: normkit.param_groups(model, weight_decay=0.3),
        schedule="linear",
        warmup=3,
        clip=0.5,
        accumulate=2,
        ema=0.9,
        loss=F.cross_entropy,
    )
    found, losses = fitted(work, plan())
    model = work.build("layer_norm", 5).train()
    optimizer = torch.optim.AdamW(normkit.param_groups(model, weight_decay=0.3), lr=0.1)
    order, average = batches(80, 8, 24, 5), None
    for step, factor in enumerate(factors("linear", 3, 12)):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor
        optimizer.zero_grad()
        parts = [F.cross_entropy(model(X[index]), Y[index]) for index in order[2 * step : 2 * step + 2]]
        (sum(parts) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert losses[step] == pytest.approx(float(sum(parts).detach()) / 2, rel=1e-4)
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: p.lerp(now[name], 1 - decay) for name, p in (average or now).items()}
    assert average is not None
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 0.1, "schedule": "constant", "accumulate": 3},
        {
            "ema": 0.8,
            "warmup": 0.25,
            "parameters": lambda model: normkit.param_groups(model, weight_decay=0.5),
            "optimizer": torch.optim.AdamW,
        },
    ],
    ids=["clip", "groups"],
)
def test_stacked_copies_follow_the_recipe_of_separate_ones(change: dict[str, Any]) -> None:
    work = task(**change)
    assert not _needs_separate(work, 8)
    trials = [Trial("tune", "layer_norm", 8, rate, seed) for rate in (0.01, 0.1) for seed in (1, 2)]
    together, apart = (Trainer().train(work, plan(), trials, stacked=at_once) for at_once in (True, False))
    plain = Trainer().train(task(), plan(), trials, stacked=True)
    for a, b, c in zip(together, apart, plain, strict=True):
        # Sums in another order over 12 steps.
        assert a.losses == pytest.approx(b.losses, rel=2e-3)
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=2e-3)
        assert a.losses[-1] != pytest.approx(c.losses[-1], rel=1e-3)


def test_early_stopping_keeps_the_best_weights() -> None:
    best = fitted(task(patience=100, schedule="constant"), plan(steps=40), rate=3.0)[0]
    trained, losses = fitted(task(patience=2, schedule="constant"), plan(steps=40), rate=3.0)
    assert len(losses) < 40
    values = []
    for steps in range(2, 42, 2):
        model, _ = fitted(task(schedule="constant"), plan(steps=40 if steps == 40 else steps), rate=3.0)
        values.append(float((model.eval()(X).argmax(1) != Y).double().mean()))
    reached = float((best.eval()(X).argmax(1) != Y).double().mean())
    assert reached == pytest.approx(min(values))
    assert float((trained.eval()(X).argmax(1) != Y).double().mean()) == pytest.approx(min(values[: len(losses) // 2]))
    assert _needs_separate(task(patience=2), 8)


def test_epochs_give_each_batch_size_its_steps() -> None:
    (workload,), _ = prepared(task(max_epochs=6), methods=["LN"], batch_sizes=[4, 8], steps=None)
    assert [workload.design.steps_at(size) for size in (4, 8)] == [120, 60]
    run = Trainer().execute(workload.task, workload.design, [Trial("tune", "none", 8, 0.1, 0)])[0]
    assert len(run.losses) == 60
    with pytest.raises(ArgumentError, match=r"max_epochs must give at least 40 steps, got 1 epochs .* 10 steps"):
        prepared(task(max_epochs=1), methods=["LN"], batch_sizes=[2, 8])


def test_a_scheduler_of_the_optimizer_makes_its_steps() -> None:
    def with_scheduler(parameters: list[Tensor], lr: float) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(parameters, lr)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 12)

    _, losses = fitted(task(optimizer=with_scheduler), plan())
    _, same = fitted(task(optimizer=torch.optim.SGD, schedule="linear"), plan())
    assert losses == pytest.approx(same, rel=1e-5)


def test_an_optimizer_that_needs_a_closure_gets_one() -> None:
    work = task(optimizer=lambda parameters, lr: torch.optim.LBFGS(parameters, lr, max_iter=3))
    trials = [Trial("tune", "layer_norm", 40, 0.1, seed) for seed in (1, 2)]
    runs = Trainer().execute(work, plan(40), trials)
    assert all(run.state == "trained" and run.losses[-1] < 0.5 * run.losses[0] for run in runs), runs


def test_a_step_and_an_evaluation_of_the_users_own() -> None:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(model: nn.Module, loader: Any) -> dict[str, float]:
        assert not model.training
        wrong = [(model(x).argmax(1) != y) for x, y in loader]
        return {"error": torch.cat(wrong).double().mean(), "batches": len(loader)}

    own = task(training_step=step, evaluate=evaluate, evaluation_batch=20)
    usual = task(evaluation_batch=20)
    trial = Trial("measure", "layer_norm", 8, 0.1, 3)
    one, other = (Trainer().execute(work, plan(steps=60), [trial])[0] for work in (own, usual))
    assert one.losses == other.losses
    assert one.test_error == pytest.approx(other.test_error)
    assert one.probes == {"batches": 4.0}
    assert str(own.reported.name) == "error"
    alone = Trainer().execute(task(training_step=step), plan(steps=60), [trial])[0]
    assert alone.test_error == pytest.approx(alone.validation_loss)
    assert alone.state == "trained"


class GAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6))
        self.judge = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(x)


def play(model: Any, x: Tensor, optimizers: dict[str, torch.optim.Optimizer]) -> float:
    value = 0.0
    for name, target in (("judge", 0.0), ("make", 1.0)):
        optimizers[name].zero_grad()
        made = model.judge(model.make(torch.randn(len(x), 2)))
        loss = F.binary_cross_entropy_with_logits(made, torch.full_like(made, target))
        loss.backward()
        optimizers[name].step()
        value += float(loss.detach())
    return value


def test_several_optimizers_are_given_to_the_step() -> None:
    work = Task(
        GAN,
        X,
        X,
        training_step=play,
        evaluate=lambda model, loader: {"distance": model.make(torch.zeros(1, 2)).sub(X.mean(0)).norm()},
        parameters=lambda model: {name: getattr(model, name).parameters() for name in ("judge", "make")},
        optimizer=lambda groups, lr: {name: torch.optim.SGD(list(group), lr) for name, group in groups.items()},
    )
    (workload,), _ = prepared(work, methods=["RMS"], batch_sizes=[8], steps=40)
    run: Run = Trainer().execute(workload.task, workload.design, [Trial("measure", "rms_norm", 8, 0.1, 1)])[0]
    assert run.state != "failed", run
    assert len(run.losses) == 40
    assert run.losses[0] == pytest.approx(2 * math.log(2), rel=0.5)


def lengthy(parameters: list[Tensor], lr: float) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(parameters, lr)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)


def plateau(parameters: list[Tensor], lr: float) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(parameters, lr)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosin"}, "schedule must be cosine, linear, constant or a function.*did you mean 'cosine'"),
        ({"warmup": -1}, "warmup must be a number of steps or a fraction below 1, got -1"),
        ({"warmup": 1.5}, "warmup must be a number of steps or a fraction below 1, got 1.5"),
        ({"clip": 0}, "clip must be a number above 0, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be a decay between 0 and 1, got 1.0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"training_step": lambda model: model}, r"training_step must take \(model, batch\)"),
        ({"training_step": play}, "evaluate must be given with training_step"),
        ({"training_step": play, "clip": 1.0}, "makes the whole step itself, got clip too"),
        ({"mask": 3}, "mask must be a function, got 3"),
        # Known once the study is planned.
        ({"warmup": 40}, "warmup must be shorter than the run of 40 steps, got 40"),
        ({"schedule": lambda step, steps: float("nan")}, "schedule must give a factor of at least 0"),
        ({"optimizer": lengthy}, "must fit into a run of 40 steps, got CosineAnnealingLR with T_max=1000"),
        ({"optimizer": plateau}, "whose step takes no metric, got ReduceLROnPlateau"),
        ({"optimizer": lengthy, "schedule": "linear"}, "the learning rate follows one schedule"),
        ({"optimizer": lambda p, lr: [torch.optim.SGD(p, lr)] * 2}, "returned 2 optimizers, which need a training_st"),
        ({"optimizer": lambda p, lr: None}, "optimizer must return a torch optimizer"),
        ({"search": {"decay": [0.1]}}, "search names decay: optimizer must take them by name"),
        ({"training_step": lambda model, batch: model(batch[0])}, "training_step must return the loss as one number"),
        ({"evaluate": lambda model, loader: 0.3}, "evaluate must give {name: value}, got 0.3"),
        ({"evaluate": lambda model, loader: {"accuracy": 0.3}}, "a metric named 'accuracy' needs its direction"),
    ],
)
def test_what_cannot_work_is_refused_before_training(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        prepared(task(**change), methods=["RMS"], batch_sizes=[8], steps=40)


def test_the_default_optimizer_is_searched() -> None:
    (workload,), _ = prepared(task(search={"weight_decay": [0.0, 0.1]}), methods=["RMS"], batch_sizes=[8], steps=40)
    (options, *_) = workload.design.options
    run = Trainer().execute(workload.task, replace(workload.design), [Trial("tune", "rms_norm", 8, 0.1, 1, options)])
    assert run[0].state != "failed", run
