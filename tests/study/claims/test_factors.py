"""The experiments on Transformers: both findings of each rule on made-up runs; measures against their definitions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from normkit.study import claims
from normkit.study.analysis import cells
from normkit.study.analysis.cells import Cell
from normkit.study.claims import measures
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.factors import ALL, USUAL, WORKLOADS
from normkit.study.claims.judging import judged
from normkit.study.claims.layer_norm import qk_1, rms_1
from normkit.study.claims.placement import p_2
from normkit.study.claims.pointwise import dyt_2
from normkit.study.report.writing.experiments import evidence as written
from normkit.study.training.trial import Run, Trial
from normkit.study.training.tuning import tuned

Loss = Callable[[str, str, float], float]
"""(workload, variant, rate) -> loss."""


def tables(experiment: Experiment, loss: Loss, noise: float = 0.01) -> dict[str, cells.Table]:
    """Runs of an experiment's workloads whose losses are known up to noise."""
    draw = np.random.default_rng(0)
    found = {}
    for name in experiment.workloads:
        design = WORKLOADS[name](False).design
        runs = {}
        for variant in design.methods:
            for rate in design.rates:
                for seed in design.tuning_seeds:
                    value = loss(name, variant, rate) + noise * float(draw.standard_normal())
                    trial = Trial("tune", variant, design.batch_sizes[0], rate, seed)
                    runs[trial] = Run(
                        trial, "trained", losses=(5.0,) * 20, validation_error=value, validation_loss=value
                    )
        # The choice follows the noise, and so do the seeds' trials.
        for variant, choice in tuned(design, runs, design.batch_sizes[0]).items():
            best = choice.setting[0]
            for seed in design.evaluation_seeds:
                trial = Trial("measure", variant, design.batch_sizes[0], best, seed)
                value = loss(name, variant, best) + noise * float(draw.standard_normal())
                runs[trial] = Run(trial, "trained", losses=(5.0,) * 20, test_error=value)
        found[name] = cells.cells(design, runs, {})
    return found


def finding(experiment: Experiment, loss: Loss, noise: float = 0.01) -> str:
    (judgement,) = judged([experiment], tables(experiment, loss, noise), 0.05)
    return judgement.finding


def named(experiments: tuple[Experiment, ...], start: str) -> Experiment:
    return next(each for each in experiments if each.name.startswith(start))


def of_variants(**levels: float) -> Loss:
    """A loss by variant, higher at rates that are not 0.01 or 0.1."""
    return lambda workload, variant, rate: (
        levels[variant.replace(":", "_")] + 0.3 * min(abs(np.log10(rate) + 2), abs(np.log10(rate) + 1))
    )


def by_workload(start: str, variant: str, more: float) -> Loss:
    """2.5, and `more` for one variant in the workloads whose names start so."""
    return lambda workload, v, rate: (
        2.5 + more * (workload.startswith(start) and v == variant) + abs(np.log10(rate) + 1.5)
    )


def by_rate(variant: str, above: float, more: float) -> Loss:
    """2.5 at the lowest rates, and for a variant `more` at rates above one."""
    return lambda workload, v, rate: 2.5 + (more if v == variant and rate > above else 0.0) + 0.01 * (rate > 0.02)


@pytest.mark.parametrize("experiments", [rms_1.EXPERIMENTS, dyt_2.EXPERIMENTS])
def test_equality_can_be_supported_and_contradicted(experiments: tuple[Experiment, ...]) -> None:
    at = named(experiments, "AdamW, width 32")
    same = {"layer_norm": 2.5, "rms_norm": 2.51, "dynamic_tanh": 2.51, "layer_norm_post": 3.0}
    assert finding(at, of_variants(**same)) == "supported"
    worse = same | {"rms_norm": 2.7, "dynamic_tanh": 2.7}
    assert finding(at, of_variants(**worse)) == "contradicted"
    better = same | {"rms_norm": 2.3, "dynamic_tanh": 2.3}
    # To be better contradicts "the same", not "as well as".
    assert finding(at, of_variants(**better)) == ("contradicted" if at.claim == "RMS-1" else "supported")
    assert finding(at, of_variants(**same), noise=0.2) == "not resolved"


@pytest.mark.parametrize(
    ("experiment", "variant"),
    [
        (named(rms_1.EXPERIMENTS, "optimizer, width 32"), "rms_norm"),
        (named(dyt_2.EXPERIMENTS, "optimizer, sequences, width 16"), "dynamic_tanh"),
        (named(p_2.EXPERIMENTS, "optimizer, width 64"), "layer_norm:post"),
    ],
)
def test_an_interaction_with_the_optimizer_is_found(experiment: Experiment, variant: str) -> None:
    adamw = next(name for name in experiment.workloads if "adamw" in name)
    assert finding(experiment, by_workload(adamw, variant, 0.2)) == "contradicted"
    # The same under both optimizers is no interaction.
    assert finding(experiment, by_workload("", variant, 0.2), noise=0.003) == "supported"
    (judgement,) = judged([experiment], tables(experiment, by_workload(adamw, variant, 0.2)), 0.05)
    assert judgement.measured.interval().value == pytest.approx(0.2, abs=0.03)


