"""From runs to statements: what each method reached, and which of two is better.

Nothing here is chosen in the light of results; the rules stand in `design` and their numbers with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

from normkit.study import stats
from normkit.study.design import Design
from normkit.study.run import Job, Options, Run, Setting, smooth
from normkit.study.stats import Interval

Relation = Literal["better", "worse", "equal", "not resolved"]
Key = tuple[str, int]
Table = Mapping[Key, "Cell"]


@dataclass(frozen=True)
class Cell:
    """Everything measured of one method at one batch size.

    `tuning` holds the runs over learning rates, `runs` those behind the results in the order of the seeds;
    `seconds` and `plain_seconds` are step times, round by round, of the method and of no norm; `saved_bytes` is what
    one training step keeps for its backward pass.
    """

    method: str
    batch_size: int
    design: Design
    tuning: tuple[Run, ...]
    runs: tuple[Run, ...]
    seconds: tuple[float, ...] = ()
    plain_seconds: tuple[float, ...] = ()
    saved_bytes: int | None = None

    @property
    def rate(self) -> float | None:
        """The chosen learning rate; None before tuning."""
        return self.setting[0] if self.setting else None

    @property
    def options(self) -> Options:
        """The chosen options of the optimizer."""
        return self.setting[1] if self.setting else ()

    @cached_property
    def setting(self) -> Setting | None:
        """Rate and options together."""
        return next(iter(ranking(self.tuning, self.design.choose)), None)

    @property
    def rate_on_edge(self) -> bool:
        """Whether the best rate may lie outside the range that was tried."""
        tried = [run.job.rate for run in self.tuning]
        return bool(tried) and self.rate in (min(tried), max(tried))

    @property
    def error(self) -> Interval | None:
        """Test error."""
        return self._mean(lambda run: run.test_error)

    @property
    def train_error(self) -> Interval | None:
        """Error on the training images, in evaluation mode."""
        return self._mean(lambda run: run.train_error)

    @property
    def recalibrated_error(self) -> Interval | None:
        """Test error with running statistics computed anew; None where there are none."""
        return self._mean(lambda run: run.recalibrated_error)

    @property
    def gap(self) -> Interval | None:
        """Loss in evaluation mode minus loss in training mode."""
        return self._mean(lambda run: run.gap)

    @property
    def steps(self) -> tuple[int | None, ...]:
        """Steps to the target loss of each run; None did not arrive."""
        design = self.design
        return tuple(
            stats.arrival(smooth(run.losses, design.window), design.window, design.target_loss)
            if run.state == "trained"
            else None
            for run in self.runs
        )

    @property
    def median_steps(self) -> tuple[float, bool] | None:
        """Median of `steps`, and whether it is a lower bound."""
        return stats.median_steps(self.steps, self.design.steps)

    @property
    def time_ratio(self) -> Interval | None:
        """Time of a step relative to no norm, median over rounds."""
        if not self.seconds or not self.plain_seconds:
            return None
        return stats.median_interval([a / b for a, b in zip(self.seconds, self.plain_seconds, strict=True)])

    @property
    def untrained(self) -> int:
        """Runs that did not train; they are part of every mean."""
        return sum(run.state == "untrained" for run in self.runs)

    def _mean(self, value: Callable[[Run], float | None]) -> Interval | None:
        values = [v for v in map(value, self.runs) if v is not None]
        return stats.t_interval(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Pair:
    """Test error of `second` minus that of `first`, seed by seed, at one batch size.

    `relation` says what `first` is to `second`. `wide` is the interval that holds for all pairs at once.
    """

    batch_size: int
    first: str
    second: str
    difference: Interval
    wide: Interval
    p_corrected: float
    relation: Relation


@dataclass(frozen=True)
class Standing:
    """The order at one batch size: who leads on average, who is behind, and what the leader is to the rest."""

    batch_size: int
    leader: str | None
    behind: tuple[str, ...] = ()
    equal_to: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[str, ...]:
        """The methods that no other is better than."""
        return (self.leader, *self.equal_to, *self.unresolved) if self.leader else ()


def ranking(tuning: Sequence[Run], by: Literal["validation", "training"] = "validation") -> list[Setting]:
    """Learning rates with options, the best first.

    By mean validation error; mean validation loss, then the lower rate, break ties. Or by the mean training loss over
    all steps, where a run whose loss left the finite numbers is the worst there is.
    """
    tried: dict[Setting, list[Run]] = {}
    for run in tuning:
        if run.validation_error is not None:
            tried.setdefault(run.job.setting, []).append(run)
    most = max(map(len, tried.values()), default=0)

    def order(setting: Setting) -> tuple[float, float, float]:
        runs = tried[setting]
        if by == "training":
            return _mean([_area(run) for run in runs]), 0.0, setting[0]
        losses = [math.inf if run.validation_loss is None else run.validation_loss for run in runs]
        return _mean([run.validation_error or 0.0 for run in runs]), _mean(losses), setting[0]

    return sorted((setting for setting, runs in tried.items() if len(runs) == most), key=order)


def _area(run: Run) -> float:
    """The mean training loss of a run; infinite if it broke off."""
    return math.inf if run.state == "untrained" and run.validation_loss is None else _mean(run.losses)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf


def cells(
    design: Design, runs: Mapping[Job, Run], times: Mapping[int, Mapping[str, Sequence[float]]]
) -> dict[Key, Cell]:
    """Sort runs and times by method and batch size; what the design does not ask for stays out."""
    found: dict[Key, Cell] = {}
    for batch_size in design.batch_sizes:
        seconds = times.get(batch_size, {})
        for method in design.methods:
            tuning = pick(
                runs,
                [Job("tune", method, batch_size, r, s) for s in design.tuning_seeds for r in design.wide_rates],
            )
            best = ranking(tuning, design.choose)[:1]
            tuning += pick(
                runs,
                [
                    Job("tune", method, batch_size, rate, s, options)
                    for rate, _ in best
                    for options in design.options
                    for s in design.tuning_seeds
                ],
            )
            best = ranking(tuning, design.choose)[:1]
            found[method, batch_size] = Cell(
                method,
                batch_size,
                design,
                tuning,
                pick(
                    runs,
                    [
                        Job("measure", method, batch_size, rate, seed, options)
                        for rate, options in best
                        for seed in design.evaluation_seeds
                    ],
                ),
                tuple(seconds.get(method, ())),
                tuple(seconds.get("none", ())),
            )
    return found


def pick(runs: Mapping[Job, Run], jobs: Sequence[Job]) -> tuple[Run, ...]:
    """The runs of these jobs that are there."""
    return tuple(runs[job] for job in jobs if job in runs)


def pairs(design: Design, table: Mapping[Key, Cell]) -> tuple[Pair, ...]:
    """Every two methods at every batch size, judged as one family."""
    raw: list[tuple[int, str, str, list[float]]] = []
    for batch_size in design.batch_sizes:
        for first, second in combinations(design.methods, 2):
            values = paired(table[second, batch_size], table[first, batch_size], lambda run: run.test_error)
            if len(values) > 1:
                raw.append((batch_size, first, second, values))
    corrected = stats.holm([stats.t_test(values) for *_, values in raw])
    level = stats.family_level(design.alpha, len(raw))
    found = []
    for (batch_size, first, second, values), p in zip(raw, corrected, strict=True):
        difference, wide = stats.t_interval(values), stats.t_interval(values, level)
        found.append(Pair(batch_size, first, second, difference, wide, p, relation(design, difference, wide, p)))
    return tuple(found)


def relation(design: Design, difference: Interval, wide: Interval, p_corrected: float) -> Relation:
    """The rule of the answer; a positive difference speaks for the first of the two."""
    smallest = design.smallest
    if p_corrected < design.alpha and abs(difference.value) >= smallest:
        return "better" if difference.value > 0 else "worse"
    return "equal" if -smallest <= wide.low and wide.high <= smallest else "not resolved"


def standing(batch_size: int, table: Mapping[Key, Cell], judged: Sequence[Pair]) -> Standing:
    """Who leads at one batch size; no one, if no run of any method trained.

    A method none of whose runs trained is behind, whatever error it ended with: that error is chance.
    """
    row = [cell for (_, size), cell in table.items() if size == batch_size and cell.error is not None]
    able = [cell for cell in row if cell.untrained < len(cell.runs)]
    if not able:
        return Standing(batch_size, None)
    leader = min(able, key=lambda cell: cell.error.value if cell.error else 1.0).method
    groups: dict[str, list[str]] = {"behind": [], "equal": [], "not resolved": []}
    for cell in row:
        if cell.method != leader:
            seen = relations(cell.method, batch_size, judged)
            behind = cell not in able or "worse" in seen.values()
            groups["behind" if behind else seen.get(leader, "not resolved")].append(cell.method)
    return Standing(batch_size, leader, *(tuple(group) for group in groups.values()))


def relations(method: str, batch_size: int, judged: Sequence[Pair]) -> dict[str, Relation]:
    """What a method is to each other one at a batch size."""
    turned: dict[Relation, Relation] = {"better": "worse", "worse": "better"}
    found: dict[str, Relation] = {}
    for pair in judged:
        if pair.batch_size == batch_size and pair.first == method:
            found[pair.second] = pair.relation
        elif pair.batch_size == batch_size and pair.second == method:
            found[pair.first] = turned.get(pair.relation, pair.relation)
    return found


def paired(a: Cell, b: Cell, value: Callable[[Run], float | None]) -> list[float]:
    """`value(a) - value(b)` for every seed that both have."""
    other = {run.job.seed: value(run) for run in b.runs}
    found = []
    for run in a.runs:
        mine, theirs = value(run), other.get(run.job.seed)
        if mine is not None and theirs is not None:
            found.append(mine - theirs)
    return found
