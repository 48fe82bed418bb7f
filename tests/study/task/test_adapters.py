"""A Lightning module and a Trainer as tasks: by what they have, because neither library is installed here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from normkit.errors import ArgumentError
from normkit.study.task import Task
from normkit.study.task.adapters.lightning import configured
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(80, 6, generator=GENERATOR)
Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)


class Module(nn.Module):
    """As a LightningModule: without a trainer its `log` would do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def log(self, *_: object, **__: object) -> None:
        raise AssertionError("called without a trainer")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_error", (scores.argmax(1) != batch[1]).double().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([{"params": self.net[0].parameters()}, {"params": self.net[2].parameters()}], 0.01)
        optimizer.param_groups[1]["lr"] = 0.03
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_a_lightning_module_is_trained_by_its_own_steps() -> None:
    task = Task.from_lightning(Module, LOADER, LOADER, metric="val_error", max_steps=50)
    (workload,), _ = prepared(task, methods=["LN"], batch_sizes=[8], steps=None)
    assert workload.design.steps == 50
    copies, losses = Trainer().fit(task, workload.design, [Trial("tune", "none", 8, 0.1, 1)], stacked=False)
    (optimizer, base) = copies.optimizers[0]
    assert base == pytest.approx([0.1, 0.3])
    # The scheduler halves the rates at each step.
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * 0.5**50, 0.3 * 0.5**50])
    assert losses[-1] < losses[0]
    run = Trainer().execute(task, workload.design, [Trial("measure", "layer_norm", 8, 0.1, 1)])[0]
    assert run.state == "trained", run
    assert set(run.probes) == {"val_loss"}
    assert run.test_error is not None
    assert run.test_error < task.scheme.guess("test")


@pytest.mark.parametrize(
    ("form", "count", "schedulers"),
    [
        (lambda o, s: o, 1, 0),
        (lambda o, s: [o], 1, 0),
        (lambda o, s: ([o], [s]), 1, 1),
        (lambda o, s: {"optimizer": o, "lr_scheduler": s}, 1, 1),
        (lambda o, s: (o, o), 2, 0),
        (lambda o, s: ({"optimizer": o}, {"optimizer": o}), 2, 0),
    ],
)
def test_every_form_of_optimizers_is_understood(form: Any, count: int, schedulers: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    found = configured(SimpleNamespace(configure_optimizers=lambda: form(optimizer, scheduler)), 0.02)
    assert (len(found) if isinstance(found, list) else 1) == count
    assert isinstance(found, tuple) == bool(schedulers)
    if schedulers:
        assert scheduler.base_lrs == [0.02]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ArgumentError, match="module must be a function that makes the module, got Module"):
        Task.from_lightning(Module(), LOADER, LOADER)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="module must have training_step and configure_optimizers"):
        Task.from_lightning(lambda: nn.Linear(6, 3), LOADER, LOADER)


class Outputs(dict[str, Tensor]):
    """As a ModelOutput."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Outputs:
        logits = self.net(x)
        return (
            Outputs(loss=F.cross_entropy(logits, labels), logits=logits)
            if labels is not None
            else Outputs(logits=logits)
        )


def trainer(**change: Any) -> SimpleNamespace:
    """As a Trainer with its arguments."""
    arguments = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": SimpleNamespace(value="linear"),
        "warmup_steps": 4,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 16,
        "max_steps": -1,
        "num_train_epochs": 9.0,
        "metric_for_best_model": "eval_accuracy",
        "greater_is_better": True,
    }
    samples = [{"x": X[i], "labels": int(Y[i]), "text": "left out"} for i in range(80)]
    return SimpleNamespace(
        args=SimpleNamespace(**arguments | change),
        model_init=Classifier,
        model=None,
        train_dataset=samples,
        eval_dataset=samples[:30],
        data_collator=lambda some: {
            "x": torch.stack([each["x"] for each in some]),
            "labels": torch.tensor([each["labels"] for each in some]),
        },
        compute_metrics=lambda given: {"accuracy": (given.predictions.argmax(-1) == given.label_ids).mean()},
    )


def test_a_trainer_is_a_task_with_its_arguments() -> None:
    task = Task.from_trainer(trainer())
    assert (task.rates, task.schedule, task.warmup, task.clip, task.accumulate) == ((1e-3, 1e-1), "linear", 4, 1.0, 2)
    (workload,), _ = prepared(task, methods=["RMS"], batch_sizes=[4], steps=None)
    # 9 epochs of 64 samples, 8 of them in a step.
    assert workload.design.steps == 72
    assert str(task.reported.name) == "accuracy"
    assert task.reported.higher_is_better
    run = Trainer().execute(task, workload.design, [Trial("measure", "rms_norm", 4, 3e-2, 1)])[0]
    assert run.state == "trained", run
    assert run.test_error is not None
    assert run.test_error > 0.6
    assert run.validation_loss is not None


def test_a_trainer_with_a_model_starts_every_run_from_it() -> None:
    given = trainer(max_steps=40)
    given.model_init, given.model, given.compute_metrics = None, Classifier(), None
    task = Task.from_trainer(given)
    first, second = (task.build("unchanged", seed) for seed in (0, 1))
    assert torch.equal(first.net[0].weight, second.net[0].weight)
    assert first.net[0].weight is not given.model.net[0].weight
    assert str(task.reported.name) == "loss"


def test_a_trainer_that_cannot_be_a_task_is_refused() -> None:
    with pytest.raises(ArgumentError, match="lr_scheduler_type must be one of linear, cosine.*got 'polynomial'"):
        Task.from_trainer(trainer(lr_scheduler_type="polynomial"))
    without = trainer()
    without.eval_dataset = None
    with pytest.raises(ArgumentError, match="trainer must have one eval_dataset, got NoneType"):
        Task.from_trainer(without)
