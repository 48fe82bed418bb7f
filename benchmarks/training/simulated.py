"""Studies of made-up methods, without training: tuning and verdicts on numbers whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from normkit.study.analysis import verdict
from normkit.study.analysis.cells import cells
from normkit.study.analysis.verdict import Look, Pair
from normkit.study.execution.workload import REPEATED, STAGES, Workload
from normkit.study.resolving import Resolving
from normkit.study.task import embedded
from normkit.study.training.design import design
from normkit.study.training.trial import Run, Trial

SIZE = 8
METHODS = ("none", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "weight_norm")
TASK = embedded.digits()
Error = Callable[[str, float], float]
"""The true error of a method at the logarithm of a rate."""


@dataclass
class Reported:
    """The part of a store that a study without training needs: the looks that were reported."""

    seeds: list[int] = field(default_factory=list)

    def looks(self, *_: Any) -> tuple[int, ...]:
        return tuple(self.seeds)

    def add_look(self, task: Any, plan: Any, seeds: int) -> None:
        if seeds not in self.seeds:
            self.seeds.append(seeds)


@dataclass
class Simulation:
    """A study with made-up runs: the error of a run is the true one with noise of standard deviation `spread`."""

    error: Error
    count: int
    seeds: int
    generator: np.random.Generator
    spread: float = 0.01
    changes: dict[str, Any] = field(default_factory=dict)
    further: bool = False
    reported: Reported = field(default_factory=Reported)

    def __post_init__(self) -> None:
        plan = design(METHODS[: self.count], (SIZE,), self.seeds, 7, 400, 0)
        self.workload = Workload("made up", TASK, replace(plan, **{"confirm": True, **self.changes}))

    def pairs(self, seeds: int | None = None) -> tuple[Pair, ...]:
        """Run everything that the study asks for, and judge it; with another number of seeds it is continued."""
        if seeds is not None:
            self.workload.design = replace(self.workload.design, seeds=seeds)
        resolving = Resolving(self.workload, self.reported, self.further)  # type: ignore[arg-type]
        for what, ask in STAGES.items():
            while self._run(ask(self.workload)) and what in REPEATED:
                pass
        self._confirm(resolving)
        while resolving.grow() and resolving.seeds <= 160:
            self._run(STAGES["measuring"](self.workload))
            self._confirm(resolving)
        looks: Sequence[Look] = resolving.looks()
        table = cells(self.workload.design, self.workload.runs, {}, looks[-1].seeds)
        return verdict.pairs(self.workload.design, table, looks)

    def rate(self, method: str) -> float:
        """The chosen rate of a method."""
        found = cells(self.workload.design, self.workload.runs, {})[method, SIZE].rate
        assert found is not None
        return found

    def _confirm(self, resolving: Resolving) -> None:
        while self._run(resolving.confirm(self.workload)):
            pass

    def _run(self, asked: Any) -> int:
        new = [trial for trial in asked if trial not in self.workload.runs]
        for trial in new:
            self.workload.runs[trial] = self._made_up(trial)
        return len(new)

    def _made_up(self, trial: Trial) -> Run:
        true = self.error(trial.method, math.log10(trial.rate))
        tuned, measured = true + self.spread * self.generator.standard_normal(2)
        sign = self.workload.design.sign
        return Run(
            trial,
            "trained",
            losses=(true,) * 4,
            validation_error=sign * tuned,
            validation_loss=1.0,
            test_error=sign * measured if trial.kind == "measure" else None,
        )


def parabola(steepness: float, best: float, bottom: float = 0.1) -> Callable[[float], float]:
    """The error over the logarithm of the rate: lowest at `best`, at most chance."""
    return lambda rate: min(0.9, bottom + steepness * (rate - best) ** 2)


def different(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.relation in ("better", "worse")]
