"""Comparisons from made-up runs, without training: all that the report can show, and a metric that is no share."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from normkit import study
from normkit.study.claims import SUITE
from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.execution.workload import Workload
from normkit.study.setup import prepared as _prepared
from normkit.study.task import Task, embedded
from normkit.study.training.design import Design, design
from normkit.study.training.trial import Run, Trial

SEEDS, STEPS = 4, 60
SIZES = (2, 32)
LEVELS = {
    "none": 0.2,
    "batch_norm": 0.12,
    "layer_norm": 0.14,
    "instance_norm": 0.5,
    "group_norm": 0.13,
    "weight_norm": 0.19,
}
METHODS = tuple(LEVELS)


def prepared(task: Task | None = None, **asked: object) -> tuple[list[Workload], tuple[Experiment, ...]]:
    """The workloads and experiments of `compare` with these arguments, and its defaults for the others."""
    names = [name for name in inspect.signature(_prepared).parameters if name != "task"]
    return _prepared(task, **{name: study.DEFAULTS[name] for name in names} | asked)  # type: ignore[arg-type]


def runs_of(plan: Design, scale: float) -> dict[Trial, Run]:
    """Runs whose metric lies around a level of the method; one of instance norm did not train."""
    draw = np.random.default_rng(0)
    runs: dict[Trial, Run] = {}
    for size in plan.batch_sizes:
        for method in plan.methods:
            level = scale * LEVELS[method] * (1.5 if size == 2 else 1.0)
            for seed in plan.tuning_seeds:
                for number, rate in enumerate(plan.rates):
                    trial = Trial("tune", method, size, rate, seed)
                    value = level * (1 + abs(number - 1))
                    runs[trial] = Run(trial, "trained", validation_error=value, validation_loss=value)
                for chosen in plan.options:
                    trial = Trial("tune", method, size, plan.rates[1], seed, chosen)
                    runs[trial] = Run(trial, "trained", validation_error=level / 2, validation_loss=level)
            for number, seed in enumerate(plan.evaluation_seeds):
                trial = Trial("measure", method, size, plan.rates[1], seed, plan.options[0] if plan.options else ())
                losses = tuple(
                    float(f"{v:.4g}") for v in 2.3 * np.exp(-np.arange(STEPS) / 25) + draw.uniform(0, 0.1, STEPS)
                )
                broke = method == "instance_norm" and number == 0
                runs[trial] = Run(
                    trial,
                    "untrained" if broke else "trained",
                    "the loss was nan at step 31" if broke else "",
                    losses[:30] if broke else losses,
                    train_error=level / 2,
                    validation_error=level,
                    validation_loss=None if broke else 2 * level,
                    test_error=level * (1 + 0.05 * draw.standard_normal()),
                    gap=None if broke else 0.1 * draw.standard_normal() * (method == "batch_norm"),
                    recalibrated_error=level if method == "batch_norm" else None,
                    probes={"batch_dependence": 0.5, "style_rise": 0.1},
                )
    return runs


def times_of(plan: Design) -> dict[int, dict[str, list[float]]]:
    draw = np.random.default_rng(1)
    return {
        size: {
            method: (0.001 * size**0.5 * (1 + 0.05 * number) + 1e-5 * draw.random(30)).tolist()
            for number, method in enumerate(plan.methods)
        }
        for size in plan.batch_sizes
    }


def of_digits(**change: object) -> Comparison:
    """The built-in task with all methods, the experiments that use its runs, and a failed run."""
    plan = design(METHODS, SIZES, SEEDS, 3, STEPS, 0)
    workload = Workload("digits", embedded.digits(), plan, timed=True, runs=runs_of(plan, 1.0), times=times_of(plan))
    experiments = [e for e in SUITE if e.workloads == ("digits",)]
    machine = {"processor": "a <processor> & more", "cores": 2, "torch": "2.13.0", "executor": "processes"}
    found = conclude(
        workload, (), experiments, complete=True, machine=machine, command="normkit compare --seed 0", seconds=131.4
    )
    failed = Run(
        Trial("measure", "batch_norm", 2, 0.1, 100), "failed", "MemoryError: <none> left", trace="Traceback: a < b"
    )
    return replace(found, failures=(failed,), **change)  # type: ignore[arg-type]


def mean_squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs, targets)


def of_regression(**change: object) -> Comparison:
    """A user's task whose metric is no share."""
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    task = Task(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)),
        (x, y),
        (x, y),
        loss=F.mse_loss,
        metric=mean_squared,
        name="my curve",
        smallest=0.5,
        **change,  # type: ignore[arg-type]
    )
    plan = replace(design(("BN", "LN"), (4,), SEEDS, 3, STEPS, 0), smallest=0.5, options=((("momentum", 0.5),),))
    workload = Workload("task", task, plan, timed=True, runs=runs_of(plan, 30.0), times=times_of(plan))
    return conclude(workload, complete=True, machine={}, command="normkit compare pkg:task", seconds=3.0)
