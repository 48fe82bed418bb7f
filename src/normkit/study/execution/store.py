"""Stores finished runs before they are counted, in an optuna storage: an SQLite file or any other database.

Runs whose results may differ are stored in separate studies, named after a fingerprint of the data, the training and
the code. Any optuna tool can open the file, for instance `optuna-dashboard sqlite:///study.sqlite3`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import normkit
from normkit.errors import StateError
from normkit.study.execution.database import Database
from normkit.study.execution.fingerprint import fingerprint
from normkit.study.execution.location import Location
from normkit.study.execution.machine import cpu_name
from normkit.study.execution.workload import Times
from normkit.study.task import Task
from normkit.study.training.cost import Timing
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Trial

FORMAT = 1
"""The format of the data in optuna's tables; another one is refused."""
_ABOUT = "normkit"
"""The optuna study that holds the format of the others, and the fingerprints of the studies that were begun."""


class Store:
    """The runs of any number of tasks and designs in one database.

    Several processes may write to it at once. A run is written in one transaction, completely or not at all.

    Args:
        where: a database, or the path of an SQLite file.
        resume: raise an error if the database does not exist, or holds no study that was begun before.

    Raises:
        StateError: the database cannot be used, or there is nothing to resume; so do all methods.
    """

    def __init__(self, where: Location | Path, *, resume: bool = False) -> None:
        self.where = where if isinstance(where, Location) else Location.of(where)
        self._resume = resume
        self._prefixes: dict[tuple[int, int], tuple[str, Task, Design]] = {}
        self._indexed: dict[str, dict[Trial, Run]] = {}
        self._read: dict[str, set[int]] = {}
        self._owner = uuid.uuid4().hex
        if resume and self.where.file is not None and not self.where.file.exists():
            raise StateError(
                f"resume continues with a store that exists, but there is no {self.where}: leave out resume to begin "
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
        """Write the fingerprints of studies that are about to run; with `resume` one of them must be there already."""
        self._database.use(lambda: self._sign([self._prefix(*study) for study in studies]))

    def runs(self, task: Task, design: Design) -> dict[Trial, Run]:
        """All runs of this task and design; for a trial that was run again, the last run that did not fail."""
        found: dict[Trial, Run] = {}
        start = f"{self._prefix(task, design)}/"
        for record in self._database.use(lambda: list(self._database.trials(start))):
            if "run" in record.user_attrs:
                run = Run.from_dict(record.user_attrs["run"])
                if run.state != "failed" or run.trial not in found or found[run.trial].state == "failed":
                    found[run.trial] = run
        return found

    def find(self, task: Task, design: Design, trial: Trial) -> Run | None:
        """The run of a trial, if any process has stored it and it did not fail."""
        return self._database.use(lambda: self._find(self._place(task, design, trial), trial))

    def add(self, task: Task, design: Design, run: Run) -> None:
        """Store one run, unless it is stored already; it is on disk when this returns."""
        trial, place = run.trial, self._place(task, design, run.trial)
        distributions: dict[str, BaseDistribution] = {
            # Wide, because the range of rates is extended if the best one is at its end.
            "rate": FloatDistribution(1e-30, 1e30, log=True),
            "seed": IntDistribution(0, 10**9),
        }
        error = run.validation_error if trial.kind == "tune" else run.test_error
        record = create_trial(
            state=TrialState.FAIL if run.state == "failed" else TrialState.COMPLETE,
            value=error,
            params={"rate": trial.rate, "seed": trial.seed},
            distributions=distributions,
            user_attrs={"run": run.to_dict()},
        )

        def write() -> None:
            # Checked at every attempt, because the reply to a successful one may have been lost with the connection.
            if self._find(place, trial) is None:
                self._database.study(place).add_trial(record)

        self._database.use(write)

    def take(self, batches: Sequence[tuple[Task, Design, Sequence[Trial], int]]) -> tuple[int, tuple[Trial, ...]]:
        """Mark trials of the first batch in which some are not taken by another process.

        The mark is not a lock, so a process that dies leaves nothing locked: at worst a trial is run twice, with the
        same result.

        Args:
            batches: task, design, trials, and how many of them to take at most.

        Returns:
            The number of the batch, and the trials; those of the first batch if others have taken all.
        """
        taken: dict[str, dict[str, str]] = {}
        for number, (task, design, trials, most) in enumerate(batches):
            study = self._prefix(task, design)
            if study not in taken:
                taken[study] = self._database.use(partial(self._database.taken, study))
            free = [each for each in trials if taken[study].get(_key(each), self._owner) == self._owner][:most]
            take = partial(self._database.take, study, [_key(trial) for trial in free], self._owner)
            if not free:
                continue
            if self._database.use(take):
                return number, tuple(free)
        _, _, trials, most = batches[0]
        return 0, tuple(trials[:most])

    def looks(self, task: Task, design: Design) -> tuple[int, ...]:
        """The numbers of seeds with which results were reported, in the order of the reports."""
        name = f"{self._prefix(task, design)}/looks/seed {design.seed}"
        records = self._database.use(lambda: list(self._database.trials(name)))
        return tuple(dict.fromkeys(record.user_attrs["seeds"] for record in records if "seeds" in record.user_attrs))

    def add_look(self, task: Task, design: Design, seeds: int) -> None:
        """Store that results with this number of seeds are reported, unless that is stored already."""
        if seeds not in self.looks(task, design):
            name = f"{self._prefix(task, design)}/looks/seed {design.seed}"
            record = create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs={"seeds": seeds})
            self._database.use(lambda: self._database.study(name).add_trial(record))

    def times(self, task: Task, design: Design, timing: Timing) -> Times | None:
        """Step times on this machine, if they were measured."""
        name = f"{self._prefix(task, design)}/{_name(timing)}"
        taken = self._database.use(lambda: list(self._database.trials(name)))
        return next((dict(record.user_attrs["seconds"]) for record in taken), None)

    def add_times(self, task: Task, design: Design, timing: Timing, seconds: Times) -> None:
        """Store step times."""
        name = f"{self._prefix(task, design)}/{_name(timing)}"
        record = create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs={"seconds": seconds})
        self._database.use(lambda: self._database.study(name).add_trial(record))

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
                f"resume continues a study that was begun, but {self.where} has none with this data, this training "
                "and this version of normkit and torch: leave out resume to begin it"
            )
        for study in studies:
            if study not in written:
                about.set_user_attr("format", FORMAT)
                about.set_user_attr(study, normkit.__version__)

    def _find(self, place: str, trial: Trial) -> Run | None:
        runs = self._indexed.setdefault(place, {})
        read = self._read.setdefault(place, set())
        # Only records that are new since the last call are read: others may have written some of them.
        for record in self._database.study(place).get_trials(False, (TrialState.COMPLETE,)):
            if record.number not in read:
                run = Run.from_dict(record.user_attrs["run"])
                runs.setdefault(run.trial, run)
                read.add(record.number)
        return runs.get(trial)

    def _place(self, task: Task, design: Design, trial: Trial) -> str:
        return f"{self._prefix(task, design)}/{trial.kind}/{trial.method}/batch {trial.batch_size}"

    def _prefix(self, task: Task, design: Design) -> str:
        """The fingerprint; computed once, because it reads all data."""
        key = (id(task), id(design))
        if key not in self._prefixes:
            # The objects are kept with it, so that no other objects get their ids.
            self._prefixes[key] = (fingerprint(task, design), task, design)
        return self._prefixes[key][0]


def _key(trial: Trial) -> str:
    options = f"/{trial.options}" if trial.options else ""
    part = f"/part {trial.part:g}" if trial.part != 1 else ""
    return f"{trial.kind}/{trial.method}/{trial.batch_size}/{trial.rate!r}/{trial.seed}{options}{part}"


def _name(timing: Timing) -> str:
    return f"time/batch {timing.batch_size}/{' '.join(timing.methods)}/{cpu_name()}"
