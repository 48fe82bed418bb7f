"""What the parts of a study do together: counted runs, stored looks, runs of earlier calls, options, early stopping."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.study import _command
from normkit.study.analysis.cells import Cell, cells
from normkit.study.analysis.sensitivity import sensitivity
from normkit.study.claims import SUITE
from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.execution import payload
from normkit.study.execution.payload import Payload
from normkit.study.execution.store import Store
from normkit.study.execution.workers import make_executor
from normkit.study.execution.workload import Workload
from normkit.study.outline import outline
from normkit.study.run_study import run_study
from normkit.study.setup import drawn
from normkit.study.task import Task
from normkit.study.training import memory, trainer
from normkit.study.training.design import Design, design
from normkit.study.training.memory import Sizes
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import GUESSING, Run, Trial, frozen

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(80, 6, generator=GENERATOR)
Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)
PLAN = replace(design(("BN", "LN"), (8,), 2, 4, 200, 0), discard=True, confirm=True, lowest_rate=0.01)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def task(**change: object) -> Task:
    return Task(net, (X, Y), (X, Y), validation=(X, Y), **change)  # type: ignore[arg-type]


def made_up(trial: Trial) -> Run:
    """The best rate is 0.1; errors vary by seed; layer norm fails."""
    if trial.method == "layer_norm":
        return Run(trial, "failed", "no room")
    error = 0.2 + 0.1 * abs(math.log10(trial.rate) + 1) + 0.02 * math.sin(7 * trial.seed + len(trial.method))
    return Run(trial, "trained", "", (error,) * 20, error, error, error, test_error=error, seconds=0.01)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials that are trained from now on, with made-up results."""
    found: list[Trial] = []

    def execute(_: Trainer, task: Task, plan: Design, trials: Sequence[Trial]) -> list[Run]:
        found.extend(trials)
        return [made_up(trial) for trial in trials]

    monkeypatch.setattr(Trainer, "execute", execute)
    monkeypatch.setattr(payload, "time_steps", lambda task, plan, timing: {m: [0.1] * 3 for m in timing.methods})
    return found


def study(
    folder: Path,
    works: Sequence[Workload],
    progress: Callable[[int, int, str], None] = lambda *_: None,
    experiments: Sequence[Experiment] = (),
    report: Callable[[Comparison], Path] | None = None,
    more: bool = False,
) -> Comparison:
    with Store(folder / "study.sqlite3") as store:
        pool = make_executor(Payload.of(works), 1)
        return run_study(
            works, experiments, store, pool, progress=progress, report=report, minutes=1, until_resolved=more
        )


@pytest.mark.usefixtures("trained")
def test_each_run_is_counted_once(tmp_path: Path, trained: list[Trial]) -> None:
    works = lambda: [Workload("task", task(), PLAN, timed=True)]  # noqa: E731
    for more in (False, True):
        trained.clear()
        seen: list[tuple[int, int]] = []
        note: Callable[[int, int, str], None] = lambda *now, seen=seen: seen.append(now[:2])  # type: ignore[misc]  # noqa: E731
        found = study(tmp_path, works(), note, more=more)
        assert seen == sorted(seen, key=lambda each: each[0])
        assert all(done <= total for done, total in seen)
        counted = {run.trial for run in found.failures} | {t for t in trained if t.method != "layer_norm"}
        if not more:
            assert seen[-1] == (len(counted) + 1, len(counted) + 1), "the timing counts too"
            assert len(trained) == len(set(trained)), "none is trained twice"
    assert len(found.looks) > 1
    # While seeds are added, there is something left to do.
    assert any(done < total for done, total in seen[1:])


