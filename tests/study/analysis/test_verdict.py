"""The rules on made-up runs whose truth is known: a clear winner, a tie, runs that did not train, claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from normkit.study import comparison
from normkit.study.analysis import cells, verdict
from normkit.study.execution.workload import Workload
from normkit.study.task import embedded
from normkit.study.training import design, tuning
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


def test_a_method_that_never_trained_does_not_lead() -> None:
    p = plan(("BN",))
    runs = made_up(p, {"none": around(0.6, 0.01, 1), "batch_norm": around(0.5, 0.01, 2)})
    assert conclude(p, runs).standings[0].leader == "batch_norm"
    for trial, run in runs.items():
        if (trial.kind, trial.method) == ("measure", "batch_norm"):
            runs[trial] = replace(run, state="untrained")
    found = conclude(p, runs)
    assert found.standings[0].leader == "none"
    assert found.standings[0].behind == ("batch_norm",)
    assert "no norm has the lowest error" in found.answer


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


def test_the_rate_is_chosen_among_the_finalists() -> None:
    def run(rate: float, seed: int, error: float, loss: float = 1.0) -> Run:
        return Run(Trial("tune", "none", 8, rate, seed), "trained", validation_error=error, validation_loss=loss)

    def rates(runs: list[Run]) -> list[float]:
        return [rate for rate, _ in tuning.ranking(runs)]

    first = [run(0.01, 0, 0.2), run(0.1, 0, 0.1), run(1.0, 0, 0.15)]
    assert rates(first) == [0.1, 1.0, 0.01]
    # 1.0 is better on the second seed; 0.01 did not get one and is out.
    assert rates([*first, run(0.1, 998, 0.4), run(1.0, 998, 0.1)]) == [1.0, 0.1]
    assert rates([run(0.01, 0, 0.2, 0.5), run(0.1, 0, 0.2, 0.4)])[0] == 0.1
    assert rates([]) == []


def test_a_best_rate_on_the_edge_is_reported() -> None:
    p = plan(("BN",))
    runs = made_up(p, dict.fromkeys(p.methods, [0.1] * SEEDS))
    assert not conclude(p, runs).on_edge
    trial = Trial("tune", "none", 8, p.rates[0], p.tuning_seeds[0])
    for seed in p.tuning_seeds:
        trial = Trial("tune", "none", 8, p.rates[0], seed)
        runs[trial] = Run(trial, "trained", validation_error=0.01)
    assert [cell.method for cell in conclude(p, runs).on_edge] == ["none"]
