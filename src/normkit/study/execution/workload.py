"""A workload: a task, the design of its training, and its results so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from normkit.catalog import Text
from normkit.study.task import Task
from normkit.study.training.design import FIRST_PART, Design
from normkit.study.training.trial import Run, Setting, Trial
from normkit.study.training.tuning import early_losses, tuned

Times = dict[str, list[float]]
"""Seconds per training step of each method, round by round."""


def first_part(seeds: int) -> int:
    """The number of evaluation seeds of a preliminary page: a third of them, but two at least, for an interval.

    >>> first_part(10), first_part(3), first_part(2)
    (3, 2, 0)
    """
    return max(2, seeds // 3) if seeds > 2 else 0


@dataclass
class Workload:
    """A task and its design; `runs`, and `times` by batch size, hold the results so far.

    `seeds` is the number of evaluation seeds of a method at a batch size, if it is not that of the design. `notes` are
    headings and texts for the report, on decisions that were made before the first run.
    """

    name: str
    task: Task
    design: Design
    timed: bool = False
    runs: dict[Trial, Run] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    seeds: dict[tuple[str, int], int] = field(default_factory=dict)
    notes: tuple[tuple[Text, Text], ...] = ()

    def first_steps(self) -> Iterator[Trial]:
        """The first steps of all rates on the tuning seeds, if rates are discarded."""
        return self.all_rates(FIRST_PART) if self.design.discards else iter(())

    def all_rates(self, part: float = 1.0) -> Iterator[Trial]:
        """All rates on the tuning seeds."""
        for method, batch_size in self._cells():
            for seed in self.design.tuning_seeds:
                for rate in self.design.rates:
                    yield Trial("tune", method, batch_size, rate, seed, part=part)

    def rates(self) -> Iterator[Trial]:
        """All rates on the tuning seeds; if rates are discarded, the best one after the first steps and the next one.

        A higher rate is often behind at first and better at the end.
        """
        if not self.design.discards:
            yield from self.all_rates()
            return
        for method, batch_size in self._cells():
            early = early_losses(self.design, self.runs, method, batch_size)
            if early:
                best = min(early, key=lambda rate: (early[rate], rate))
                for rate in (best, *self.design.neighbours(best)[-1:]):
                    if rate in self.design.rates:
                        yield from self._on_tuning_seeds(method, batch_size, rate)

    def rates_beside(self) -> Iterator[Trial]:
        """If rates are discarded: those next to the best one, so that the best one is between two that are worse.

        A rate whose loss became infinite in the first steps is not tried again.
        """
        for batch_size in reversed(self.design.batch_sizes) if self.design.discards else ():
            for method, found in tuned(self.design, self.runs, batch_size).items():
                early = early_losses(self.design, self.runs, method, batch_size)
                best = found.curve and found.curve.rates[found.curve.best]
                for rate in self.design.neighbours(best) if best else ():
                    if early.get(rate, 0.0) < math.inf:
                        yield from self._on_tuning_seeds(method, batch_size, rate)

    def rates_beyond(self) -> Iterator[Trial]:
        """Further rates, if the best one is at an end of the range and no rate was discarded."""
        if self.design.discards:
            return
        for batch_size in reversed(self.design.batch_sizes):
            for method, found in tuned(self.design, self.runs, batch_size).items():
                best = found.curve and found.curve.rates[found.curve.best]
                for rate in self.design.rates_beyond(best) if best else ():
                    yield from self._on_tuning_seeds(method, batch_size, rate)

    def options(self) -> Iterator[Trial]:
        """The options that the task tunes, at the best rate."""
        for method, batch_size, (rate, _) in self._settings() if self.design.options else ():
            for options in self.design.options:
                for seed in self.design.tuning_seeds:
                    yield Trial("tune", method, batch_size, rate, seed, options)

    def first_results(self) -> Iterator[Trial]:
        """The results on the first third of the evaluation seeds, for a page before the others are measured."""
        first = set(self.design.seeds_of(first_part(self.design.seeds)))
        return (trial for trial in self.results() if trial.seed in first)

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

    @property
    def finished(self) -> bool:
        """Whether every trial of every stage was run, also if it failed."""
        return all(trial in self.runs for trial in self.asked())

    def asked(self) -> Iterator[Trial]:
        """The trials of all stages, as far as they are known now."""
        for stage in STAGES.values():
            yield from stage(self)

    @property
    def own_runs(self) -> tuple[Run, ...]:
        """The runs of the methods, batch sizes and seeds of the design; a store may hold others of the same task."""
        design = self.design
        return tuple(
            run
            for trial, run in self.runs.items()
            if trial.method in design.methods and trial.batch_size in design.batch_sizes and design.has_seed(trial.seed)
        )

    def _on_tuning_seeds(self, method: str, batch_size: int, rate: float) -> Iterator[Trial]:
        for seed in self.design.tuning_seeds:
            yield Trial("tune", method, batch_size, rate, seed)

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
    "trying learning rates for a few steps": Workload.first_steps,
    "trying learning rates": Workload.rates,
    "trying rates beside the best": Workload.rates_beside,
    "trying further rates": Workload.rates_beyond,
    "trying options": Workload.options,
    "measuring": Workload.results,
}
"""In this order, because each stage depends on the runs of those before it."""
REPEATED = ("trying rates beside the best",)
"""Stages that are repeated until they ask for no new run."""