@pytest.mark.usefixtures("trained")
def test_results_that_were_shown_are_a_look_even_if_claims_are_interrupted(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("claims"):
            raise KeyboardInterrupt

    works = [Workload("task", task(), PLAN), Workload("other", task(), replace(PLAN, seed=1))]
    assert not study(tmp_path, works, stop).complete
    again = [Workload("task", task(), replace(PLAN, seeds=4))]
    assert [look.seeds for look in study(tmp_path, again).looks] == [2, 4]


@pytest.mark.usefixtures("trained")
def test_results_of_some_seeds_are_a_look_too(tmp_path: Path) -> None:
    plan = replace(PLAN, seeds=6, methods=("none", "batch_norm"))
    works = [Workload("task", task(), plan)]

    def interrupt(done: int, total: int, what: str) -> None:
        measured = [trial for trial in works[0].runs if trial.kind == "measure"]
        if len({trial.method for trial in measured}) == 2 and what == "measuring":
            raise KeyboardInterrupt

    cut = study(tmp_path, works, interrupt)
    assert cut.pairs
    assert not cut.complete
    again = study(tmp_path, [Workload("task", task(), replace(plan, seeds=12))])
    assert [look.seeds for look in again.looks] == [6, 12]


@pytest.mark.usefixtures("trained")
def test_evidence_stays_on_the_page_while_seeds_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normkit.study.run_study.REWRITTEN", -1.0)
    one = replace(SUITE[0], effect=lambda _: None, cells=(("task", "none", 8),))
    pages: list[Comparison] = []

    def report(found: Comparison) -> Path:
        pages.append(found)
        return tmp_path

    found = study(tmp_path, [Workload("task", task(), PLAN)], experiments=[one], report=report, more=True)
    assert len(found.looks) > 1
    assert len(pages) > 2
    assert {page.awaited for page in pages} == {0}


def test_runs_of_other_methods_and_seeds_are_no_results(tmp_path: Path) -> None:
    others = [Trial("tune", "group_norm", 8, 0.1, 999), Trial("measure", "none", 8, 0.1, 1100)]
    workload = Workload("task", task(), PLAN, runs={t: Run(t, "failed", "no room") for t in others})
    own = Trial("measure", "none", 8, 0.1, 100)
    workload.runs[own] = Run(own, "failed", "mine")
    found = conclude(workload, complete=True, machine={}, command="", seconds=0.0)
    assert [run.message for run in found.failures] == ["mine"]


def test_a_finished_workload_has_nothing_left(trained: list[Trial], tmp_path: Path) -> None:
    plan = replace(PLAN, methods=("none", "batch_norm"))
    workload = Workload("task", task(), plan)
    study(tmp_path, [workload])
    (row,) = outline([workload], 1).rows
    assert row.done == row.runs == len({*trained})
    assert row.seconds == 0


def test_options_may_be_tuples() -> None:
    search = {"betas": [(0.8, 0.9), (0.9, 0.95)], "nesterov": [True, False]}
    options = drawn(search, 9, seed=0)
    assert len(options) == 4
    trial = Trial("tune", "none", 8, 0.1, 999, options[0])
    assert Run.from_dict(json.loads(json.dumps(Run(trial, "trained").to_dict()))).trial == trial
    assert drawn({"betas": [[0.8, 0.9]]}, 3, seed=0) == ((("betas", (0.8, 0.9)),),)
    assert frozen([1, [2]]) == (1, (2,))
    for value in (net, {"a": 1}, torch.zeros(2)):
        with pytest.raises(ArgumentError, match=r"search\['x'\] must have numbers, texts"):
            drawn({"x": [value]}, 3, seed=0)


def test_the_command_of_a_task_with_epochs_keeps_them() -> None:
    (workload,), _ = prepared(task(max_epochs=10), batch_sizes=[4, 8])
    assert workload.design.steps_by_size
    assert "--steps" not in _command(workload.design, workload.task, None, True, False)
    (workload,), _ = prepared(task(max_epochs=10), batch_sizes=[4, 8], steps=50)
    assert "--steps 50 " in _command(workload.design, workload.task, None, True, False)


def test_steps_that_did_not_suffice_are_those_of_the_batch_size() -> None:
    plan = replace(PLAN, steps=400, steps_by_size=((2, 400), (8, 100)), batch_sizes=(2, 8))
    trial = Trial("measure", "none", 8, 0.1, 100)
    cell = Cell("none", 8, plan, (), (Run(trial, "trained", losses=(2.0,) * 100),))
    assert cell.median_steps == (100.0, True)


def test_a_target_suits_the_scale_of_the_loss() -> None:
    """Halfway from the mean of the first losses, (8 + 12) / 2, to the lowest mean of the last ones, 2."""
    plan = replace(PLAN, methods=("none", "batch_norm"), steps=100, target_loss=None, window=20, seeds=2)
    runs = {}
    for method, end in (("none", 4.0), ("batch_norm", 2.0)):
        tune = [Trial("tune", method, 8, rate, seed) for rate in plan.rates for seed in plan.tuning_seeds]
        runs |= {t: Run(t, "trained", losses=(10.0,) + (end,) * 99, validation_error=t.rate) for t in tune}
        for seed, first in zip(plan.evaluation_seeds, (8.0, 12.0), strict=True):
            t = Trial("measure", method, 8, plan.rates[0], seed)
            runs[t] = Run(t, "trained", losses=(first,) * 40 + (end,) * 60, test_error=0.1)
    table = cells(plan, runs, {})
    assert {cell.target for cell in table.values()} == {6.0}
    # 8 (20 - k) + 4 k <= 6 * 20 from k = 10 on; 12, 4: 15; with an end of 2: 7 and 12.
    assert table["none", 8].steps == (50, 55)
    assert table["batch_norm", 8].steps == (47, 52)
    flat = {t: replace(run, losses=(10.0,) * 100) for t, run in runs.items()}
    assert all((cell.target, cell.steps) == (None, ()) for cell in cells(plan, flat, {}).values())
    assert cells(replace(plan, target_loss=2.5), runs, {})["none", 8].target == 2.5


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module, loader: object) -> dict[str, float]:
    right = [(model(x).argmax(1) == y).float().mean() for x, y in loader]  # type: ignore[attr-defined]
    return {"accuracy": float(sum(right) / len(right))}


