"""Batches of trials: the first results come early, and a run that ends its process takes no other with it."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.execution import batches, scheduler
from normkit.study.execution.batches import Batch, Batches
from normkit.study.execution.payload import Payload, train_batch
from normkit.study.execution.store import Store
from normkit.study.execution.workers import Failure, make_executor
from normkit.study.execution.workload import Workload
from normkit.study.task import Task
from normkit.study.training import design
from normkit.study.training.trial import Run, Trial

X = torch.arange(40.0).unsqueeze(1)
PLAN = replace(design.design(("none",), (4,), 2, 3, 40, 0), gap_images=8)
TRIALS = [Trial("tune", "none", 4, 0.01, seed) for seed in range(40)]


def workload(seconds: float = 0.0, trials: Sequence[Trial] = (), state: str = "trained") -> Workload:
    """A workload in which these trials have run."""
    task = Task(lambda: nn.Linear(1, 1), (X, X), (X, X), loss=F.mse_loss)
    runs = {trial: Run(trial, state, seconds=seconds) for trial in trials}  # type: ignore[arg-type]
    return Workload("task", task, PLAN, runs=runs)


def sizes(one: Workload, folder: Path, trials: Sequence[Trial] = TRIALS) -> list[int]:
    with Store(folder / "s.sqlite3") as store:
        return [len(batch) for _, batch in Batches([one], store, [(0, trial) for trial in trials], workers=2)]


def test_the_first_batches_are_small_and_others_are_limited_in_time(tmp_path: Path) -> None:
    assert sizes(workload(), tmp_path / "") == [2, 2, 28, 8]
    other = Trial("tune", "none", 4, 0.5, 99)
    assert sizes(workload(0.01, [other]), tmp_path) == [32, 8]
    assert sizes(workload(batches.SECONDS / 10, [other]), tmp_path) == [10, 10, 10, 2, 8]
    assert sizes(workload(10 * batches.SECONDS, [other]), tmp_path, TRIALS[:3]) == [1, 1, 1]


def test_what_failed_before_is_tried_alone(tmp_path: Path) -> None:
    found = sizes(workload(0.1, TRIALS[:2], "failed"), tmp_path, TRIALS[:9])
    assert found.count(1) == 2
    assert sum(found) == 9


def test_a_lost_batch_is_divided_until_the_cause_is_alone(tmp_path: Path) -> None:
    one, guilty = workload(0.01, [Trial("tune", "none", 4, 0.5, 99)]), TRIALS[5]
    tried: list[tuple[Trial, ...]] = []
    found: list[Run] = []
    with Store(tmp_path / "s.sqlite3") as store:
        waiting = Batches([one], store, [(0, trial) for trial in TRIALS[:16]], workers=1)
        for batch in waiting:
            tried.append(batch[1])
            lost = guilty in batch[1]
            result = Failure.died("killed") if lost else [Run(trial, "trained") for trial in batch[1]]
            found += waiting.runs(batch, result)
        # An exception is that of every run: nothing would change if they were tried again.
        assert {run.state for run in waiting.runs((0, tuple(TRIALS[:3])), Failure("ValueError: no"))} == {"failed"}
    assert {run.trial: run.state for run in found} == dict.fromkeys(TRIALS[:16], "trained") | {guilty: "failed"}
    assert [len(each) for each in tried] == [16, 8, 4, 4, 2, 1, 1, 2, 8]


def dies_or_hangs(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss under which one seed ends its process, and another one takes for ever."""
    if torch.initial_seed() == PLAN.evaluation_seeds[0]:
        os._exit(9)
    if torch.initial_seed() == PLAN.evaluation_seeds[1]:
        time.sleep(100)
    return F.mse_loss(outputs, targets)


def net() -> nn.Module:
    return nn.Linear(1, 1)


@pytest.mark.slow
def test_a_study_loses_only_the_guilty_runs(tmp_path: Path) -> None:
    many = replace(PLAN, seeds=6, stack=8, methods=("none",))
    task = Task(net, (X, X), (X, X), loss=dies_or_hangs, rates=(1e-7, 1e-6))
    one = Workload("task", task, replace(many, lowest_rate=1e-7, highest_rate=1e-6))
    with make_executor(Payload.of([one]), 2) as pool, Store(tmp_path / "s.sqlite3") as store:
        start = time.monotonic()
        assert scheduler.run_stages([one], store, pool, lambda *_: None, limit=60.0)
    # The run that hangs is stopped with others, with fewer, and alone.
    assert time.monotonic() - start < 600
    fates = {run.trial.seed: run.message for run in one.runs.values() if run.trial.kind == "measure"}
    died, hung, *fine = (fates[seed] for seed in one.design.evaluation_seeds)
    assert died == "its process died: it ended with status 9"
    assert hung == "it ran past its time limit of 60 s and was stopped"
    assert fine == [""] * 4


def test_a_batch_is_what_a_worker_trains() -> None:
    batch: Batch = (0, (TRIALS[0],))
    one = workload()
    (run,) = train_batch(Payload.of([one]), batch)
    assert run.trial == TRIALS[0]
    assert run.state != "failed"


def test_runs_that_others_add_are_found_and_each_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Trial] = []
    from_dict = Run.from_dict

    def counted(data: dict[str, object]) -> Run:
        run = from_dict(data)
        read.append(run.trial)
        return run

    study = (workload().task, PLAN)
    with Store(tmp_path / "s.sqlite3") as one, Store(tmp_path / "s.sqlite3") as two:
        for trial in TRIALS[:5]:
            two.add(*study, Run(trial, "trained", validation_error=0.5))
        monkeypatch.setattr(Run, "from_dict", counted)
        assert one.find(*study, TRIALS[9]) is None
        assert [run.trial for trial in TRIALS[:5] if (run := one.find(*study, trial))] == TRIALS[:5]
        assert sorted(read, key=TRIALS.index) == TRIALS[:5]
