"""A workload: a task, the design of its training, and its results so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from normkit.catalog import Text
from normkit.study.task import Task
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Setting, Trial
from normkit.study.training.tuning import chosen, tuning_runs

Times = dict[str, list[float]]
"""Seconds per training step of each method, round by round."""


@dataclass
class Workload:
    """A task and its design; `runs`, and `times` by batch size, hold the results so far.

    `notes` are headings and texts for the report, on decisions that were made before the first run.
    """

    name: str
    task: Task
    design: Design
    timed: bool = False
    runs: dict[Trial, Run] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    notes: tuple[tuple[Text, Text], ...] = ()

    def rates(self) -> Iterator[Trial]:
        """All rates on the tuning seeds."""
        for method, batch_size in self._cells():
            for seed in self.design.tuning_seeds:
                for rate in self.design.rates:
                    yield Trial("tune", method, batch_size, rate, seed)

    def rates_beyond(self) -> Iterator[Trial]:
        """Further rates, if the best one is at an end of the range."""
        for method, batch_size in self._cells():
            setting = self._setting(method, batch_size)
            for rate in self.design.rates_beyond(setting[0]) if setting else ():
                for seed in self.design.tuning_seeds:
                    yield Trial("tune", method, batch_size, rate, seed)

    def options(self) -> Iterator[Trial]:
        """The options that the task tunes, at the best rate."""
        for method, batch_size in self._cells() if self.design.options else ():
            setting = self._setting(method, batch_size)
            for options in self.design.options if setting else ():
                for seed in self.design.tuning_seeds:
                    assert setting is not None
                    yield Trial("tune", method, batch_size, setting[0], seed, options)

    def results(self) -> Iterator[Trial]:
        """The chosen rate and options on every evaluation seed."""
        for method, batch_size in self._cells():
            setting = self._setting(method, batch_size)
            for seed in self.design.evaluation_seeds if setting else ():
                assert setting is not None
                yield Trial("measure", method, batch_size, setting[0], seed, setting[1])

    def trained(self, batch_size: int) -> tuple[str, ...]:
        """The methods that did not fail in every run; the others cannot be timed."""
        return tuple(m for m in self.design.methods if self._setting(m, batch_size))

    def is_open(self, trial: Trial) -> bool:
        """Whether a trial has no result yet; one that failed last time is tried again."""
        return trial not in self.runs or self.runs[trial].state == "failed"

    def _setting(self, method: str, batch_size: int) -> Setting | None:
        return chosen(self.design, tuning_runs(self.design, self.runs, method, batch_size))

    def _cells(self) -> Iterator[tuple[str, int]]:
        # Large batches first, so that no long run starts when the other processes have already finished.
        for batch_size in reversed(self.design.batch_sizes):
            for method in self.design.methods:
                yield method, batch_size


STAGES: Mapping[str, Callable[[Workload], Iterator[Trial]]] = {
    "trying learning rates": Workload.rates,
    "trying further rates": Workload.rates_beyond,
    "trying options": Workload.options,
    "measuring": Workload.results,
}
"""In this order, because each stage depends on the runs of those before it."""
