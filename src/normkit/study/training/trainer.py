"""Trains batches of trials: trials that differ only in rate and seed are trained at once."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from normkit.study.task import Task
from normkit.study.training.design import Design
from normkit.study.training.evaluation import evaluate
from normkit.study.training.placement import autocast, model_of, to_device
from normkit.study.training.replicas import RecordedSteps, can_be_stacked, replicas
from normkit.study.training.trial import Run, Trial, batches

WORTH_RECORDING = 60
"""Recording a step takes as long as some tens of steps, so it is worth it from this number of steps on."""


@dataclass
class Trainer:
    """Trains models, and remembers facts about them. Each process that trains has one.

    Attributes:
        stackable: for a task, method and batch size, whether copies of the model can be stacked.
        recorded: recorded training steps, by everything that they depend on; many runs may use the same one.
    """

    stackable: dict[tuple[str, str, int], bool] = field(default_factory=dict)
    recorded: dict[tuple[str, str, int, str, str], RecordedSteps] = field(default_factory=dict)

    def execute(self, task: Task, design: Design, trials: Sequence[Trial]) -> list[Run]:
        """Train the model of each trial from its seed and evaluate it at the end.

        An exception in training becomes a failed run with its message, so that the study continues.

        Args:
            task: the task to train.
            design: the numbers of the training.
            trials: trials of one method and one batch size.
        """
        start = time.perf_counter()
        runs = self._execute(task, design, trials)
        share = (time.perf_counter() - start) / len(trials)
        return [replace(run, seconds=float(f"{share:.3g}")) for run in runs]

    def _execute(self, task: Task, design: Design, trials: Sequence[Trial]) -> list[Run]:
        if len(trials) > 1 and design.stack > 1 and self._is_stackable(task, trials[0]):
            try:
                return self.train(task, design, trials, stacked=True)
            except Exception:
                # Trained separately, each trial has its own error, or none.
                pass
        return [self._alone(task, design, trial) for trial in trials]

    def _alone(self, task: Task, design: Design, trial: Trial) -> Run:
        try:
            return self.train(task, design, [trial], stacked=False)[0]
        except Exception as error:
            return Run(trial, "failed", f"{type(error).__name__}: {error}", trace=traceback.format_exc())

    def stacks(self, task: Task, method: str, batch_size: int) -> bool:
        """Whether copies of the model with a method are trained all at once."""
        return self._is_stackable(task, Trial("tune", method, batch_size, task.rates[0], 0))

    def _is_stackable(self, task: Task, trial: Trial) -> bool:
        key = (task.fingerprint(), trial.method, trial.batch_size)
        if key not in self.stackable:
            inputs, targets = task.train.take(torch.arange(min(trial.batch_size, len(task.train))))
            with torch.random.fork_rng(devices=[]):
                build = lambda seed: task.build(trial.method, seed)  # noqa: E731
                self.stackable[key] = can_be_stacked(build, task.loss, inputs, targets)
        return self.stackable[key]

    def _recorded_steps(self, task: Task, design: Design, trial: Trial) -> RecordedSteps | None:
        if design.steps < WORTH_RECORDING:
            return None
        key = (task.fingerprint(), trial.method, trial.batch_size, design.device, design.dtype)
        return self.recorded.setdefault(key, {})

    def train(self, task: Task, design: Design, trials: Sequence[Trial], stacked: bool) -> list[Run]:
        """Train and evaluate; with `stacked` all copies are trained at once. Exceptions are not caught."""
        order = torch.stack([batches(len(task.train), t.batch_size, design.steps, t.seed) for t in trials], dim=1)
        order = order[: round(trials[0].part * design.steps)]
        with torch.random.fork_rng(devices=[]), autocast(design):
            # The random numbers that a model draws during training, for example for dropout, depend on its seed.
            torch.manual_seed(trials[0].seed)
            models = [model_of(task, design, trial.method, trial.seed) for trial in trials]
            copies = replicas(models, stacked, self._recorded_steps(task, design, trials[0]) if stacked else None)
            copies.optimize(task.optimizer, [trial.setting for trial in trials])
            losses: list[Tensor] = []
            for step, index in enumerate(order):
                # Half a cosine, from the full rate down to 0.
                copies.scale_rates(0.5 * (1 + math.cos(math.pi * step / design.steps)))
                inputs, targets = to_device(design, task.train.take(index))
                losses.append(copies.step(task.loss, inputs, targets))
                if step % 20 == 19 and not losses[-1].isfinite().any():
                    break
            return evaluate(task, design, trials, copies, torch.stack(losses).cpu())
