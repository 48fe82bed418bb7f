"""What a worker gets, and what it does with it. It imports no store, because every process that trains imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from normkit.study.execution.workload import Times, Workload
from normkit.study.task import Task
from normkit.study.training.cost import Timing, time_steps
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial


@dataclass(frozen=True)
class Payload:
    """The data of every worker: task and design of each workload, and a trainer."""

    studies: tuple[tuple[Task, Design], ...]
    trainer: Trainer = field(default_factory=Trainer)

    @classmethod
    def of(cls, workloads: Sequence[Workload], processes: int = 1) -> Payload:
        """The payload for some workloads, in their order, and the number of processes that share the memory."""
        return cls(tuple((each.task, each.design) for each in workloads), Trainer(processes))


def train_batch(payload: Payload, batch: tuple[int, Sequence[Trial]]) -> list[Run]:
    """In a worker: the runs of a batch of trials."""
    number, trials = batch
    return payload.trainer.execute(*payload.studies[number], trials)


def time_workload(payload: Payload, item: tuple[int, Timing]) -> Times:
    """In a worker: the step times of a workload."""
    number, timing = item
    return time_steps(*payload.studies[number], timing)


def train_again(payload: Payload, item: tuple[int, Trial]) -> tuple[Run, dict[str, Tensor]]:
    """In a worker: the run of a trial, trained alone from its seed, and the state of its model.

    Args:
        payload: the data of the worker.
        item: the number of a workload, and one of its trials.
    """
    number, trial = item
    return payload.trainer.checkpoint(*payload.studies[number], trial)
