"""An optuna storage that several processes may use at once; it waits for locks and explains errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial
from sqlalchemy.exc import IntegrityError

from normkit.errors import NormkitError, StateError
from normkit.study.execution.location import BROKEN, Location, cause, origin_of

T = TypeVar("T")

TAKEN = sqlalchemy.Table(
    "normkit_taken",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("study", sqlalchemy.String(16), primary_key=True),
    sqlalchemy.Column("job", sqlalchemy.String(500), primary_key=True),
    sqlalchemy.Column("owner", sqlalchemy.String(32), nullable=False),
)
"""Which process runs which trial. Optuna's tables do not hold this, and it must be decided in one transaction."""

PATIENCE = 60.0
"""Seconds to wait for a lock, or for a server to come back."""
_PASSING = ("locked", "already exists", "unique", "duplicate", "deadlock")
"""Words in the error messages that occur if another process did the same at the same time."""
_PASSING_STATES = ("23505", "40001", "40P01", "42710", "42P07", "55P03")
"""The same as SQLSTATE codes, because the message of a server may be in any language: unique violation, serialization
failure, deadlock, duplicate object, duplicate table, lock not available."""


class Database:
    """The storage at a location; it is created if it does not exist.

    Raises:
        StateError: it cannot be used; so do all methods.
    """

    def __init__(self, where: Location) -> None:
        self.where = where
        self._reached = False
        self._studies: dict[str, optuna.Study] = {}
        self._storage = self.use(self._open)
        self._reached = True

    def close(self) -> None:
        """Close all connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def study(self, name: str) -> optuna.Study:
        """An optuna study, created if it does not exist. The object is kept, because it caches the trials."""
        if name not in self._studies:
            with quiet():
                self._studies[name] = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        return self._studies[name]

    def trials(self, start: str) -> Iterator[FrozenTrial]:
        """All trials of the studies whose names start with this text, oldest first within a study."""
        for name in optuna.get_all_study_names(self._storage):
            if name.startswith(start):
                yield from self.study(name).get_trials(deepcopy=False)

    def taken(self, study: str) -> dict[str, str]:
        """The owner of each trial that was taken."""
        query = sqlalchemy.select(TAKEN.c.job, TAKEN.c.owner).where(TAKEN.c.study == study)
        with self._storage.engine.connect() as connection:
            return {row.job: row.owner for row in connection.execute(query)}

    def take(self, study: str, trials: Sequence[str], owner: str) -> bool:
        """Take all of the trials for an owner, or none; returns whether the owner has them."""
        mine = self.taken(study)
        rows = [{"study": study, "job": trial, "owner": owner} for trial in trials if mine.get(trial) != owner]
        try:
            with self._storage.engine.begin() as connection:
                if rows:
                    connection.execute(TAKEN.insert(), rows)
        except IntegrityError:
            return False
        return True

    def use(self, action: Callable[[], T]) -> T:
        """The result of an action, which is repeated while the database is locked or unreachable."""
        end = time.monotonic() + PATIENCE
        pause = 0.05
        while True:
            try:
                return action()
            except NormkitError:
                raise
            except BROKEN as error:
                if time.monotonic() + pause > end or not self._passes(error):
                    # The driver of a server may quote the URL, which a traceback would show: no chain in that case.
                    raise self.where.refusal(error) from (error if self.where.file is not None else None)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _passes(self, error: Exception) -> bool:
        """Whether an error may be temporary."""
        text, origin = cause(error).lower(), origin_of(error)
        if any(word in text for word in _PASSING) or getattr(origin, "sqlstate", None) in _PASSING_STATES:
            return True
        # If a server was never reached, its name is more likely wrong than the server is down.
        return self._reached and self.where.file is None and "connect" in text

    def _open(self) -> optuna.storages.RDBStorage:
        _refuse_other_databases(self.where)
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.where.file is not None:
            options = {"connect_args": {"timeout": PATIENCE}}
        try:
            with quiet():
                # Without a pool at first, because the connections of a storage that fails here could not be closed.
                maker = optuna.storages.RDBStorage(
                    self.where.text, engine_kwargs={**options, "poolclass": sqlalchemy.NullPool}
                )
                TAKEN.metadata.create_all(maker.engine)
                return optuna.storages.RDBStorage(
                    self.where.text, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True
                )
        except RuntimeError as error:
            # The error of optuna for the tables of another version.
            raise self.where.refusal(error) from None


def _refuse_other_databases(where: Location) -> None:
    """An SQLite file with other tables than optuna's belongs to another program and is not changed."""
    if where.file is None or not where.file.exists():
        return
    engine = sqlalchemy.create_engine(where.url, connect_args={"timeout": PATIENCE})
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    # One of optuna's tables is enough: a process that was killed while creating them may have left only some.
    if tables and not any(table.startswith(("studies", "study_", "trial", "version_info")) for table in tables):
        raise StateError(
            f"the store of finished runs must be a file that compare has made, but {where} is another database, with "
            f"the tables {', '.join(sorted(tables)[:4])}: move it away, or choose another folder with out"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress optuna's message for every new study; the verbosity that the user has set is restored."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
