"""Scales, curves and colours of the figures."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from normkit.study.comparison import Comparison
from normkit.study.report.figures import curves, learning_rates, plot
from normkit.study.report.page import page


def colours(css: str) -> dict[str, dict[str, str]]:
    """The variables of each theme."""
    found: dict[str, dict[str, str]] = {}
    for theme, body in re.findall(r":root([^{,]*)\{([^}]*--[^}]*)\}", css.partition("@media print")[0]):
        found.setdefault(theme.strip(), {}).update(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body))
    return found


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_every_colour_can_be_seen_in_both_themes() -> None:
    themes = colours(page.style())
    assert len(themes) == 3
    assert contrast(themes[""]["paper"], "#ffffff") < 1.1
    # Chosen by the system or by the button, the dark theme is the same.
    assert themes[':not([data-theme="light"])'] == themes['[data-theme="dark"]']
    for theme in themes.values():
        assert set(theme) == set(themes[""])
        for text, grounds in {
            "ink": ("paper", "card", "wash"),
            "muted": ("paper", "card", "wash"),
            "link": ("paper", "card", "wash"),
            "good": ("good-wash", "paper", "card"),
            "bad": ("bad-wash", "paper", "card"),
            "open": ("open-wash", "paper", "card"),
        }.items():
            for ground in grounds:
                # AA for text.
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["ink"], theme["bad-wash"]) >= 4.5
        for method in plot.MARKERS:
            for ground in ("paper", "card"):
                # AA for what is no text.
                assert contrast(theme[method.replace("_", "-")], theme[ground]) >= 3, method


# Outliers


@given(st.lists(st.floats(0.1, 0.2), min_size=8, max_size=40), st.floats(1, 1e3), st.booleans())
def test_one_outlier_does_not_squeeze_the_others(values: list[float], far: float, downward: bool) -> None:
    assume(max(values) - min(values) > 1e-3)
    sign = -1 if downward else 1
    rows = [[sign * v for v in values[i::4]] for i in range(4)]
    rows.append([sign * far, sign * 1.1 * far])
    end = plot.cut(rows, [row[0] for row in rows], downward)
    assert end is not None
    # No mark of the others is lost; the outlier is beyond.
    assert all(sign * row[0] <= sign * end for row in rows[:4])
    assert sign * end < far


def test_an_axis_without_outliers_is_not_cut() -> None:
    assert plot.cut([[0.1, 0.12], [0.13, 0.15], [0.2, 0.22]], [0.11, 0.14, 0.21]) is None
    assert plot.cut([[0.1, 0.12], [0.8, 0.9]], [0.11, 0.85]) is None, "of two rows, none is an outlier"
    assert plot.cut([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]], [0.1] * 3) is None
    assert plot.cut([], []) is None


def test_a_single_seed_that_is_far_off_is_cut_too() -> None:
    rows = [[0.1, 0.11, 0.12, 0.13, 0.14]] * 3 + [[0.1, 0.11, 0.12, 0.13, 0.9]]
    assert plot.cut(rows, [0.12] * 3 + [0.14]) == 0.14


def test_rates_as_good_as_the_best_are_those_around_it(found: Comparison) -> None:
    points = {0.01: (0.109, True), 0.1: (0.1, True), 1.0: (0.2, True), 10.0: (0.1, True)}
    assert found.design.smallest == 0.01
    assert learning_rates.near_best(found, points) == (0.01, 0.1), "beyond a rate that is worse there is another valley"
    higher = replace(found, metric=replace(found.metric, higher_is_better=True))
    assert learning_rates.near_best(higher, points) == (1.0, 1.0)


# Reading back


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_lie_inside_their_scale(one: float, other: float, log: bool) -> None:
    low, high = plot.around([one, other], log=log)
    assert low < min(one, other)
    assert high > max(one, other)
    scale = plot.Scale(low, high, 0, 100, log)
    ticks = scale.ticks(5)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 11
    # A hair beyond an end is allowed, so that a round end has its tick.
    assert all(-0.5 <= scale(tick) <= 100.5 for tick in ticks)


@given(st.floats(0.01, 1), st.floats(1.7, 1e4))
def test_a_log_scale_has_ticks(low: float, ratio: float) -> None:
    assert len(plot.Scale(low, low * ratio, 0, 1, log=True).ticks(5)) >= 1


def test_a_curve_is_the_geometric_mean_of_smoothed_losses() -> None:
    losses = np.random.default_rng(0).uniform(0.1, 3, (5, 40))
    curve = curves.mean_curve(losses.tolist(), 10)
    smoothed = np.stack([np.convolve(run, np.ones(10) / 10, "valid") for run in losses])
    assert curve.steps == list(range(10, 41))
    # Sums of ten numbers in another order, in double precision.
    np.testing.assert_allclose(curve.value, np.exp(np.log(smoothed).mean(0)), rtol=1e-12)
    from scipy import stats

    low, high = stats.t.interval(0.95, 4, np.log(smoothed).mean(0), stats.sem(np.log(smoothed), axis=0))
    np.testing.assert_allclose(curve.low, np.exp(low), rtol=1e-9)
    np.testing.assert_allclose(curve.high, np.exp(high), rtol=1e-9)


def test_a_curve_goes_as_far_as_two_runs_do() -> None:
    curve = curves.mean_curve([[1.0] * 50, [2.0] * 30, [3.0] * 10], 5)
    assert curve.steps[-1] == 30
    assert curve.value[-1] == pytest.approx(math.sqrt(2))
    assert curves.mean_curve([], 5).steps == []
    assert min(curves.mean_curve([[-1.0, 2.0]] * 2, 1).value) == -1.0
