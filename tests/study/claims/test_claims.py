"""The rules of the experiments on made-up runs whose truth is known; the suite covers the claims of the catalog."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from made_up import prepared
from typer.testing import CliRunner

import normkit
from normkit import catalog, cli, study
from normkit.catalog import Text
from normkit.errors import ArgumentError
from normkit.study import claims, setup
from normkit.study.analysis import cells
from normkit.study.analysis.evidence import Evidence
from normkit.study.claims import measures
from normkit.study.claims.batch_norm import bn_3
from normkit.study.claims.experiment import SMALLEST, Experiment
from normkit.study.claims.judging import judged
from normkit.study.claims.workloads import MAIN, WORKLOADS
from normkit.study.report.writing.experiments import evidence as written
from normkit.study.report.writing.experiments import rule
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Trial

SEEDS = 8
STEPS = 100
PLAN = Design(("none", "batch_norm"), (8,), SEEDS, 3, STEPS, target_loss=0.5)
PLAIN, NORMED = ("made-up", "none", 8), ("made-up", "batch_norm", 8)
WORDS = Text("?", "？")


def table(of: Callable[[str, int, Trial], Run]) -> cells.Table:
    """Runs of both variants at every evaluation seed, made by `of(variant, number of the seed, trial)`."""
    runs: dict[Trial, Run] = {}
    for variant in PLAN.methods:
        for rate in PLAN.rates:
            for seed in PLAN.tuning_seeds:
                trial = Trial("tune", variant, 8, rate, seed)
                runs[trial] = Run(trial, "trained", validation_error=0.1 if rate == PLAN.rates[1] else 0.5)
        for i, seed in enumerate(PLAN.evaluation_seeds):
            trial = Trial("measure", variant, 8, PLAN.rates[1], seed)
            runs[trial] = of(variant, i, trial)
    return cells.cells(PLAN, runs, {})


def experiment(effect: measures.Effect, **changes: object) -> Experiment:
    given = {"claim": "BN-1", "name": "made up", "question": WORDS, "design": WORDS, "measure": WORDS}
    return Experiment(
        **given | {"unit": "points", "effect": effect, "cells": (PLAIN, NORMED), "show": measures.test_error} | changes  # type: ignore[arg-type]
    )


def judge(experiments: Sequence[Experiment], made: cells.Table) -> tuple[Evidence, ...]:
    return written(judged(experiments, {"made-up": made}, 0.05), "normkit compare")


def errors(difference: float, spread: float = 0.005, seed: int = 0, *, centred: bool = True) -> cells.Table:
    """Test errors of no norm higher than those of batch norm by `difference` on average, exactly if `centred`."""
    noise = np.random.default_rng(seed).normal(0, spread, SEEDS)
    noise -= noise.mean() if centred else 0.0

    def of(variant: str, i: int, trial: Trial) -> Run:
        error = 0.2 + (difference + float(noise[i]) if variant == "none" else 0.0)
        return Run(trial, "trained", test_error=error, losses=(1.0,) * STEPS)

    return table(of)


DIFFERENCE = measures.difference(PLAIN, NORMED)


@pytest.mark.parametrize(
    ("difference", "spread", "finding"),
    [
        (0.05, 0.005, "supported"),
        (-0.05, 0.005, "contradicted"),
        # The effect is small and its interval narrow: no effect that matters.
        (0.001, 0.001, "contradicted"),
        # Five points, with eight seeds that scatter by twenty.
        (0.05, 0.2, "not resolved"),
    ],
)
def test_a_difference_is_judged_by_the_rule(difference: float, spread: float, finding: str) -> None:
    (evidence,) = judge([experiment(DIFFERENCE)], errors(difference, spread))
    assert evidence.finding == finding
    assert evidence.effect.n == SEEDS
    assert evidence.effect.low < evidence.effect.value < evidence.effect.high
    assert [len(variant.values) for variant in evidence.variants] == [SEEDS, SEEDS]
    assert evidence.repeat == "normkit compare --claims BN-1"


@pytest.mark.parametrize(
    ("difference", "spread", "both", "upper"),
    [
        (0.0, 0.001, "supported", "supported"),
        (0.05, 0.001, "contradicted", "contradicted"),
        (-0.05, 0.001, "contradicted", "supported"),
        (0.0, 0.05, "not resolved", "not resolved"),
    ],
)
def test_equality_is_shown_and_not_assumed(difference: float, spread: float, both: str, upper: str) -> None:
    asked = [experiment(DIFFERENCE, equivalence=True), experiment(DIFFERENCE, equivalence="upper")]
    found = judge(asked, errors(difference, spread))
    assert [evidence.finding for evidence in found] == [both, upper]
    assert [evidence.p_corrected for evidence in found] == [None, None]


def test_many_experiments_widen_each_others_intervals() -> None:
    made = errors(0.012, 0.012)
    (alone,) = judge([experiment(DIFFERENCE)], made)
    among = judge([experiment(DIFFERENCE)] * 30, made)
    assert alone.finding == "supported"
    assert {evidence.finding for evidence in among} == {"not resolved"}
    assert among[0].wide.low < alone.wide.low
    assert among[0].p_corrected == pytest.approx(min(1.0, 30 * (alone.p_corrected or 0.0)))


def test_true_nulls_are_seldom_called_effects() -> None:
    wrong = 0
    for seed in range(200):
        (evidence,) = judge([experiment(DIFFERENCE, smallest=0.0)], errors(0.0, 0.03, seed, centred=False))
        wrong += evidence.finding == "supported"
    # 2.5 % of 200 is 5: only one direction counts. More than 13 has a chance below 1 in 1000.
    assert wrong <= 13


def falling(step: int | None) -> tuple[float, ...]:
    """A loss that drops to 0 at a step, or never."""
    return (2.0,) * STEPS if step is None else (2.0,) * (step - 1) + (0.0,) * (STEPS - step + 1)


@pytest.mark.parametrize(
    ("plain", "normed", "finding", "bound"),
    [
        (70, 22, "supported", "exact"),
        (30, 30, "contradicted", "exact"),
        (22, 70, "contradicted", "exact"),
        (None, 22, "supported", "at least"),
        (22, None, "contradicted", "at most"),
        # A run that did not arrive bounds the ratio from below: it may be any number above.
        (None, 80, "not resolved", "at least"),
        (None, None, "not resolved", "unknown"),
    ],
)
def test_steps_that_were_not_reached_are_bounds(
    plain: int | None, normed: int | None, finding: str, bound: str
) -> None:
    drop = {"none": plain, "batch_norm": normed}
    made = table(lambda variant, i, trial: Run(trial, "trained", losses=falling(drop[variant]), test_error=0.1))
    steps = experiment(measures.steps(PLAIN, NORMED), unit="log2 ratio", show=measures.steps_to_target)
    (evidence,) = judge([steps], made)
    assert (evidence.finding, evidence.bound) == (finding, bound)


def test_what_is_missing_is_not_judged() -> None:
    made = table(lambda variant, i, trial: Run(trial, "failed", "no room"))
    assert judge([experiment(DIFFERENCE)], made) == ()
    elsewhere = experiment(DIFFERENCE, cells=(("other", "none", 8),))
    assert judge([elsewhere], errors(0.1)) == ()
    assert judge([experiment(DIFFERENCE, cells=(("made-up", "group_norm", 8),))], errors(0.1)) == ()


def test_the_highest_rate_that_trains_is_read_from_the_tuning_runs() -> None:
    runs = {}
    for rate, loss in ((0.01, 1.0), (0.1, 0.3), (1.0, 2.0)):
        trial = Trial("tune", "none", 8, rate, 999)
        runs[rate] = Run(trial, "trained", losses=(2.0,) * 50 + (loss,) * 50, validation_error=0.1)
    cell = replace(errors(0.0)["none", 8], tuning=tuple(runs.values()))
    assert measures.highest_rates(cell, target=0.5) == {999: -1.0}
    # Where no rate trains it is half a decade below the lowest that was tried.
    assert measures.highest_rates(cell, target=0.1) == {999: pytest.approx(-2.5)}


def test_every_claim_of_the_catalog_has_an_experiment_that_can_be_run() -> None:
    assert {each.claim for each in claims.SUITE if not each.extended} == set(catalog.CLAIMS)
    for full in (False, True):
        main, *workloads = prepared(full=full)[0]
        assert main.name == MAIN
        designs = {workload.name: workload.design for workload in (main, *workloads)}
        for each in claims.chosen(full=full):
            for workload, variant, size in each.cells:
                assert variant in designs[workload].methods, (each.claim, each.name)
                assert size in designs[workload].batch_sizes


@pytest.mark.parametrize("name", WORKLOADS)
def test_variants_of_a_workload_start_from_the_same_weights(name: str) -> None:
    workload = WORKLOADS[name](False)
    if name.startswith("stylizer") or any(variant.endswith(":init") for variant in workload.design.methods):
        plain = [variant for variant in workload.design.methods if not variant.endswith((":init", "weight_norm"))]
    else:
        plain = list(workload.design.methods)
    first, *others = ([p for p in workload.task.build(variant, 5).parameters() if p.dim() > 1] for variant in plain)
    for other in others:
        assert [p.shape for p in other] == [p.shape for p in first]
        assert all((a == b).all() for a, b in zip(first, other, strict=True))


def test_every_text_is_in_both_languages_and_every_threshold_is_named() -> None:
    for each in claims.SUITE:
        for text in (each.question, each.design, each.measure, rule(each)):
            assert not re.search("[\u4e00-\u9fff]", text.to("en")), text
            assert re.search("[\u4e00-\u9fff]", text.to("zh")), text
        assert each.unit in SMALLEST
        assert each.matters > 0


def test_names_of_experiments_are_their_own() -> None:
    names = [(each.claim, each.name) for each in claims.SUITE]
    assert len(names) == len(set(names))


def test_an_unknown_claim_is_answered_with_the_nearest(tmp_path: object) -> None:
    with pytest.raises(ArgumentError, match="no claim is called 'BN-7': did you mean 'BN-"):
        normkit.compare(claims=["BN-7"], out=str(tmp_path))


def test_claims_are_found_in_any_case() -> None:
    assert {each.claim for each in claims.chosen(["dyt-1", " GN-2"])} == {"DyT-1", "GN-2"}
    with pytest.raises(ArgumentError, match="no claim is called 'dyt-9': did you mean 'DyT-"):
        claims.chosen(["dyt-9"])


def test_named_methods_are_trained_and_no_others() -> None:
    (main,), asked = prepared(methods=["DyT"])
    assert main.design.methods == ("none", "dynamic_tanh")
    assert asked == ()
    # Asked for, a claim brings the methods that it compares, and not those of other claims on the same task.
    workloads, asked = prepared(methods=["DyT"], claims=["DyT-2"])
    assert {each.claim for each in asked} == {"DyT-2"}
    methods = {workload.name: workload.design.methods for workload in workloads}
    both = ("layer_norm", "dynamic_tanh")
    assert methods == {"digits": ("none", "dynamic_tanh"), "tokens": both, "characters-adamw-32": both}
    assert prepared(methods=["DyT"], claims=False)[1] == ()


def test_no_workload_trains_what_no_experiment_uses() -> None:
    for full in (False, True):
        workloads, asked = prepared(full=full)
        used = {(workload, variant) for each in asked for workload, variant, _ in each.cells}
        for workload in workloads[1:]:
            assert {(workload.name, variant) for variant in workload.design.methods} <= used


@pytest.mark.parametrize(
    ("given", "ending"),
    [
        ({}, " --claims all"),
        ({"methods": ["BN"]}, ""),
        ({"claims": False}, ""),
        ({"methods": ["BN"], "claims": ["DyT-1"]}, " --claims DyT-1"),
    ],
)
def test_the_command_of_a_report_repeats_the_study(given: dict[str, object], ending: str) -> None:
    """Its line names the methods, so it must name the claims too, which would be left out otherwise."""
    workloads, asked = prepared(**given)
    line = study._command(workloads[0].design, None, given.get("claims"), "methods" in given, full=False)  # type: ignore[arg-type]
    assert line.endswith(f"--seed 0{ending}")
    seen: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.study, "plan", lambda task, **options: seen.update(options))
        assert CliRunner().invoke(cli.app, [*line.split()[1:], "--dry-run"]).exit_code == 0
    names = [name for name in inspect.signature(setup.prepared).parameters if name in seen]
    again = prepared(**{name: seen[name] for name in names})
    assert again[1] == asked
    assert [each.design for each in again[0]] == [each.design for each in workloads]


def test_experiments_that_the_comparison_cannot_serve_are_left_out() -> None:
    workloads, asked = prepared(methods=["LN"], batch_sizes=(4,), seeds=2, trials=3, steps=40, claims=["BN-4"])
    assert {each.name for each in asked} == {"perceptron, N = 2", "perceptron, N = 4"}
    assert {workload.name for workload in workloads} == {MAIN, "mlp-2", "mlp-4"}
    assert bn_3.EXPERIMENTS