def test_a_metric_is_not_taken_for_a_loss() -> None:
    work = task(training_step=step, evaluate=accuracy, higher_is_better=True)
    plan = replace(PLAN, steps=60, gap_images=16, lowest_rate=1e-3, highest_rate=0.1)
    trials = [Trial("tune", "none", 8, rate, seed) for rate in plan.rates for seed in (1, 2)]
    runs = Trainer().execute(work, plan, trials)
    assert {run.state for run in runs} <= {"trained", "untrained"}
    assert {(run.validation_loss, run.broke) for run in runs} == {(None, False)}
    assert sensitivity(plan.rates, runs, [], 2.0) is None
    assert not Run(trials[0], "untrained", GUESSING).broke


def picky(model: nn.Module, loader: object) -> dict[str, float]:
    outputs = torch.cat([model(x) for x, _ in loader])  # type: ignore[attr-defined]
    if not outputs.isfinite().all():
        raise ValueError("Input contains NaN")
    return {"size": float(outputs.square().mean())}


def test_early_stopping_does_not_measure_a_model_that_broke() -> None:
    calls: list[int] = []

    def breaks(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        return step(model, batch) * (math.nan if len(calls) > 3 else 1.0)

    work = task(training_step=breaks, evaluate=picky, patience=2)
    (run,) = Trainer().execute(work, replace(PLAN, steps=100), [Trial("tune", "none", 8, 0.1, 1)])
    assert (run.state, run.broke) == ("untrained", True), run.message
    assert len(calls) < 10


def test_memory_bounds_every_evaluation_and_its_measurement_is_no_part_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def recorded(model: nn.Module, loader: object) -> dict[str, float]:
        sizes.extend(len(x) for x, _ in loader)  # type: ignore[attr-defined]
        return accuracy(model, loader)

    clock = [0.0]

    class Measured:
        def __init__(self, *_: object) -> None:
            clock[0] += 100.0

        def sizes(self, *_: object) -> Sizes:
            return Sizes(2, 10)

    monkeypatch.setattr(memory, "need", Measured)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[0])
    work = task(training_step=step, evaluate=recorded, higher_is_better=True, patience=3, metric_name="accuracy")
    for name in ("validation", "test"):
        work.scheme.guess(name)
    sizes.clear()
    plan, trial = replace(PLAN, steps=40), Trial("tune", "none", 8, 0.1, 1)
    one = Trainer()
    (run,) = one.execute(work, plan, [trial])
    one.checkpoint(work, plan, trial)
    assert len(sizes) > 16
    assert max(sizes) == 10
    assert run.seconds == 0
