"""The rules on made-up runs whose truth is known: a clear winner, a tie, runs that did not train, claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from normkit.study import comparison
from normkit.study.analysis import cells, verdict
from normkit.study.execution.workload import Workload
from normkit.study.task import embedded
from normkit.study.training import design
from normkit.study.training.trial import Run, Trial

Errors = Mapping[str, Sequence[float]]
SEEDS = 8
STEPS = 100
DIGITS = embedded.digits()


def plan(methods: tuple[str, ...], sizes: tuple[int, ...] = (8,)) -> design.Design:
    return design.design(methods, sizes, SEEDS, 3, STEPS, 0)


def made_up(
    plan: design.Design,
    errors: Errors,
    *,
    state: str = "trained",
    losses: Callable[[str], Sequence[float]] = lambda _: (2.0,) * STEPS,
    gap: float | None = 0.0,
) -> dict[Trial, Run]:
    """Runs with these test errors at every batch size; the middle rate wins the tuning."""
    runs: dict[Trial, Run] = {}
    for size in plan.batch_sizes:
        for method in plan.methods:
            for seed in plan.tuning_seeds:
                for rate in plan.rates:
                    trial = Trial("tune", method, size, rate, seed)
                    runs[trial] = Run(trial, "trained", validation_error=0.1 if rate == plan.rates[1] else 0.5)
            for seed, error in zip(plan.evaluation_seeds, errors[method], strict=True):
                trial = Trial("measure", method, size, plan.rates[1], seed)
                runs[trial] = Run(
                    trial,
                    state,  # type: ignore[arg-type]
                    losses=tuple(losses(method)),
                    train_error=error,
                    test_error=error,
                    gap=gap,
                )
    return runs


def conclude(plan: design.Design, runs: Mapping[Trial, Run]) -> comparison.Comparison:
    times = {size: {m: [0.001 * (1 + i)] * 30 for i, m in enumerate(plan.methods)} for size in plan.batch_sizes}
    workload = Workload("digits", DIGITS, plan, runs=dict(runs), times=times)
    return comparison.conclude(workload, complete=True, machine={}, command="normkit compare", seconds=1.0)


def around(mean: float, spread: float, seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(mean, spread, SEEDS).tolist()


def test_a_clear_winner_is_named() -> None:
    p = plan(("BN", "GN"))
    errors = {"none": around(0.3, 0.01, 1), "batch_norm": around(0.1, 0.01, 2), "group_norm": around(0.2, 0.01, 3)}
    found = conclude(p, made_up(p, errors))
    (standing,) = found.standings
    assert standing.leader == "batch_norm"
    assert set(standing.behind) == {"none", "group_norm"}
    assert standing.front == ("batch_norm",)
    assert found.answer.startswith(
        "Use batch norm at batch size 8. On noisy 8x8 digits at batch size 8, batch norm has"
    )
    assert found.answer.endswith(": every other method is measurably worse.")


def test_a_tie_is_not_resolved() -> None:
    p = plan(("BN", "GN"))
    errors = {"none": around(0.4, 0.02, 1), "batch_norm": around(0.1, 0.02, 2), "group_norm": around(0.105, 0.02, 3)}
    found = conclude(p, made_up(p, errors))
    (standing,) = found.standings
    assert set(standing.front) == {"batch_norm", "group_norm"}
    assert standing.behind == ("none",)
    assert found.answer.startswith("Use group norm or batch norm at batch size 8.")
    assert "the difference to batch norm is within what 8 seeds can resolve" in found.answer


def test_a_difference_too_small_to_matter_is_equal() -> None:
    p = plan(("BN",))
    base = around(0.1, 0.02, 1)
    # Significant beyond doubt, but a tenth of a point.
    found = conclude(p, made_up(p, {"none": base, "batch_norm": [e - 0.001 - i * 1e-5 for i, e in enumerate(base)]}))
    assert found.pairs[0].p_corrected < 1e-6
    assert found.pairs[0].relation == "equal"
    assert found.standings[0].equal_to == ("none",)


def test_a_method_that_any_other_beats_is_behind() -> None:
    p = plan(("BN", "GN"))
    second = around(0.14, 0.02, 5)
    # The leader's seeds scatter too much to beat the third; the second goes with it seed by seed.
    leader = [0.02, 0.25, 0.01, 0.22, 0.03, 0.2, 0.02, 0.25]
    third = [error + 0.05 + i * 1e-3 for i, error in enumerate(second)]
    found = conclude(p, made_up(p, {"none": third, "batch_norm": leader, "group_norm": second}))
    assert verdict.relations("batch_norm", 8, found.pairs)["none"] == "not resolved"
    assert found.standings[0].leader == "batch_norm"
    assert found.standings[0].behind == ("none",)


def test_when_nothing_trains_nobody_wins() -> None:
    p = plan(("BN",))
    found = conclude(p, made_up(p, dict.fromkeys(p.methods, [0.9] * SEEDS), state="untrained"))
    assert found.standings[0].leader is None
    assert found.answer == "No method trained at batch size 8."
    assert found.cell("batch_norm", 8).untrained == SEEDS


def test_who_is_behind_follows_from_the_numbers_alone() -> None:
    """Batch norm has the lowest error, whatever the states of its runs."""
    p = plan(("BN",))
    runs = made_up(p, {"none": around(0.6, 0.01, 1), "batch_norm": around(0.5, 0.01, 2)})
    for trial, run in runs.items():
        if (trial.kind, trial.method) == ("measure", "batch_norm"):
            runs[trial] = replace(run, state="untrained")
    found = conclude(p, runs)
    assert found.standings[0].leader == "batch_norm"
    assert found.standings[0].behind == ("none",)


@pytest.mark.parametrize("higher", [False, True])
def test_the_summary_never_contradicts_the_table(higher: bool) -> None:
    rng = np.random.default_rng(3)
    methods = ("BN", "LN", "GN")
    for _ in range(60):
        p = replace(plan(methods), chance=0.5, higher_is_better=higher)
        errors = {m: rng.normal(rng.uniform(0.42, 0.52), 0.02, SEEDS).tolist() for m in p.methods}
        runs = made_up(p, errors)
        for trial, run in runs.items():
            if trial.kind == "measure" and rng.random() < 0.5:
                runs[trial] = replace(run, state="untrained")
            elif run.validation_error is not None and higher:
                runs[trial] = replace(run, validation_error=1 - run.validation_error)
        found = conclude(p, runs)
        (standing,) = found.standings
        mean = {cell.method: p.sign * cell.error.value for cell in found.cells if cell.error}
        best = min(mean, key=mean.__getitem__)
        assert standing.leader in (best, None)
        for method in standing.behind:
            assert "worse" in verdict.relations(method, 8, found.pairs).values()
        ends = [cell.error.low if higher else -cell.error.high for cell in found.cells if cell.error]
        # If a method surely beats guessing, the answer must not be that none trained.
        assert standing.leader is not None or max(ends) < p.sign * -0.5


def test_a_method_whose_mean_is_no_better_than_guessing_does_not_lead() -> None:
    """One of eight runs trained, and the others are worse than guessing; a method that broke off is at guessing."""
    p = replace(plan(("BN",)), chance=0.5)
    runs = made_up(p, {"none": [0.4] + [0.53] * (SEEDS - 1), "batch_norm": [0.5] * SEEDS}, state="untrained")
    first = next(trial for trial in runs if (trial.kind, trial.method) == ("measure", "none"))
    runs[first] = replace(runs[first], state="trained")
    assert conclude(p, runs).standings[0].leader is None


def test_few_test_samples_can_show_by_many_seeds_that_a_method_trains() -> None:
    """No run beats guessing by itself, but their mean does."""
    p = replace(plan(("BN",)), chance=0.5)
    runs = made_up(p, {"none": around(0.4, 0.03, 1), "batch_norm": around(0.41, 0.03, 2)}, state="untrained")
    assert conclude(p, runs).standings[0].leader == "none"


def test_a_metric_of_the_other_direction_gives_the_mirrored_verdict() -> None:
    p = plan(("BN", "GN", "LN"))
    means = {"none": 0.3, "batch_norm": 0.1, "group_norm": 0.11, "layer_norm": 0.2}
    errors = {method: around(mean, 0.02, number) for number, (method, mean) in enumerate(means.items())}
    usual = conclude(p, made_up(p, errors))
    turned = replace(p, higher_is_better=True)
    runs = made_up(turned, {method: [1 - error for error in row] for method, row in errors.items()})
    runs = {
        trial: replace(run, validation_error=1 - run.validation_error) if run.validation_error is not None else run
        for trial, run in runs.items()
    }
    mirrored = conclude(turned, runs)
    assert mirrored.standings == usual.standings
    assert usual.standings[0].leader == "batch_norm"
    assert [pair.relation for pair in mirrored.pairs] == [pair.relation for pair in usual.pairs]
    for pair, other in zip(mirrored.pairs, usual.pairs, strict=True):
        assert pair.difference.value == pytest.approx(other.difference.value)
    assert [cell.rate for cell in mirrored.cells] == [cell.rate for cell in usual.cells]


def test_runs_that_did_not_train_stay_in_the_mean() -> None:
    p = plan(("BN",))
    runs = made_up(p, {"none": [0.1] * SEEDS, "batch_norm": [0.1] * SEEDS})
    trial = Trial("measure", "none", 8, p.rates[1], p.evaluation_seeds[0])
    runs[trial] = Run(trial, "untrained", train_error=0.9, test_error=0.9)
    cell = conclude(p, runs).cell("none", 8)
    assert cell.untrained == 1
    assert cell.error is not None
    assert cell.error.value == pytest.approx((0.1 * 7 + 0.9) / 8)


def test_equal_methods_are_seldom_distinguished() -> None:
    p = plan(("BN", "LN", "IN", "GN", "WN"), (2, 8))
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        runs = made_up(p, {m: rng.normal(0.1, 0.03, SEEDS).tolist() for m in p.methods})
        table = cells.cells(p, runs, {})
        wrong += any(pair.relation in ("better", "worse") for pair in verdict.pairs(p, table))
    # 5 % of 100 is 5; more than 12 has a chance below 1 in 600.
    assert wrong <= 12


def test_safe_methods_lead_at_every_batch_size() -> None:
    p = plan(("BN", "GN"), (2, 8))
    low, high = around(0.1, 0.005, 1), around(0.3, 0.005, 2)
    runs = made_up(p, {"none": high, "batch_norm": low, "group_norm": around(0.1, 0.005, 3)})
    for seed, error in zip(p.evaluation_seeds, high, strict=True):
        trial = Trial("measure", "batch_norm", 2, p.rates[1], seed)
        runs[trial] = Run(trial, "trained", test_error=error, train_error=error)
    assert conclude(p, runs).safe == ("group_norm",)


def test_a_best_rate_on_the_edge_is_reported() -> None:
    p = plan(("BN",))
    runs = made_up(p, dict.fromkeys(p.methods, [0.1] * SEEDS))
    assert not conclude(p, runs).on_edge
    trial = Trial("tune", "none", 8, p.rates[0], p.tuning_seeds[0])
    for seed in p.tuning_seeds:
        trial = Trial("tune", "none", 8, p.rates[0], seed)
        runs[trial] = Run(trial, "trained", validation_error=0.01)
    assert [cell.method for cell in conclude(p, runs).on_edge] == ["none"]


def at_rates(plan: design.Design, table: Mapping[str, Mapping[float, Sequence[float]]]) -> dict[Trial, Run]:
    """Tuning runs in which each method prefers the first rate of its row, barely; and results at all of its rates."""
    runs: dict[Trial, Run] = {}
    for method, rows in table.items():
        for seed, shift in zip(plan.tuning_seeds, (0.01, -0.01), strict=True):
            for rate in plan.rates:
                trial = Trial("tune", method, 8, rate, seed)
                error = 0.1 + 0.02 * list(rows).index(rate) if rate in rows else 0.9
                runs[trial] = Run(trial, "trained", validation_error=error + shift, validation_loss=1.0)
        for rate, errors in rows.items():
            for seed, error in zip(plan.evaluation_seeds, errors, strict=False):
                trial = Trial("measure", method, 8, rate, seed)
                runs[trial] = Run(trial, "trained", test_error=error)
    return runs


def test_a_difference_that_the_rates_make_is_none() -> None:
    """By luck the second method got a worse rate; at the rate of the first one it is the same."""
    p = replace(plan(("BN",)), confirm=True)
    low, high = p.rates[:2]
    good, bad = around(0.1, 0.01, 1), around(0.2, 0.01, 2)
    table = {"none": {low: good, high: bad}, "batch_norm": {high: bad, low: around(0.1, 0.01, 3)}}
    runs = at_rates(p, table)
    measured = [run for trial, run in runs.items() if trial.kind == "measure"]
    alone = {trial: run for trial, run in runs.items() if trial.kind == "tune"}
    alone |= {r.trial: r for r in measured if r.trial.rate == (low if r.trial.method == "none" else high)}
    (before,), needs = verdict.judge(p, cells.cells(p, alone, {}))
    assert before.relation == "not resolved"
    assert needs == (verdict.Need("batch_norm", 8, (low, ()), SEEDS),)
    # Without confirmation the difference would be called one.
    (usual,) = verdict.pairs(replace(p, confirm=False), cells.cells(replace(p, confirm=False), alone, {}))
    assert usual.relation == "better"
    (after,), needs = verdict.judge(p, cells.cells(p, runs, {}))
    assert (after.relation, needs) == ("not resolved", ())
    assert after.difference.low < 0 < after.difference.high
    assert [(each.method, each.rate) for each in after.at_rates] == [("none", high), ("batch_norm", low)]


def test_a_difference_at_all_rates_is_one() -> None:
    p = replace(plan(("BN",)), confirm=True)
    low, high = p.rates[:2]
    table = {
        "none": {low: around(0.1, 0.01, 1)},
        "batch_norm": {high: around(0.2, 0.01, 2), low: around(0.25, 0.01, 3)},
    }
    (pair,), needs = verdict.judge(p, cells.cells(p, at_rates(p, table), {}))
    assert (pair.relation, pair.look, needs) == ("better", 1, ())


def test_of_a_higher_metric_the_higher_one_is_better() -> None:
    p = plan(("BN",))
    errors = {"none": around(0.9, 0.01, 1), "batch_norm": around(0.6, 0.01, 2)}
    assert conclude(p, made_up(p, errors)).standings[0].leader == "batch_norm"
    turned = replace(p, higher_is_better=True)
    runs = made_up(p, errors)
    scores = {t: replace(run, validation_error=1 - (run.validation_error or 0.0)) for t, run in runs.items()}
    found = conclude(turned, scores)
    assert found.standings[0].leader == "none"
    assert found.pairs[0].relation == "better"
    assert found.pairs[0].difference.value > 0


def test_each_report_spends_a_part_of_alpha() -> None:
    p = replace(plan(("BN",)), seeds=40)
    looks = verdict.looks_of(p, [10, 20, 40, 80])
    assert [look.seeds for look in looks] == [10, 20, 40]
    assert [look.alpha for look in looks] == [0.04, 0.005, 0.0025]
    # A repeated report is the same one.
    assert verdict.looks_of(replace(p, seeds=10), [10, 20]) == looks[:1]
    assert sum(look.alpha for look in verdict.looks_of(p, [*range(2, 40), 40])) < p.alpha


def test_an_earlier_report_keeps_its_verdict_until_the_difference_vanishes() -> None:
    p = replace(plan(("BN",)), seeds=2 * SEEDS)
    looks = verdict.looks_of(p, [SEEDS])
    first = around(0.1, 0.01, 1)
    for later, relation in ((0.14, "better"), (0.03, "not resolved")):
        errors = {
            "none": first + around(0.1, 0.1, 2),
            "batch_norm": around(0.13, 0.01, 3) + around(later, 0.1, 4),
        }
        (pair,) = verdict.pairs(p, cells.cells(p, made_up(p, errors), {}), looks)
        assert pair.relation == relation
        assert pair.look == (relation == "better")


def test_a_pair_that_is_not_resolved_says_what_these_seeds_can_find() -> None:
    p = plan(("BN",))
    errors = {"none": around(0.1, 0.02, 1), "batch_norm": around(0.105, 0.02, 2)}
    (pair,) = conclude(p, made_up(p, errors)).pairs
    assert pair.relation == "not resolved"
    assert pair.detectable is not None
    assert pair.more_seeds is not None
    assert pair.detectable > p.smallest
    spread = float(np.std(np.subtract(errors["batch_norm"], errors["none"]), ddof=1))
    # t quantiles of 7 degrees of freedom at 1 - 0.04 / 2 and 0.8.
    assert pair.detectable == pytest.approx((2.517 + 0.896) * spread / SEEDS**0.5, rel=1e-3)
    count = SEEDS + pair.more_seeds
    assert (2.06 + 0.842) * spread / count**0.5 < p.smallest < (2.2 + 0.9) * spread / (count - 1) ** 0.5
