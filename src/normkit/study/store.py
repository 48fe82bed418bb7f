"""Every finished run on disk before it is shown: an optuna storage in one SQLite file, read back to resume.

Runs that can differ in their result never meet: the studies are named after a fingerprint of the data, the
training and the code. Any optuna tool can open the file, for instance `optuna-dashboard sqlite:///study.sqlite3`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

import normkit
from normkit.errors import StateError
from normkit.study.design import Design
from normkit.study.machine import cpu_name
from normkit.study.run import Job, Run
from normkit.study.task import Task
from normkit.study.train import Timing

Times = dict[str, list[float]]


class Store:
    """The runs of any number of tasks, each with its way of being trained, in one file."""

    def __init__(self, path: Path) -> None:
        try:
            with _quiet():
                self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        except (SQLAlchemyError, OptunaError) as error:
            raise StateError(
                f"the store of finished runs must be a file that compare has made and may write to, but {path} cannot "
                f"be opened ({getattr(error, 'orig', error)}): move it away, or choose another folder with out"
            ) from error
        self._studies: dict[str, optuna.Study] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def runs(self, task: Task, design: Design) -> dict[Job, Run]:
        """All runs of this task and design; of a job that was run again, the last."""
        found: dict[Job, Run] = {}
        for trial in self._trials(f"{fingerprint(task, design)}/"):
            if "run" in trial.user_attrs:
                run = Run.from_dict(trial.user_attrs["run"])
                found[run.job] = run
        return found

    def add(self, task: Task, design: Design, run: Run) -> None:
        """Write one run; it is on disk when this returns."""
        job = run.job
        distributions: dict[str, BaseDistribution] = {
            "rate": FloatDistribution(1e-6, 1e3, log=True),
            "seed": IntDistribution(0, 10**9),
        }
        error = run.validation_error if job.kind == "tune" else run.test_error
        trial = create_trial(
            state=TrialState.FAIL if run.state == "failed" else TrialState.COMPLETE,
            value=error,
            params={"rate": job.rate, "seed": job.seed},
            distributions=distributions,
            user_attrs={"run": asdict(run)},
        )
        self._add(f"{fingerprint(task, design)}/{job.kind}/{job.method}/batch {job.batch_size}", trial)

    def times(self, task: Task, design: Design, timing: Timing) -> Times | None:
        """Step times on this machine, if they were taken."""
        taken = self._trials(f"{fingerprint(task, design)}/{_name(timing)}")
        return next((dict(trial.user_attrs["seconds"]) for trial in taken), None)

    def add_times(self, task: Task, design: Design, timing: Timing, seconds: Times) -> None:
        """Write step times."""
        trial = create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs={"seconds": seconds})
        self._add(f"{fingerprint(task, design)}/{_name(timing)}", trial)

    def _trials(self, start: str) -> Iterator[FrozenTrial]:
        """All trials of the studies whose name starts like this, oldest first within a study."""
        for name in optuna.get_all_study_names(self._storage):
            if name.startswith(start):
                yield from optuna.load_study(study_name=name, storage=self._storage).get_trials(deepcopy=False)

    def _add(self, full: str, trial: FrozenTrial) -> None:
        if full not in self._studies:
            with _quiet():
                self._studies[full] = optuna.create_study(storage=self._storage, study_name=full, load_if_exists=True)
        self._studies[full].add_trial(trial)


def _name(timing: Timing) -> str:
    return f"time/batch {timing.batch_size}/{' '.join(timing.methods)}/{cpu_name()}"


def fingerprint(task: Task, design: Design) -> str:
    """Equal only where the same job gives the same run: data, training, torch and normkit's own code agree."""
    facts: dict[str, Any] = {
        "task": task.fingerprint(),
        "training": (design.steps, design.window, design.gap_images, design.device),
        "torch": torch.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of all of normkit's code that a run can pass through; what only shows results is left out."""
    root = Path(normkit.__file__).parent
    shows = {root / "cli.py", root / "draw.py", root / "study" / "verdict.py", root / "study" / "stats.py"}
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.so"))):
        if path not in shows and root / "study" / "report" not in path.parents:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every new study; that is a detail of this file."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
