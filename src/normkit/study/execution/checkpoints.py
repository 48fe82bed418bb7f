"""Keeps the best run of each method and batch size as a checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from normkit.study.execution.payload import train_again
from normkit.study.execution.workers import Failure, WorkerPool
from normkit.study.execution.workload import Workload
from normkit.study.training.trial import Run, Trial, frozen
from normkit.study.training.tuning import tuned


def file_of(folder: Path, trial: Trial) -> Path:
    """The file of a method and batch size.

    >>> file_of(Path("checkpoints"), Trial("measure", "layer_norm:post", 8, 0.1, 100)).name
    'layer_norm-post-batch-8.pt'
    """
    return folder / f"{trial.method.replace(':', '-')}-batch-{trial.batch_size}.pt"


def best_runs(workload: Workload) -> Iterator[Run]:
    """Of each method and batch size the run of the results with the best metric on the validation data.

    The test data choose nothing, so that their metric stays an estimate. Runs at other rates than the chosen one, and
    those of methods that are not compared now, are not among the results.
    """
    design, sign = workload.design, workload.design.sign
    chosen = {
        (method, size): found.setting
        for size in design.batch_sizes
        for method, found in tuned(design, workload.runs, size).items()
    }
    best: dict[tuple[str, int], Run] = {}
    for run in workload.runs.values():
        cell = run.trial.method, run.trial.batch_size
        if run.trial.kind != "measure" or run.state != "trained" or run.validation_error is None:
            continue
        if chosen.get(cell) != run.trial.setting or not design.has_seed(run.trial.seed):
            continue
        if cell not in best or sign * run.validation_error < sign * (best[cell].validation_error or 0.0):
            best[cell] = run
    yield from best.values()


def keep_best(workload: Workload, number: int, pool: WorkerPool, folder: Path, limit: float | None = None) -> None:
    """Write the checkpoints of a workload that are not there yet.

    The best runs are trained again from their seeds, because runs are trained many at once and keep no weights. A file
    has the metrics of its own weights, which differ from those of the run by rounding.

    Args:
        workload: with its runs.
        number: of the workload in the pool's payload.
        pool: the workers.
        folder: for the files; it is made.
        limit: seconds a run may take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(number, run.trial) for run in best_runs(workload) if _trial_in(file_of(folder, run.trial)) != run.trial]
    for (_, trial), result in pool.work(train_again, wanted, limit):
        if isinstance(result, Failure):
            warnings.warn(
                f"the checkpoint of {trial.method} at batch size {trial.batch_size} was not written "
                f"({result.reason}): the same call tries again",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        run, state = result
        content = _described(trial) | {
            "validation": run.validation_error,
            "test": run.test_error,
            "metric": str(workload.task.reported.name),
            "state_dict": state,
        }
        path = file_of(folder, trial)
        # Replaced in one step, so that a file is never half written.
        torch.save(content, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)


def _described(trial: Trial) -> dict[str, Any]:
    """A trial in plain types, which `torch.load` reads without trusting the file."""
    return {
        "method": trial.method,
        "batch_size": trial.batch_size,
        "rate": trial.rate,
        "seed": trial.seed,
        "options": dict(trial.options),
    }


def _trial_in(path: Path) -> Trial | None:
    """The trial that a file holds; None if there is none, or it cannot be read."""
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu")
        options = tuple(sorted((name, frozen(value)) for name, value in found["options"].items()))
        return Trial("measure", found["method"], found["batch_size"], found["rate"], found["seed"], options)
    except Exception:
        # A broken file is written again.
        return None
