"""The statistics against scipy, against values computed by hand, and against simulations with a known truth."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from normkit.errors import ArgumentError
from normkit.study.analysis import stats

RUNS = 2000
"""Simulated studies; a share of 5 % is then known within three standard errors of 1.5 %."""
SLACK = 0.015


def test_t_interval_is_scipys() -> None:
    values = [0.1, 0.13, 0.09, 0.2, 0.12]
    interval = stats.t_interval(values, 0.9)
    expected = scipy_stats.t.interval(0.9, 4, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)
    assert interval.n == 5


def test_t_interval_needs_two_values() -> None:
    with pytest.raises(ArgumentError, match="at least two values, got 1: use more seeds"):
        stats.t_interval([0.1])


def test_t_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 0.1, (RUNS, 8))
    inside = [(i := stats.t_interval(row.tolist())).low <= 0.3 <= i.high for row in draws]
    assert abs(np.mean(inside) - 0.95) < SLACK


def test_t_test_is_scipys() -> None:
    values = [0.01, 0.03, -0.01, 0.02]
    assert stats.t_test(values) == pytest.approx(scipy_stats.ttest_rel(values, [0.0] * 4).pvalue, rel=1e-12)


@pytest.mark.parametrize(("values", "p"), [([0.0] * 5, 1.0), ([0.2] * 5, 1 / 16), ([-0.2] * 3, 1 / 4)])
def test_t_test_without_spread_counts_signs(values: list[float], p: float) -> None:
    assert stats.t_test(values) == p


def test_median_interval_holds_the_truth_at_least_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).lognormal(size=(RUNS, 21))
    inside = [(i := stats.median_interval(row.tolist())).low <= 1.0 <= i.high for row in draws]
    assert 0.95 - SLACK < np.mean(inside) < 0.99


def test_median_of_few_values_has_no_bounds() -> None:
    assert stats.median_interval([1.0, 2.0]) == stats.Interval(1.5, -math.inf, math.inf, 2)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 but never below the one before.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    ps = np.random.default_rng(2).uniform(size=(RUNS, 12))
    wrong = [min(stats.holm(row.tolist())) < 0.05 for row in ps]
    assert np.mean(wrong) < 0.05 + SLACK


def test_log2_ratios_exact() -> None:
    assert stats.log2_ratios([100, 50], [50, 100], cap=400) == ([1.0, -1.0], "exact")


def test_censored_steps_give_a_bound_on_the_true_mean() -> None:
    rng = np.random.default_rng(3)
    slow, fast = rng.integers(150, 900, 200), rng.integers(40, 200, 200)
    cap = 400
    true = float(np.mean(np.log2(slow / fast)))
    seen = [int(s) if s <= cap else None for s in slow]
    ratios, bound = stats.log2_ratios(seen, fast.tolist(), cap) or ([], "exact")
    assert bound == "at least"
    assert np.mean(ratios) < true
    ratios, bound = stats.log2_ratios(fast.tolist(), seen, cap) or ([], "exact")
    assert bound == "at most"
    assert np.mean(ratios) > -true


def test_steps_censored_on_both_sides_say_nothing() -> None:
    ratios = stats.log2_ratios([None, 50], [50, None], cap=400)
    assert ratios is not None
    assert ratios[1] == "unknown"


def test_arrival_counts_from_the_first_full_window() -> None:
    assert stats.arrival([0.7, 0.5, 0.4], window=20, target=0.5) == 21
    assert stats.arrival([0.7, 0.6], window=20, target=0.5) is None


@pytest.mark.parametrize(
    ("steps", "median"),
    [
        ([10, 30, 20], (20.0, False)),
        ([10, 20, 30, None], (25.0, False)),
        ([10, 20, None, None], (110.0, True)),
        ([None, None], (200.0, True)),
        ([], None),
    ],
)
def test_median_steps(steps: list[int | None], median: tuple[float, bool] | None) -> None:
    assert stats.median_steps(steps, cap=200) == median
