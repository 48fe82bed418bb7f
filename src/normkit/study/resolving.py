"""Which further runs the verdicts of a comparison need: other rates that confirm them, and more seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from normkit.study.analysis import verdict
from normkit.study.analysis.cells import Cell, Key, cells
from normkit.study.analysis.verdict import Look
from normkit.study.execution.store import Store
from normkit.study.execution.workload import Workload
from normkit.study.training.design import MOST_SEEDS
from normkit.study.training.trial import Trial


@dataclass
class Resolving:
    """The looks at the results of a comparison, and the runs that its verdicts still need.

    Attributes:
        workload: the workload of the comparison.
        store: the store; it holds the looks that were reported.
        further: whether seeds are added until every method is told apart from the leader, or equal to it.
        seeds: the number of seeds of the present look.
        done: the number of seeds of the last look that has all its runs; 0 if none has.
    """

    workload: Workload
    store: Store
    further: bool = False
    seeds: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.seeds = self.seeds or self.workload.design.seeds

    def looks(self) -> tuple[Look, ...]:
        """The looks up to the last one that has all its runs, or up to the first one."""
        return self._looks(self.done or self.seeds)

    def confirm(self, workload: Workload) -> Iterator[Trial]:
        """The runs at other rates that verdicts of the comparison need."""
        design = workload.design
        if workload is not self.workload or not design.confirm:
            return
        for need in verdict.judge(design, self._table(), self._looks(self.seeds))[1]:
            for seed in design.seeds_of(need.seeds):
                yield Trial("measure", need.method, need.batch_size, need.setting[0], seed, need.setting[1])

    def record(self) -> None:
        """Record the present look, whose results are about to be reported."""
        if self.workload.design.seeds:
            self.store.add_look(self.workload.task, self.workload.design, self.seeds)

    def grow(self) -> bool:
        """Record the present look, which has all its runs, and add seeds where they are needed.

        The seeds of a leader, and of the methods that are not told apart from it, are doubled. Returns whether any are
        needed.
        """
        workload, design = self.workload, self.workload.design
        self.done = self.seeds
        self.record()
        if not self.further or 2 * self.done > MOST_SEEDS:
            return False
        table = self._table()
        pairs, _ = verdict.judge(design, table, self.looks())
        leaders = {size: verdict.standing(size, table, pairs).leader for size in design.batch_sizes}
        left = [pair for pair in pairs if pair.relation == "not resolved" and pair.has(leaders[pair.batch_size])]
        self.seeds = 2 * self.done
        for pair in left:
            for method in (pair.first, pair.second):
                workload.seeds[method, pair.batch_size] = self.seeds
        return bool(left)

    def _table(self) -> dict[Key, Cell]:
        return cells(self.workload.design, self.workload.runs, self.workload.times, self.seeds)

    def _looks(self, seeds: int) -> tuple[Look, ...]:
        design = replace(self.workload.design, seeds=seeds)
        return verdict.looks_of(design, self.store.looks(self.workload.task, self.workload.design))
