"""Every finished run on disk before it is shown: an optuna storage in an SQLite file or any other database.

Runs that can differ in their result never meet: the studies are named after a fingerprint of the data, the
training and the code. Any optuna tool can open the file, for instance `optuna-dashboard sqlite:///study.sqlite3`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import normkit
from normkit.errors import StateError
from normkit.study.database import Database
from normkit.study.design import Design
from normkit.study.location import Location
from normkit.study.machine import cpu_name
from normkit.study.run import Job, Run
from normkit.study.task import Task
from normkit.study.train import Timing

Times = dict[str, list[float]]

FORMAT = 1
"""Of what this file writes into optuna's tables; another number is refused."""
_ABOUT = "normkit"
"""The optuna study that says of what format the others are, and which fingerprints were begun."""


class Store:
    """The runs of any number of tasks, each with its way of being trained, in one database.

    Several processes may write to it at once. A run is one transaction, so there is all of it or nothing.

    Args:
        where: a database, or the path of an SQLite file.
        resume: demand that it is there, and that a study that is begun was begun before.

    Raises:
        StateError: the database cannot be used, or there is nothing to resume; so do all methods.
    """

    def __init__(self, where: Location | Path, *, resume: bool = False) -> None:
        self.where = where if isinstance(where, Location) else Location.of(where)
        self._resume = resume
        self._prefixes: dict[tuple[int, int], tuple[str, Task, Design]] = {}
        self._owner = uuid.uuid4().hex
        if resume and self.where.file is not None and not self.where.file.exists():
            raise StateError(
                f"resume goes on with a store that exists, but there is no {self.where}: leave out resume to begin "
                "one, or name the folder (out) or the database (store) of the study"
            )
        self._database = Database(self.where)
        try:
            self._database.use(self._check)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def begin(self, studies: Sequence[tuple[Task, Design]]) -> None:
        """Leave the fingerprints of what is about to be run; to resume, one of them must be there."""
        self._database.use(lambda: self._sign([self._prefix(*study) for study in studies]))

    def runs(self, task: Task, design: Design) -> dict[Job, Run]:
        """All runs of this task and design; of a job that was run again, the last that did not fail."""
        found: dict[Job, Run] = {}
        start = f"{self._prefix(task, design)}/"
        for trial in self._database.use(lambda: list(self._database.trials(start))):
            if "run" in trial.user_attrs:
                run = Run.from_dict(trial.user_attrs["run"])
                if run.state != "failed" or run.job not in found or found[run.job].state == "failed":
                    found[run.job] = run
        return found

    def find(self, task: Task, design: Design, job: Job) -> Run | None:
        """The run of a job, if it is there by now and did not fail, whichever process has written it."""
        return self._database.use(lambda: self._find(self._place(task, design, job), job))

    def add(self, task: Task, design: Design, run: Run) -> None:
        """Write one run, unless it is there already; it is on disk when this returns."""
        job, place = run.job, self._place(task, design, run.job)
        distributions: dict[str, BaseDistribution] = {
            # Wide, because the range of rates grows where the best one lies at its end.
            "rate": FloatDistribution(1e-30, 1e30, log=True),
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

        def write() -> None:
            # Asked at every attempt: the answer to one that succeeded may have been lost with the connection.
            if self._find(place, job) is None:
                self._database.study(place).add_trial(trial)

        self._database.use(write)

    def take(self, stacks: Sequence[tuple[Task, Design, Sequence[Job]]]) -> int:
        """The number of the first stack of which no other process has taken a job, else 0; others are told.

        It binds nobody, so that a process that dies leaves nothing locked: at worst a job is run twice, with the
        same result.
        """
        taken: dict[str, dict[str, str]] = {}
        for number, (task, design, jobs) in enumerate(stacks):
            study, keys = self._prefix(task, design), [_key(job) for job in jobs]
            if study not in taken:
                taken[study] = self._database.use(partial(self._database.taken, study))
            free = all(taken[study].get(key, self._owner) == self._owner for key in keys)
            if free and self._database.use(partial(self._database.take, study, keys, self._owner)):
                return number
        return 0

    def times(self, task: Task, design: Design, timing: Timing) -> Times | None:
        """Step times on this machine, if they were taken."""
        name = f"{self._prefix(task, design)}/{_name(timing)}"
        taken = self._database.use(lambda: list(self._database.trials(name)))
        return next((dict(trial.user_attrs["seconds"]) for trial in taken), None)

    def add_times(self, task: Task, design: Design, timing: Timing, seconds: Times) -> None:
        """Write step times."""
        name = f"{self._prefix(task, design)}/{_name(timing)}"
        trial = create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs={"seconds": seconds})
        self._database.use(lambda: self._database.study(name).add_trial(trial))

    def _check(self) -> None:
        written = self._database.study(_ABOUT).user_attrs
        if written.get("format", FORMAT) != FORMAT:
            raise StateError(
                f"the store must have format {FORMAT}, but {self.where} was written by another version of normkit, in "
                f"format {written['format']}: name another store, or use that version"
            )

    def _sign(self, studies: Sequence[str]) -> None:
        about = self._database.study(_ABOUT)
        written = about.user_attrs
        if self._resume and not any(study in written for study in studies):
            raise StateError(
                f"resume goes on with a study that was begun, but {self.where} has none with this data, this training "
                "and this version of normkit and torch: leave out resume to begin it"
            )
        for study in studies:
            if study not in written:
                about.set_user_attr("format", FORMAT)
                about.set_user_attr(study, normkit.__version__)

    def _find(self, place: str, job: Job) -> Run | None:
        study = self._database.study(place)
        runs = (Run.from_dict(t.user_attrs["run"]) for t in study.get_trials(False, (TrialState.COMPLETE,)))
        return next((run for run in runs if run.job == job), None)

    def _place(self, task: Task, design: Design, job: Job) -> str:
        return f"{self._prefix(task, design)}/{job.kind}/{job.method}/batch {job.batch_size}"

    def _prefix(self, task: Task, design: Design) -> str:
        """The fingerprint; made once, because it reads all data."""
        key = (id(task), id(design))
        if key not in self._prefixes:
            # Kept with its objects, so that no other ones get their ids.
            self._prefixes[key] = (fingerprint(task, design), task, design)
        return self._prefixes[key][0]


