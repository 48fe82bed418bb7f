"""The choice of learning rates: the best one, the common one among those that cannot be told apart, early discards."""

from dataclasses import replace

import numpy as np
from benchmarks.training.simulated import SIZE, Simulation, parabola

from normkit.study.training import tuning
from normkit.study.training.design import FIRST_PART, Design, design
from normkit.study.training.trial import Run, Setting, Trial
from normkit.study.training.tuning import tuned

Errors = dict[str, tuple[float, float, float]]


def settings(errors: Errors, exchanged: int | None = None, **change: object) -> dict[str, Setting | None]:
    """The settings by errors at three rates; the two tuning seeds are 0.01 above and below, or below and above."""
    plan = replace(design(tuple(errors), (8,), 2, 3, 50, 0), **change)  # type: ignore[arg-type]
    runs = {}
    for method, found in errors.items():
        for number, (rate, error) in enumerate(zip(plan.rates, found, strict=True)):
            shifts = (-0.01, 0.01) if number == exchanged else (0.01, -0.01)
            for seed, shift in zip(plan.tuning_seeds, shifts, strict=True):
                trial = Trial("tune", method, 8, rate, seed)
                runs[trial] = Run(trial, "trained", validation_error=error + shift, validation_loss=error)
    return {method: found.setting for method, found in tuned(plan, runs, 8).items()}


def rates_of(found: dict[str, Setting | None]) -> list[float | None]:
    return [setting and setting[0] for setting in found.values()]


def run(rate: float, seed: int, error: float, loss: float = 1.0, options: tuple[tuple[str, float], ...] = ()) -> Run:
    trial = Trial("tune", "none", 8, rate, seed, options)
    return Run(trial, "trained", validation_error=error, validation_loss=loss)


def best(plan: Design, runs: list[Run]) -> float | None:
    found = tuning.curve(plan, runs)
    return found and found.rates[found.best]


def test_the_rate_is_chosen_among_the_finalists() -> None:
    plan = design(("none",), (8,), 2, 3, 50, 0)
    first = [run(0.01, 0, 0.2), run(0.1, 0, 0.1), run(1.0, 0, 0.15)]
    assert best(plan, first) == 0.1
    # 1.0 is better on the second seed; 0.01 did not get one and is out.
    assert best(plan, [*first, run(0.1, 998, 0.4), run(1.0, 998, 0.1)]) == 1.0
    assert best(plan, [run(0.01, 0, 0.2, 0.5), run(0.1, 0, 0.2, 0.4)]) == 0.1
    assert best(plan, []) is None


def test_a_higher_metric_is_chosen_if_that_is_better() -> None:
    plan = replace(design(("none",), (8,), 2, 3, 50, 0), higher_is_better=True)
    assert best(plan, [run(0.01, 0, 0.2), run(0.1, 0, 0.9), run(1.0, 0, 0.15)]) == 0.1


def test_methods_share_a_lower_rate_that_cannot_be_told_from_their_own() -> None:
    errors: Errors = {"none": (0.5, 0.2, 0.205), "batch_norm": (0.5, 0.105, 0.1), "layer_norm": (0.5, 0.1, 0.12)}
    low, high = design(tuple(errors), (8,), 2, 3, 50, 0).rates[1:]
    assert rates_of(settings(errors)) == [low, high, low]
    # Both seeds of batch norm are worse at the lower rate, unless they are exchanged there.
    assert rates_of(settings(errors, confirm=True)) == [low, high, low]
    assert rates_of(settings(errors, exchanged=1, confirm=True)) == [low, low, low]


def test_no_method_takes_a_higher_rate_than_its_own() -> None:
    errors: Errors = {"none": (0.5, 0.1, 0.105), "batch_norm": (0.5, 0.3, 0.1), "layer_norm": (0.5, 0.3, 0.1)}
    low, high = design(tuple(errors), (8,), 2, 3, 50, 0).rates[1:]
    assert rates_of(settings(errors, exchanged=2, confirm=True)) == [low, high, high]


def test_a_method_keeps_its_own_rate_if_that_is_clearly_better() -> None:
    errors: Errors = {"none": (0.1, 0.5, 0.9), "batch_norm": (0.9, 0.5, 0.1), "layer_norm": (0.9, 0.5, 0.1)}
    rates = design(tuple(errors), (8,), 2, 3, 50, 0).rates
    chosen = [setting and setting[0] for setting in settings(errors, confirm=True).values()]
    assert chosen == [rates[0], rates[2], rates[2]]


def test_options_are_chosen_at_the_best_rate_and_must_be_better() -> None:
    option = (("weight_decay", 0.1),)
    plan = replace(design(("none",), (8,), 2, 3, 50, 0), options=(option,))
    rates = plan.rates
    for error, expected in ((0.1, option), (0.2, ())):
        runs = [run(rates[0], s, 0.3) for s in plan.tuning_seeds] + [run(rates[1], s, 0.2) for s in plan.tuning_seeds]
        runs += [run(rates[1], seed, error, options=option) for seed in plan.tuning_seeds]
        assert tuned(plan, {each.trial: each for each in runs}, 8)["none"].setting == (rates[1], expected)


def test_hopeless_rates_are_trained_for_a_tenth_of_the_steps() -> None:
    curve = parabola(0.1, -1.5)
    study = Simulation(lambda _, rate: curve(rate), 2, 3, np.random.default_rng(0), 1e-4, {"discard": True})
    study.pairs()
    plan = study.workload.design
    tune = [trial for trial in study.workload.runs if trial.kind == "tune" and trial.method == "none"]
    short, full = ({t.rate for t in tune if t.part == part} for part in (FIRST_PART, 1.0))
    assert short == set(plan.rates)
    # The best rate, with one rate on each side.
    assert full == {0.01, 0.03162, 0.1}
    assert study.rate("none") == 0.03162


def test_the_best_rate_may_lie_beyond_the_range() -> None:
    curve = parabola(0.1, 0.5)
    study = Simulation(lambda _, rate: curve(rate), 2, 3, np.random.default_rng(0), 1e-4, {"discard": True})
    study.pairs()
    assert study.rate("none") == 3.162
    assert {t.rate for t in study.workload.runs if t.kind == "measure" and t.batch_size == SIZE} == {3.162}
