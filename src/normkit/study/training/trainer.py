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
from normkit.study.task.part import call
from normkit.study.training import memory
from normkit.study.training.copies.replicas import Replicas, Separate
from normkit.study.training.copies.stacked import RecordedSteps, Stacked, can_be_stacked
from normkit.study.training.design import Design
from normkit.study.training.diverged import is_finite
from normkit.study.training.evaluation import evaluate
from normkit.study.training.memory import Need, Sizes
from normkit.study.training.placement import autocast, model_of, to_device
from normkit.study.training.steps import Steps, same_shapes
from normkit.study.training.trial import Run, Trial

WORTH_RECORDING = 60
"""Recording a step takes as long as some tens of steps, so it is worth it from this number of steps on."""


@dataclass
class Trainer:
    """Trains models, and remembers facts about them. Each process that trains has one.

    Attributes:
        processes: number of processes that share the memory of this machine.
        budget: bytes that this process may use, by device.
        needs: what a copy of the model needs, for a task, method and batch size.
        tasks: the tasks of the facts, by their ids; kept here, so that no other object gets one of these ids.
        stackable: for a task, method and batch size, whether copies of the model can be stacked.
        recorded: recorded training steps, by everything that they depend on; many runs may use the same one.
    """

    processes: int = 1
    budget: dict[str, float] = field(default_factory=dict)
    needs: dict[tuple[int, str, int], Need] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    stackable: dict[tuple[int, str, int], bool] = field(default_factory=dict)
    recorded: dict[tuple[int, str, int, str, str], RecordedSteps] = field(default_factory=dict)

    def execute(self, task: Task, design: Design, trials: Sequence[Trial]) -> list[Run]:
        """Train the model of each trial from its seed and evaluate it at the end.

        An exception in training becomes a failed run with its message, so that the study continues.

        Args:
            task: the task to train.
            design: the numbers of the training.
            trials: trials of one method and one batch size.
        """
        most = self._sizes(task, design, trials[0], len(trials)).copies
        if len(trials) > 1 and design.stack > 1:
            self._is_stackable(task, trials[0])
        # What is found out once is no part of the time of a run, from which the next batches are sized.
        start = time.perf_counter()
        groups = [trials[i : i + most] for i in range(0, len(trials), most)]
        runs = [run for group in groups for run in self._execute(task, design, group)]
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

    def _sizes(self, task: Task, design: Design, trial: Trial, count: int) -> Sizes:
        if design.device not in self.budget:
            self.budget[design.device] = memory.budget(design.device, self.processes)
        key = (self._id(task), trial.method, trial.batch_size)
        if key not in self.needs:
            self.needs[key] = memory.need(task, design, trial)
        return self.needs[key].sizes(count, self.budget[design.device])

    def _chunk(self, task: Task, design: Design, trials: Sequence[Trial]) -> int:
        """Samples in an evaluation batch."""
        return self._sizes(task, design, trials[0], len(trials)).evaluation

    def _id(self, task: Task) -> int:
        self.tasks[id(task)] = task
        return id(task)

    def _is_stackable(self, task: Task, trial: Trial) -> bool:
        key = (self._id(task), trial.method, trial.batch_size)
        if key not in self.stackable:
            self.stackable[key] = not _needs_separate(task, trial.batch_size) and self._agrees(task, trial)
        return self.stackable[key]

    def _agrees(self, task: Task, trial: Trial) -> bool:
        inputs, targets = task.train.take(task.train.first(trial.batch_size))
        with torch.random.fork_rng(devices=[]):
            build = lambda seed: task.build(trial.method, seed)  # noqa: E731
            return can_be_stacked(build, task.loss, inputs, targets)  # type: ignore[arg-type]

    def _recorded_steps(self, task: Task, design: Design, trial: Trial) -> RecordedSteps | None:
        if design.steps_at(trial.batch_size) < WORTH_RECORDING:
            return None
        key = (self._id(task), trial.method, trial.batch_size, design.device, design.dtype)
        return self.recorded.setdefault(key, {})

    def train(self, task: Task, design: Design, trials: Sequence[Trial], stacked: bool) -> list[Run]:
        """Train and evaluate; with `stacked` all copies are trained at once. Exceptions are not caught."""
        with torch.random.fork_rng(devices=[]), autocast(design):
            copies, losses = self.fit(task, design, trials, stacked)
            return evaluate(task, design, trials, copies, losses, self._chunk(task, design, trials))

    def checkpoint(self, task: Task, design: Design, trial: Trial) -> tuple[Run, dict[str, Tensor]]:
        """Train one trial: its run, and the state of the model. Exceptions are not caught."""
        with torch.random.fork_rng(devices=[]), autocast(design):
            copies, losses = self.fit(task, design, [trial], stacked=False)
            (run,) = evaluate(task, design, [trial], copies, losses, self._chunk(task, design, [trial]))
            (model,) = copies.unstacked()
            return run, {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def fit(self, task: Task, design: Design, trials: Sequence[Trial], stacked: bool) -> tuple[Replicas, Tensor]:
        """Train alone: the copies, and their losses with a row for each step. The global generator is used."""
        # The random numbers that a model draws during training, for example for dropout, depend on its seed.
        torch.manual_seed(trials[0].seed)
        models = [model_of(task, design, trial.method, trial.seed) for trial in trials]
        if stacked and len(models) > 1:
            copies: Replicas = Stacked(models, self._recorded_steps(task, design, trials[0]))
        else:
            copies = Separate(models, task.training_step, task.manual)
        copies.optimize(task.optimizer, [trial.setting for trial in trials], task.parameters)
        steps = Steps(task, design, trials, copies, self._chunk(task, design, trials))
        losses: list[Tensor] = []
        for step in range(max(1, round(trials[0].part * steps.count))):
            try:
                losses.append(steps(step))
            except Exception:
                # A step of the user may raise an error for a diverged model.
                if len(trials) > 1 or _finite(task, design, copies):
                    raise
                losses.append(torch.full((1,), math.nan))
                break
            if step % 20 == 19 and not losses[-1].isfinite().any():
                break
            if steps.stopped(step, losses[-1]):
                break
        steps.finish()
        return copies, torch.stack([loss.cpu() for loss in losses])


@torch.no_grad()
def _finite(task: Task, design: Design, copies: Replicas) -> bool:
    """Whether weights and outputs of all copies are finite; they are not after steps at a rate much too high."""
    models = copies.unstacked()
    if not all(is_finite(list(model.parameters())) for model in models):
        return False
    inputs, _ = to_device(design, task.train.take(task.train.first(8)))
    try:
        return all(is_finite(call(model, inputs)) for model in models)
    except Exception:
        # A model may have no forward for the data, or refuse what it computed itself.
        return True


def _needs_separate(task: Task, batch_size: int) -> bool:
    """Whether copies of a task are trained one after the other, whatever the model is: the only place that decides."""
    own = task.training_step is not None or task.patience is not None
    return own or (task.train.collate is not None and not same_shapes(task, batch_size))
