"""Learning-rate sensitivity of made-up tuning runs whose truth is known."""

import numpy as np
import pytest

from normkit.study.analysis.sensitivity import good_rates, sensitivity
from normkit.study.training.trial import Run, Trial

RATES = (0.001, 0.01, 0.1, 1.0)


def runs(losses: dict[float, tuple[float | None, ...]], part: float = 1.0) -> list[Run]:
    return [
        Run(
            Trial("tune", "none", 8, rate, seed, part=part),
            "untrained" if loss is None else "trained",
            validation_error=0.1,
            validation_loss=loss,
        )
        for rate, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_it_is_the_mean_over_rates_minus_the_best() -> None:
    # The last rate breaks, so it counts as untrained: 2.3.
    found = sensitivity(RATES, runs({0.001: (1.4, 1.6), 0.01: (0.9, 1.1), 0.1: (0.4, 0.6), 1.0: (None, 5.0)}), [], 2.3)
    assert found is not None
    assert found.loss.value == pytest.approx((1.5 + 1.0 + 0.5 + 2.3) / 4 - 0.5)
    assert (found.loss.n, found.rates, found.stopped) == (8, 4, 0)


def test_a_rate_that_was_discarded_counts_with_its_last_loss() -> None:
    short = runs(dict.fromkeys(RATES, (2.0, 2.2)), part=0.1)
    found = sensitivity(RATES, runs({0.1: (0.5, 0.5), 1.0: (0.7, 0.7), 10.0: (0.4, 0.4)}), short, 2.3)
    assert found is not None
    # The best rate may lie beyond those over which the mean is taken.
    assert found.loss.value == pytest.approx((2.1 + 2.1 + 0.5 + 0.7) / 4 - 0.4)
    assert found.stopped == 2


def test_it_needs_two_runs_at_every_rate() -> None:
    assert sensitivity(RATES, runs(dict.fromkeys(RATES, (1.0,))), [], 2.3) is None
    assert sensitivity(RATES, runs(dict.fromkeys(RATES[1:], (1.0, 1.0))), [], 2.3) is None
    assert sensitivity(RATES, [], [], 2.3) is None


def test_the_interval_holds_the_truth() -> None:
    generator = np.random.default_rng(0)
    true = {0.001: 1.5, 0.01: 1.0, 0.1: 0.5, 1.0: 2.0}
    truth, held, count = 1.25 - 0.5, 0, 400
    for _ in range(count):
        drawn = {rate: tuple(loss + 0.05 * generator.standard_normal(2)) for rate, loss in true.items()}
        found = sensitivity(RATES, runs(drawn), [], 2.3)
        assert found is not None
        held += found.loss.low <= truth <= found.loss.high
    # 0.95 with four standard errors of a share of 400.
    assert held / count == pytest.approx(0.95, abs=0.044)


def test_good_rates_are_those_next_to_the_best() -> None:
    means = {0.001: 0.1, 0.01: 0.3, 0.1: 0.105, 1.0: 0.1, 10.0: 0.109}
    # 0.001 is as good, but a rate between is not.
    assert good_rates(dict(means) | {0.001: 0.101}, 0.01) == (0.1, 10.0)
    assert good_rates({}, 0.01) is None