def test_warm_up_is_needed_or_not() -> None:
    without = named(p_2.EXPERIMENTS, "pre-norm without warm-up, width 32")
    assert finding(without, by_workload("cold", "layer_norm:post", 0.3)) == "supported"
    assert finding(without, by_workload("cold", "layer_norm", 0.3)) == "contradicted"
    gains = named(p_2.EXPERIMENTS, "post-norm gains more, width 32")
    assert finding(gains, by_workload("cold", "layer_norm:post", 0.3)) == "supported"
    # Post-norm that is worse with and without warm-up gains nothing.
    assert finding(gains, by_workload("", "layer_norm:post", 0.3)) == "contradicted"
    against = named(p_2.EXPERIMENTS, "against post-norm, width 32")
    assert finding(against, by_workload("", "layer_norm:post", 0.3)) == "supported"
    assert finding(against, by_workload("", "layer_norm", 0.3)) == "contradicted"


@pytest.mark.parametrize("start", ["sensitivity, AdamW, width 32", "range of rates, AdamW, width 32"])
def test_the_range_of_rates_is_wider_or_not(start: str) -> None:
    experiment = named(qk_1.EXPERIMENTS, start)
    assert finding(experiment, by_rate("layer_norm", 0.05, 0.5)) == "supported"
    assert finding(experiment, by_rate("layer_norm:qk", 0.05, 0.5)) == "contradicted"
    assert finding(experiment, by_rate("neither", 0.05, 0.5)) == "contradicted"


def test_sensitivity_counts_what_diverged_as_untrained() -> None:
    experiment = qk_1.EXPERIMENTS[0]
    name, variant, size = experiment.cells[0]
    cell = tables(experiment, lambda workload, v, rate: 2.0 + (rate > 0.02), noise=0.0)[name][variant, size]
    rates = cell.design.rates
    assert len(rates) == 5
    share = sum(rate > 0.02 for rate in rates) / 5
    assert measures.sensitivity_by_seed(cell) == pytest.approx(dict.fromkeys(cell.design.tuning_seeds, share))
    lost = [replace(run, validation_loss=None) if run.trial.rate == rates[-1] else run for run in cell.tuning]
    far = [replace(run, validation_loss=1e9) if run.trial.rate == rates[-1] else run for run in cell.tuning]
    for tuning in (lost, far):
        # One of five losses rose from 3 to 5, the first training loss.
        changed: Cell = replace(cell, tuning=tuple(tuning))
        assert measures.sensitivity_by_seed(changed) == pytest.approx(
            dict.fromkeys(cell.design.tuning_seeds, share + 0.4)
        )
    # Rates beyond the range do not count, and a seed that lacks a rate is left out.
    beyond = replace(cell.tuning[0], trial=replace(cell.tuning[0].trial, rate=100.0), validation_loss=1.0)
    assert measures.sensitivity_by_seed(replace(cell, tuning=(*cell.tuning, beyond))) == measures.sensitivity_by_seed(
        cell
    )
    assert len(measures.sensitivity_by_seed(replace(cell, tuning=cell.tuning[1:]))) == len(cell.design.tuning_seeds) - 1
    low = [rate for rate in rates if rate <= 0.02]
    expected = np.log10(max(low) / min(low))
    assert measures.decades(cell, 0.1) == pytest.approx(dict.fromkeys(cell.design.tuning_seeds, expected))


def test_the_usual_suite_has_each_claim_and_the_full_one_all_widths() -> None:
    ids = ["RMS-1", "DyT-2", "P-2", "QK-1"]
    usual, full = claims.chosen(ids), claims.chosen(ids, full=True)
    assert {each.claim for each in usual} == set(ids)
    assert {name for each in usual for name in each.workloads} == {
        *("tokens", "characters-adamw-32", "cold-32", "warm-32", "range-adamw-32")
    }
    assert {name for each in full for name in each.workloads} == set(WORKLOADS)
    for claim in ids:
        names = " ".join(each.name for each in full if each.claim == claim)
        assert all(f"width {width}" in names for width in (16, 32, 64))
        assert "optimizer" in names
    assert set(USUAL) <= set(ALL)


def test_cells_of_an_interaction_are_told_apart_in_the_report() -> None:
    experiment = named(rms_1.EXPERIMENTS, "optimizer, width 32")
    made = judged([experiment], tables(experiment, by_workload("", "rms_norm", 0.0)), 0.05)
    (evidence,) = written(made, "normkit compare")
    labels = [each.label for each in evidence.variants]
    assert labels[0] == "RMS norm, batch 8, AdamW"
    assert labels[3].zh == "层归一化，批量 8，SGD"
    assert len(evidence.curves) == len(labels) == 4
