"""The best run of each method is kept, and can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import normkit
from normkit.study.execution.checkpoints import best_runs
from normkit.study.execution.workload import Workload
from normkit.study.task import Task
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Trial

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(100, 6, generator=GENERATOR)
Y = X.sum(1).gt(0).long()


def task() -> Task:
    net = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
    return Task(net, (X[:60], Y[:60]), (X[60:], Y[60:]))


@pytest.mark.parametrize("higher", [False, True])
def test_the_best_run_is_that_with_the_best_validation(higher: bool) -> None:
    runs = {}
    design = Design(("none",), (8,), 2, 3, 40, lowest_rate=0.1, higher_is_better=higher)
    for tuning in design.tuning_seeds:
        tuned = Trial("tune", "none", 8, 0.1, tuning)
        runs[tuned] = Run(tuned, "trained", validation_error=0.0 if not higher else 1.0)
    for seed, (validation, test) in enumerate([(0.2, 0.9), (0.1, 0.5), (0.3, 0.1)], 100):
        trial = Trial("measure", "none", 8, 0.1, seed)
        runs[trial] = Run(trial, "trained", validation_error=validation, test_error=test)
    # Runs that are stored, but are not among the results: another rate, another method, another `--seed`.
    for stray in (
        Trial("measure", "none", 8, 0.3162, 100),
        Trial("measure", "batch_norm", 8, 0.1, 100),
        Trial("measure", "none", 8, 0.1, 1100),
    ):
        runs[stray] = Run(stray, "trained", validation_error=float(higher), test_error=0.0)
    (best,) = best_runs(Workload("task", task(), design, runs=runs))
    assert best.trial.seed == (102 if higher else 101)


def test_checkpoints_are_written_once_and_load(tmp_path: Path) -> None:
    def compare() -> object:
        return normkit.compare(
            task(),
            methods=["BN"],
            batch_sizes=[8],
            seeds=2,
            trials=3,
            steps=60,
            workers=1,
            out=tmp_path,
            progress=False,
            checkpoints=True,
        )

    found = compare()
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == ["batch_norm-batch-8.pt", "none-batch-8.pt"]
    path = tmp_path / "checkpoints" / "batch_norm-batch-8.pt"
    kept = torch.load(path)
    best = min(found.cell("batch_norm", 8).runs, key=lambda run: run.validation_error)  # type: ignore[attr-defined]
    assert (kept["method"], kept["batch_size"], kept["seed"]) == ("batch_norm", 8, best.trial.seed)
    model = task().build(kept["method"], seed=0)
    model.load_state_dict(kept["state_dict"])
    with torch.no_grad():
        error = float((model.eval()(X[60:]).argmax(1) != Y[60:]).double().mean())
    assert error == pytest.approx(kept["test"])
    # Trained alone, not many at once: the same but for rounding over 60 steps.
    assert kept["test"] == pytest.approx(best.test_error, abs=0.05)
    before = path.stat().st_mtime_ns
    compare()
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"broken")
    compare()
    assert torch.load(path)["test"] == kept["test"]
