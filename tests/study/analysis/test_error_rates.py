"""How often studies of made-up methods find a difference where there is none, and where there is one."""

from collections.abc import Sequence

import numpy as np
import pytest
from benchmarks.training import identical
from benchmarks.training.simulated import METHODS, Simulation, different, parabola
from scipy.stats import binom

from normkit.study.execution.workers.pool import one_thread

STEEPNESS = (0, 0.02, 0.05, 0.1, 0.2)
"""Errors rise by this much one decade away from the best rate; runs have a standard deviation of 0.01."""


def share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def most(count: int, rate: float = 0.05) -> int:
    """The number of studies with an error that a rule with this error rate exceeds with a probability of 0.1 %."""
    return int(binom.ppf(0.999, count, rate))


def equal_methods(steepness: float, count: int, seeds: int, studies: int, shift: float = 0.0) -> int:
    """In how many studies methods differ that are equal; `shift` moves their best rates by a random multiple of it."""
    generator = np.random.default_rng(seeds)
    found = 0
    for _ in range(studies):
        middle = generator.choice([-2.0, -1.5, -1.0]) if shift else generator.uniform(-2, -1)
        curves = {m: parabola(steepness, middle + shift * generator.integers(-1, 2)) for m in METHODS}
        found += bool(different(Simulation(lambda m, r, c=curves: c[m](r), count, seeds, generator).pairs()))
    return found


def levels(second: float) -> dict[str, float]:
    return {"none": 0.1, "batch_norm": 0.1, "layer_norm": 0.1 + second}


def found_differences(second: float, seeds: int, studies: int, **given: bool) -> tuple[float, int, float]:
    """The share of true differences that are found, studies with a wrong one, and measured runs in a study."""
    generator = np.random.default_rng(1)
    hits = wrong = runs = 0
    for _ in range(studies):
        curves = {method: parabola(0.05, -1.5, level) for method, level in levels(second).items()}
        study = Simulation(lambda m, r, c=curves: c[m](r), 3, seeds, generator, **given)  # type: ignore[arg-type]
        right = [p.relation == "better" for p in different(study.pairs()) if p.second == "layer_norm" and second > 0]
        hits += sum(right)
        wrong += len(different(study.pairs())) > sum(right)
        runs += sum(trial.kind == "measure" for trial in study.workload.runs)
    return hits / (2 * studies), wrong, runs / studies


def seeds_added_by_hand(studies: int, last: int) -> list[bool]:
    """For studies of equal methods, whether any report after 5, 10, ... seeds found a difference."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(studies):
        study = Simulation(lambda _, rate: parabola(0.05, -1.5)(rate), 3, 5, generator, changes={"smallest": 0.002})
        found.append(any(different(study.pairs(seeds)) for seeds in range(5, last + 1, 5)))
    return found


def test_equal_methods_rarely_differ() -> None:
    # The steepness at which 7 methods with separately chosen rates differ in about half of the studies.
    assert equal_methods(0.02, 7, 20, studies=20) <= most(20)


def test_adding_seeds_until_a_winner_appears_finds_no_more() -> None:
    found = seeds_added_by_hand(12, last=30)
    assert sum(found) <= most(len(found))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20, 50])
@pytest.mark.parametrize("count", [3, 7])
@pytest.mark.parametrize("steepness", STEEPNESS)
def test_error_rate_of_equal_methods(steepness: float, count: int, seeds: int) -> None:
    assert equal_methods(steepness, count, seeds, studies=200) <= most(200)


@pytest.mark.slow
@pytest.mark.parametrize("steepness", STEEPNESS[1:])
def test_error_rate_with_different_best_rates(steepness: float) -> None:
    assert equal_methods(steepness, 7, 20, studies=200, shift=0.5) <= most(200)


@pytest.mark.slow
def test_error_rate_if_seeds_are_added_by_hand() -> None:
    found = seeds_added_by_hand(300, last=50)
    assert sum(found) <= most(len(found))


@pytest.mark.slow
def test_until_resolved_finds_differences_and_keeps_the_error_rate() -> None:
    once, _, _ = found_differences(0.01, 10, 150)
    until, wrong, runs = found_differences(0.01, 10, 150, further=True)
    assert wrong <= most(150)
    assert until > once + 0.2
    assert runs > 60
    assert found_differences(0.02, 10, 150)[0] > 0.8


@pytest.mark.slow
def test_error_rate_of_networks_that_are_the_same() -> None:
    """Six names of one perceptron, trained on 24 subsets of the digits."""
    with one_thread():
        studies = [identical.study(number)["pairs"] for number in range(24)]
    for seeds in map(str, identical.SEEDS):
        assert sum(study[seeds]["compare"][0] > 0 for study in studies) <= most(len(studies))