_SHOWS = (
    "normkit/cli.py",
    "normkit/__main__.py",
    "normkit/draw.py",
    "normkit/study/report/*",
    "normkit/study/claims/??_?.py",
    "normkit/study/claims/p_1.py",
    "normkit/study/claims/experiment.py",
    "normkit/study/claims/measures.py",
    *(
        f"normkit/study/{name}.py"
        for name in ("answer", "comparison", "evidence", "export", "memory", "metric", "outline", "reading", "stats")
    ),
    *(f"normkit/study/{name}.py" for name in ("terminal", "verdict", "whole", "words")),
)
"""Code that no result of a run depends on."""


def _key(job: Job) -> str:
    return f"{job.kind}/{job.method}/{job.batch_size}/{job.rate!r}/{job.seed}" + (
        f"/{job.options}" if job.options else ""
    )


def _name(timing: Timing) -> str:
    return f"time/batch {timing.batch_size}/{' '.join(timing.methods)}/{cpu_name()}"


def fingerprint(task: Task, design: Design) -> str:
    """Equal only where the same job gives the same run: data, training, torch and normkit's own code agree."""
    facts: dict[str, Any] = {
        "task": task.fingerprint(),
        "training": (design.steps, design.window, design.gap_images, design.device, design.dtype),
        "torch": torch.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of all of normkit's code that a run can pass through; what only shows results is left out."""
    root = Path(normkit.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.so"))):
        if not any(path.match(pattern) for pattern in _SHOWS):
            digest.update(path.read_bytes())
    return digest.hexdigest()
