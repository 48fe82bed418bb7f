"""A workload: a task, the design of its training, and its results so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from normkit.study.task import Task
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Setting, Trial
from normkit.study.training.tuning import tuned

Times = dict[str, list[float]]
"""Seconds per training step of each method, round by round."""


@dataclass
class Workload:
    """A task and its design; `runs`, and `times` by batch size, hold the results so far.

    `seeds` is the number of evaluation seeds of a method at a batch size, if it is not that of the design.
    """

    name: str
    task: Task
    design: Design
    timed: bool = False
    runs: dict[Trial, Run] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    seeds: dict[tuple[str, int], int] = field(default_factory=dict)

    def rates(self) -> Iterator[Trial]:
        """All rates on the tuning seeds."""
        for method, batch_size in self._cells():
            for seed in self.design.tuning_seeds:
                for rate in self.design.rates:
                    yield Trial("tune", method, batch_size, rate, seed)

    def rates_beyond(self) -> Iterator[Trial]:
        """Further rates, if the best one is at an end of the range."""
        for batch_size in reversed(self.design.batch_sizes):
            for method, found in tuned(self.design, self.runs, batch_size).items():
                best = found.curve and found.curve.rates[found.curve.best]
                for rate in self.design.rates_beyond(best) if best else ():
                    for seed in self.design.tuning_seeds:
                        yield Trial("tune", method, batch_size, rate, seed)

    def options(self) -> Iterator[Trial]:
        """The options that the task tunes, at the best rate."""
        for method, batch_size, (rate, _) in self._settings() if self.design.options else ():
            for options in self.design.options:
                for seed in self.design.tuning_seeds:
                    yield Trial("tune", method, batch_size, rate, seed, options)

    def results(self) -> Iterator[Trial]:
        """The chosen rate and options on every evaluation seed."""
        for method, batch_size, (rate, options) in self._settings():
            for seed in self.design.seeds_of(self.seeds.get((method, batch_size), self.design.seeds)):
                yield Trial("measure", method, batch_size, rate, seed, options)

    def trained(self, batch_size: int) -> tuple[str, ...]:
        """The methods that did not fail in every run; the others cannot be timed."""
        found = tuned(self.design, self.runs, batch_size)
        return tuple(method for method in self.design.methods if found[method].setting)

    def is_open(self, trial: Trial) -> bool:
        """Whether a trial has no result yet; one that failed last time is tried again."""
        return trial not in self.runs or self.runs[trial].state == "failed"

    def _settings(self) -> Iterator[tuple[str, int, Setting]]:
        """The setting of every method at every batch size, as far as they are tuned."""
        for batch_size in reversed(self.design.batch_sizes):
            for method, found in tuned(self.design, self.runs, batch_size).items():
                if found.setting:
                    yield method, batch_size, found.setting

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
