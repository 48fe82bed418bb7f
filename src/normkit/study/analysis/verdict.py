"""Decides which of two methods is better, by the rules of a design.

The rules and their numbers are fixed before any result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from normkit.study.analysis import stats
from normkit.study.analysis.cells import Cell, Key, paired
from normkit.study.analysis.stats import Interval
from normkit.study.training.design import Design

Relation = Literal["better", "worse", "equal", "not resolved"]
Place = Literal["leads", "equal", "not resolved", "behind", "not measured"]
"""The relation of a method to the leader of its batch size."""


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
    """Test error of `second` minus that of `first`, seed by seed, at one batch size.

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
        more_seeds: if not resolved, the number of further seeds with which the smallest difference that matters is found
            with a probability of 80 %.
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
    """The rule of the answer; a positive difference means that the first of the two is better."""
    smallest = design.smallest
    if p_corrected < design.alpha and abs(difference.value) >= smallest:
        return "better" if difference.value > 0 else "worse"
    return "equal" if -smallest <= wide.low and wide.high <= smallest else "not resolved"


def standing(batch_size: int, table: Mapping[Key, Cell], judged: Sequence[Pair]) -> Standing:
    """The order at one batch size; without a leader if no run of any method trained.

    A method is behind if none of its runs trained, whatever its error: that error is chance.
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
    """The relation of a method to each other one at a batch size."""
    turned: dict[Relation, Relation] = {"better": "worse", "worse": "better"}
    found: dict[str, Relation] = {}
    for pair in judged:
        if pair.batch_size == batch_size and pair.first == method:
            found[pair.second] = pair.relation
        elif pair.batch_size == batch_size and pair.second == method:
            found[pair.first] = turned.get(pair.relation, pair.relation)
    return found
