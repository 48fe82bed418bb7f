"""Decides which of two methods is better, by the rules of a design.

The rules and their numbers are fixed before any result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple

from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell, Key
from normkit.study.analysis.stats import Interval
from normkit.study.training.design import Design
from normkit.study.training.trial import Setting

Relation = Literal["better", "worse", "equal", "not resolved"]
Place = Literal["leads", "equal", "not resolved", "behind", "not measured"]
"""The relation of a method to the leader of its batch size."""
Name = tuple[int, str, str]
"""A pair: batch size and two methods."""
FIRST_LOOK = 0.8
"""The part of `alpha` that the first look spends. With one look nothing would be left for seeds that are added."""


@dataclass(frozen=True)
class AtRate:
    """The difference of a pair if one of its methods is trained at another rate than its own.

    `difference` has the sign of that of the pair; `p` is that of no difference, or 1 if its sign is the other one.
    """

    method: str
    rate: float
    difference: Interval
    p: float


@dataclass(frozen=True)
class Pair:
    """Test metric of `second` minus that of `first`, seed by seed, at one batch size.

    The sign is turned if a higher metric is better: a positive difference means that `first` is better.

    Attributes:
        batch_size, first, second: which methods.
        difference: at the rates that tuning chose, with the 95 % interval for the difference of the best rates.
        wide: the same with the interval that holds for all pairs at once.
        p_corrected: p over all pairs, and over all rates that tuning cannot exclude.
        relation: that of `first` to `second`.
        look: the number of the look, from 1, that decided the relation; 0 if none did.
        at_rates: the differences at other rates, as far as they were measured.
        detectable: the difference that these seeds find with a probability of 80 %.
        more_seeds: if not resolved, the number of further seeds that find the smallest difference that matters with a
            probability of 80 %.
    """

    batch_size: int
    first: str
    second: str
    difference: Interval
    wide: Interval
    p_corrected: float
    relation: Relation
    look: int = 0
    at_rates: tuple[AtRate, ...] = ()
    detectable: float | None = None
    more_seeds: int | None = None

    def has(self, method: str | None) -> bool:
        """Whether a method is one of the two."""
        return method in (self.first, self.second)


@dataclass(frozen=True)
class Look:
    """A report of the results: with this many seeds, at this probability of a wrong *better*."""

    seeds: int
    alpha: float


@dataclass(frozen=True)
class Standing:
    """The order at one batch size: the leader, and which methods are behind it, equal to it or not resolved."""

    batch_size: int
    leader: str | None
    behind: tuple[str, ...] = ()
    equal_to: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[str, ...]:
        """The methods than which no other is better."""
        return (self.leader, *self.equal_to, *self.unresolved) if self.leader else ()

    def place(self, method: str) -> Place:
        """The relation of a method to the leader."""
        if method == self.leader:
            return "leads"
        if method in self.behind:
            return "behind"
        return "equal" if method in self.equal_to else "not resolved"


def looks_of(design: Design, before: Sequence[int] = ()) -> tuple[Look, ...]:
    """The looks of a design, in the order in which they were made, each with its part of `alpha`.

    The first look spends four fifths of it, and each further look half of what is left. So the parts are at most
    `alpha` in all, however often seeds are added.

    Args:
        design: the design; its number of seeds is that of this look.
        before: the numbers of seeds of the looks that were reported before.

    >>> from normkit.study.training.design import design
    >>> [(look.seeds, look.alpha) for look in looks_of(design(("none",), (8,), 20, 7, 50, 0), before=[10])]
    [(10, 0.04), (20, 0.005)]
    """
    order = list(dict.fromkeys([*before, design.seeds]))
    shares = [FIRST_LOOK, *((1 - FIRST_LOOK) / 2**i for i in range(1, len(order)))]
    found = [Look(seeds, float(f"{design.alpha * share:.6g}")) for seeds, share in zip(order, shares, strict=True)]
    return tuple(look for look in found[: order.index(design.seeds) + 1] if look.seeds <= design.seeds)


def pairs(design: Design, table: Mapping[Key, Cell], looks: Sequence[Look] = ()) -> tuple[Pair, ...]:
    """Every two methods at every batch size, judged as one family at each look."""
    return judge(design, table, looks)[0]


def judge(
    design: Design, table: Mapping[Key, Cell], looks: Sequence[Look] = ()
) -> tuple[tuple[Pair, ...], tuple[Need, ...]]:
    """All pairs, and what must be measured to confirm those that would be decided otherwise.

    A pair that an earlier look decided stays decided, as long as its difference does not turn or vanish.
    """
    looks = looks or looks_of(design)
    names = [
        (size, first, second)
        for size in design.batch_sizes
        for first, second in combinations(design.methods, 2)
        if len(_shared(table[first, size], table[second, size], looks[-1].seeds)) > 1
    ]
    contests = {name: _Contest.of(design, table, name) for name in names}
    needs: dict[Need, None] = {}
    decided: dict[Name, tuple[int, Relation, float]] = {}
    last: dict[Name, float] = {}
    for number, look in enumerate(looks, start=1):
        # By Holm's argument the pairs that a look before called different need not be counted again.
        left = [name for name in names if decided.get(name, (0, "equal", 0.0))[1] == "equal"]
        found = {name: contests[name].seen(look.seeds) for name in left}
        corrected = stats.holm([seen.p for seen in found.values()])
        level = stats.family_level(look.alpha, len(names))
        for (name, seen), p in zip(found.items(), corrected, strict=True):
            said, missing = seen.relation(p, look.alpha, level)
            last[name] = p
            if name not in decided:
                needs |= dict.fromkeys(Need(method, name[0], setting, look.seeds) for method, setting in missing)
                if said != "not resolved":
                    decided[name] = number, said, p
    found_pairs = [_pair(contests[name], looks, len(names), decided.get(name), last[name]) for name in names]
    return tuple(found_pairs), tuple(needs)


class Need(NamedTuple):
    """A setting of a method at a batch size that must be measured on the first evaluation seeds."""

    method: str
    batch_size: int
    setting: Setting
    seeds: int


@dataclass(frozen=True)
class _Contest:
    """Two methods at a batch size, and the differences of their errors at the rates that matter.

    `of_first` has the settings of the first method at which it is compared with the second method at its own setting:
    that of the second method, and those that tuning cannot exclude. `of_second` is the same the other way round.
    """

    design: Design
    first: Cell
    second: Cell
    of_first: tuple[Setting, ...]
    of_second: tuple[Setting, ...]

    @classmethod
    def of(cls, design: Design, table: Mapping[Key, Cell], name: Name) -> _Contest:
        size, *methods = name
        first, second = (table[method, size] for method in methods)
        turned = []
        for own, other in ((first, second), (second, first)):
            wanted = dict.fromkeys([other.setting, *own.rivals]) if design.confirm else {}
            turned.append(tuple(s for s in wanted if s is not None and s != own.setting))
        return cls(design, first, second, *turned)

    def differences(self, seeds: int, first: Setting | None, second: Setting | None) -> list[float]:
        """The error of the second method minus that of the first at these settings, seed by seed."""
        assert first is not None
        assert second is not None
        known = set(self.design.seeds_of(seeds))
        mine, theirs = (
            {run.trial.seed: run.test_error for run in cell.at(setting) if run.trial.seed in known}
            for cell, setting in ((self.first, first), (self.second, second))
        )
        found = []
        for seed, error in mine.items():
            other = theirs.get(seed)
            if error is not None and other is not None:
                found.append(self.design.sign * (other - error))
        return found

    def seen(self, seeds: int) -> _Seen:
        """The differences with this number of seeds."""
        own = self.differences(seeds, self.first.setting, self.second.setting)
        return _Seen(
            self.design,
            own,
            {s: self.differences(seeds, s, self.second.setting) for s in self.of_first},
            {s: self.differences(seeds, self.first.setting, s) for s in self.of_second},
            self.first.method,
            self.second.method,
            (self.first.setting, self.second.setting),
        )


@dataclass(frozen=True)
class _Seen:
    """The differences of a contest at a look."""

    design: Design
    own: list[float]
    of_first: dict[Setting, list[float]]
    of_second: dict[Setting, list[float]]
    first: str
    second: str
    settings: tuple[Setting | None, Setting | None]

    @property
    def turn(self) -> int:
        """1 if the first method seems better, else -1."""
        return 1 if math.fsum(self.own) > 0 else -1

    @cached_property
    def p(self) -> float:
        """p of no difference: the largest of those at the rates of the method that seems worse."""
        if len(self.own) < 2:
            return 1.0
        others = self.of_second if self.turn > 0 else self.of_first
        return max([stats.t_test(self.own), *(one_p(values, self.turn) for values in _full(others, self.own))])

    def interval(self, level: float) -> Interval:
        """The difference, and the interval for the difference of the best settings.

        The best setting of the second method is one of those that tuning cannot exclude, so the lower limit is the
        lowest one over them; so is the upper limit over the settings of the first method.
        """
        middle = stats.t_interval(self.own, level)
        low = [stats.t_interval(values, level).low for values in _full(self.of_second, self.own)]
        high = [stats.t_interval(values, level).high for values in _full(self.of_first, self.own)]
        return Interval(middle.value, min([middle.low, *low]), max([middle.high, *high]), middle.n)

    def relation(self, p: float, alpha: float, level: float) -> tuple[Relation, list[tuple[str, Setting]]]:
        """The relation by the rule of the answer, and the settings that must be measured before it holds."""
        if len(self.own) < 2:
            return "not resolved", []
        smallest = self.design.smallest
        worse, others = (self.second, self.of_second) if self.turn > 0 else (self.first, self.of_first)
        sizes = [self.turn * math.fsum(values) / len(values) for values in (self.own, *_full(others, self.own))]
        if p < alpha and min(sizes) >= smallest:
            missing = [(worse, setting) for setting in _missing(others, self.own)]
            # One after the other, because the first may already show that nothing is decided.
            return ("not resolved", missing[:1]) if missing else ("better" if self.turn > 0 else "worse", [])
        wide = self.interval(level)
        if -smallest <= wide.low and wide.high <= smallest:
            # Rates that tuning cannot exclude are left out: they would cost more runs than all other results.
            missing = [(self.first, s) for s in _missing(self.of_first, self.own) if s == self.settings[1]]
            missing += [(self.second, s) for s in _missing(self.of_second, self.own) if s == self.settings[0]]
            return ("not resolved", missing) if missing else ("equal", [])
        return "not resolved", []


def one_p(values: Sequence[float], turn: int) -> float:
    """p of no difference, or 1 if the mean has the other sign."""
    return stats.t_test(values) if turn * math.fsum(values) > 0 else 1.0


def _full(others: Mapping[Setting, list[float]], own: Sequence[float]) -> list[list[float]]:
    """The differences at other settings that were measured on all seeds."""
    return [values for values in others.values() if len(values) >= len(own)]


def _missing(others: Mapping[Setting, list[float]], own: Sequence[float]) -> list[Setting]:
    return [setting for setting, values in others.items() if len(values) < len(own)]


def _shared(first: Cell, second: Cell, seeds: int) -> list[int]:
    """The evaluation seeds that two cells share."""
    ends = [
        {run.trial.seed for run in cell.runs if run.test_error is not None and cell.setting} for cell in (first, second)
    ]
    return [seed for seed in first.design.seeds_of(seeds) if seed in ends[0] & ends[1]]


def _pair(
    contest: _Contest, looks: Sequence[Look], family: int, decided: tuple[int, Relation, float] | None, p: float
) -> Pair:
    """The pair as it is reported: its intervals use all seeds, its relation is that of the look that decided it."""
    design, look = contest.design, looks[-1]
    seen = contest.seen(look.seeds)
    level = stats.family_level(look.alpha, family)
    number, said, corrected = decided or (0, "not resolved", p)
    difference, wide = seen.interval(0.95), seen.interval(level)
    if {"better": 1, "worse": -1}.get(said, 0) * difference.value < design.smallest * (said in ("better", "worse")):
        number, said, corrected = 0, "not resolved", p
    at_rates = [
        AtRate(method, setting[0], stats.t_interval(values), one_p(values, seen.turn))
        for method, others in ((seen.first, seen.of_first), (seen.second, seen.of_second))
        for setting, values in others.items()
        if len(values) > 1
    ]
    spread, count = stats.deviation(seen.own), len(seen.own)
    more = stats.seeds_for(design.smallest, spread, count, (1 - level) / 2) if said == "not resolved" else None
    return Pair(
        contest.first.batch_size,
        contest.first.method,
        contest.second.method,
        difference,
        wide,
        corrected,
        said,
        look=number,
        at_rates=tuple(at_rates),
        detectable=stats.detectable(spread, count, (1 - level) / 2),
        more_seeds=None if more is None else max(more - count, 0),
    )


def standing(batch_size: int, table: Mapping[Key, Cell], judged: Sequence[Pair]) -> Standing:
    """The order at one batch size, by the test metric alone; without a leader if no method is better than guessing."""
    row = [cell for (_, size), cell in table.items() if size == batch_size and cell.error is not None]
    if not any(map(beats_guess, row)):
        return Standing(batch_size, None)
    leader = min(row, key=lambda cell: cell.design.sign * cell.error.value if cell.error else math.inf).method
    groups: dict[str, list[str]] = {"behind": [], "equal": [], "not resolved": []}
    for cell in row:
        if cell.method != leader:
            seen = relations(cell.method, batch_size, judged)
            behind = "worse" in seen.values()
            groups["behind" if behind else seen.get(leader, "not resolved")].append(cell.method)
    return Standing(batch_size, leader, *(tuple(group) for group in groups.values()))


def beats_guess(cell: Cell) -> bool:
    """Whether the mean of a method is better than guessing, by one of its runs or by the interval of the mean."""
    design, error = cell.design, cell.error
    trained = cell.untrained < len(cell.runs)
    if error is None or design.chance is None:
        return trained
    worst = error.high if design.sign > 0 else error.low
    ahead, surely_ahead = (design.sign * (design.chance - value) > 0 for value in (error.value, worst))
    return ahead and (trained or surely_ahead)


def relations(method: str, batch_size: int, judged: Sequence[Pair]) -> dict[str, Relation]:
    """The relation of a method to each other one at a batch size."""
    turned: dict[Relation, Relation] = {"better": "worse", "worse": "better"}
    found: dict[str, Relation] = {}
    for pair in judged:
        if pair.batch_size == batch_size and pair.first == method:
            found[pair.second] = pair.relation
        elif pair.batch_size == batch_size and pair.second == method:
            found[pair.first] = turned.get(pair.relation, pair.relation)
    return found
