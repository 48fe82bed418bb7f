"""The store of runs: which locations are refused, and the messages, never with a password; also PostgreSQL."""

import glob
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
import test_kill

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.study.comparison import Comparison
from normkit.study.execution import database
from normkit.study.execution.location import Location
from normkit.study.execution.store import Store
from normkit.study.task import embedded
from normkit.study.training import design
from normkit.study.training.trial import Run, Trial

DIGITS = embedded.digits()
PLAN = replace(design.design(("BN",), (4,), 2, 3, 40, 0), gap_images=32, time_rounds=3)
SECRET = "s3cr{t}/word"
STUDY = (DIGITS, PLAN)
TRIAL = Trial("tune", "none", 4, 0.1, 7)
RUN = Run(TRIAL, "trained", losses=(2.0, 1.5), validation_error=0.25)


class Opened:
    """A store with one task and design; it is begun."""

    def __init__(self, where: str | Path) -> None:
        self.store = Store(Location.of(where))
        self.store.begin([STUDY])
        self._database = self.store._database

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.__exit__()

    def add(self, run: Run) -> None:
        self.store.add(*STUDY, run)

    def find(self, trial: Trial) -> Run | None:
        return self.store.find(*STUDY, trial)

    def runs(self) -> dict[Trial, Run]:
        return self.store.runs(*STUDY)

    def take(self, trials: list[Trial]) -> Trial:
        return self.store.take([(*STUDY, trials, 1)])[1][0]


opened = Opened


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite://", "sqlite:///"])
def test_a_store_that_would_not_last_is_refused(url: str) -> None:
    with pytest.raises(
        ArgumentError, match=r"must outlive this process, got an SQLite database in memory: name a file"
    ):
        opened(url)


@pytest.mark.parametrize(
    "url", ["runs.sqlite3", f"nosuch://owner:{SECRET}@host/runs", f"postgresql://owner:{SECRET}@host:x/runs"]
)
def test_what_is_no_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(
        ArgumentError, match="store must be the URL of a database that SQLAlchemy knows, such as"
    ) as caught:
        opened(url)
    assert SECRET not in all_texts(caught.value)


def all_texts(error: BaseException) -> str:
    """All that a traceback shows of an error: its text and that of those it came from."""
    chain = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error} {getattr(error, '__notes__', '')} {all_texts(chain) if chain else ''}"


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(
        StateError, match=r"the store mysql://owner:\*\*\*@host/runs needs a package .*MySQLdb.*with pip"
    ):
        opened(f"mysql://owner:{SECRET.replace('/', '')}@host/runs?ssl_key=hidden")
    error = Location.of("postgresql+psycopg://host/runs").driver_missing(ImportError(name="psycopg"))
    assert 'pip install "normkit[postgres]"' in str(error)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = sqlalchemy.URL.create("postgresql+psycopg", "owner", SECRET, "127.0.0.1", port, "runs").render_as_string(
        False
    )
    pytest.importorskip("psycopg")
    with pytest.raises(
        StateError,
        match=rf"can be reached .* but postgresql\+psycopg://owner:\*\*\*@127.0.0.1:{port}/runs answers: .*refused",
    ) as caught:
        opened(url)
    assert "s3cr" not in all_texts(caught.value)


def test_a_folder_that_is_not_there_and_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot be opened \(unable to open database file\)"):
        opened(f"sqlite:///{tmp_path}/no/folder.sqlite3")
    with opened(tmp_path / "s.sqlite3"):
        pass
    with (
        pytest.raises(
            StateError, match=r"may write to, but .*s.sqlite3 cannot be opened \(attempt to write a readonly"
        ),
        Store(Location.of(f"sqlite:///file:{tmp_path}/s.sqlite3?mode=ro&uri=true")) as store,
    ):
        store.begin([(embedded.digits(1), PLAN)])


def test_somebody_elses_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("create table recipes (name text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match=r"other.sqlite3 is another database, with the tables recipes: move it away"):
        opened(path)
    assert path.read_bytes() == before


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    with opened(path) as store:
        store.add(RUN)
    change(path, "update study_user_attributes set value_json = '99' where key = 'format'")
    with pytest.raises(
        StateError, match=r"must have format 1, but .*s.sqlite3 was written by another version of normkit, in format 99"
    ):
        opened(path)
    change(path, "update study_user_attributes set value_json = '1' where key = 'format'")
    with opened(path) as store:
        assert store.runs() == {TRIAL: RUN}
    change(path, "update alembic_version set version_num = 'v2.6.0.a'")
    with pytest.raises(StateError, match=r"the tables of the optuna that is installed, but .* by another version"):
        opened(path)


def test_a_full_disk_is_named_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with opened(tmp_path / "s.sqlite3") as store:
        store.add(RUN)
        engine = store._database._storage.engine
        engine.dispose()
        # SQLite's own limit, which gives the error of a full disk.
        sqlalchemy.event.listen(
            engine, "connect", lambda connection, _: connection.execute("pragma max_page_count = 1")
        )
        big = replace(RUN, trial=replace(TRIAL, seed=8), losses=(1.5,) * 50_000)
        with pytest.raises(
            StateError, match=r"needs space, but the disk of .* is full \(database or disk is full\): free some"
        ):
            store.add(big)
    with opened(tmp_path / "s.sqlite3") as store:
        assert store.runs() == {TRIAL: RUN}
        store.add(big)
        assert store.runs()[big.trial] == big


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    with opened(path) as store:
        holder = sqlite3.connect(path, check_same_thread=False)
        holder.execute("begin exclusive")
        threading.Timer(0.5, holder.rollback).start()
        store.add(RUN)
        holder.close()
        assert store.find(TRIAL) == RUN


def test_a_lock_that_stays_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    path = tmp_path / "s.sqlite3"
    with opened(path) as store:
        holder = sqlite3.connect(path)
        holder.execute("begin exclusive")
        with pytest.raises(StateError, match="database is locked"):
            store.find(TRIAL)
        holder.close()


def test_a_run_is_stored_once_and_a_failed_one_gives_way(tmp_path: Path) -> None:
    failed = Run(TRIAL, "failed", "its process died")
    with opened(tmp_path / "s.sqlite3") as one, opened(tmp_path / "s.sqlite3") as other:
        one.add(failed)
        assert one.find(TRIAL) is None
        assert one.runs() == {TRIAL: failed}
        other.add(RUN)
        one.add(RUN)
        one.add(failed)
        assert one.find(TRIAL) == other.find(TRIAL) == RUN
        assert one.runs() == other.runs() == {TRIAL: RUN}


def test_each_process_takes_what_others_have_not(tmp_path: Path) -> None:
    trials = [replace(TRIAL, seed=seed) for seed in range(3)]
    with opened(tmp_path / "s.sqlite3") as one, opened(tmp_path / "s.sqlite3") as other:
        assert one.take(trials) == trials[0]
        assert other.take(trials) == trials[1]
        # What it has taken itself it may take again: after an interrupt, for one.
        assert one.take(trials[:2]) == trials[0]
        assert other.take(trials[:1]) == trials[0]


STEPS = (
    "CREATE TABLE studies",
    "CREATE TABLE trials",
    "INSERT INTO version_info",
    "CREATE TABLE alembic_version",
    "INSERT INTO alembic_version",
    "CREATE TABLE normkit_taken",
    "INSERT INTO studies",
    "INSERT INTO study_user_attributes",
)


@pytest.mark.parametrize("step", STEPS)
def test_two_that_make_one_store_at_once(tmp_path: Path, step: str) -> None:
    another_makes_it_at(step, tmp_path / "s.sqlite3")


def another_makes_it_at(step: str, where: str | Path) -> None:
    """A store is made, and just before this step of that another one is made whole at the same place."""
    came: list[str] = []

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not came and step in " ".join(statement.replace('"', "").split()):
            came.append(statement)
            with opened(where) as other:
                other.add(RUN)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", interrupt)
    try:
        with opened(where) as store:
            assert store.runs() == {TRIAL: RUN}
            store.add(RUN)
            assert store.runs() == {TRIAL: RUN}
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", interrupt)
    assert came


def test_a_server_may_say_in_any_language_that_another_was_first() -> None:
    errors = pytest.importorskip("psycopg").errors
    first = [errors.DuplicateTable("Relation »studies« existiert bereits"), errors.InsufficientPrivilege("verboten")]
    place = object.__new__(database.Database)
    place.where, place._reached = Location.of("postgresql+psycopg://host/runs"), False

    def create() -> str:
        if first:
            raise sqlalchemy.exc.ProgrammingError("create table studies", {}, first.pop(0))
        return "made"

    with pytest.raises(StateError, match=r"answers: verboten"):
        place.use(create)
    assert place.use(create) == "made"


BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str, str]]:
    """A PostgreSQL server with a password: the URL, and the commands that start and stop it."""
    pytest.importorskip("psycopg")
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (/usr/lib/postgresql)")
    if os.geteuid() == 0 and not shutil.which("runuser"):
        pytest.skip("PostgreSQL refuses root, and there is no runuser")
    # Not tmp_path: the user postgres may not enter root's folders.
    folder = tempfile.mkdtemp(prefix="normkit-postgres-")
    Path(folder, "password").write_text(SECRET, encoding="utf-8")
    prefix = ""
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(f"{folder}/password", "postgres")
        prefix = "runuser -u postgres -- "
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    control = f"{prefix}{BINARIES[-1]}/pg_ctl -D {folder}/data -w"
    start = f"{control} -l {folder}/log -o '-p {port} -k {folder} -c listen_addresses=127.0.0.1' start"
    stop = f"{control} -m fast stop"
    try:
        shell(f"{prefix}{BINARIES[-1]}/initdb -D {folder}/data -U owner --pwfile={folder}/password -A scram-sha-256")
        shell(start)
        url = sqlalchemy.URL.create("postgresql+psycopg", "owner", SECRET, "127.0.0.1", port, "postgres")
        yield url.render_as_string(hide_password=False), start, stop
    finally:
        subprocess.run(stop, shell=True, capture_output=True, check=False)
        shutil.rmtree(folder)


def shell(command: str) -> None:
    # To a file: the server keeps the pipe of its starter open.
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(command, shell=True, stdout=log, stderr=log, cwd="/", check=False)
        log.seek(0)
        assert done.returncode == 0, log.read().decode()


def all_runs(found: Comparison) -> dict[Trial, Run]:
    return {run.trial: run for cell in found.cells for run in (*cell.tuning, *cell.runs)}


@pytest.mark.slow
def test_postgresql_gives_what_sqlite_gives(server: tuple[str, str, str], tmp_path: Path) -> None:
    url, _, _ = server
    given = {
        "methods": ["BN"],
        "batch_sizes": [4],
        "seeds": 2,
        "trials": 3,
        "steps": 40,
        "claims": False,
        "workers": 2,
        "progress": False,
    }
    file = normkit.compare(**given, out=tmp_path / "file")
    first = normkit.compare(**given, out=tmp_path / "first", store=url)
    again = normkit.compare(**given, out=tmp_path / "again", store=url, resume=True)
    assert not (tmp_path / "first" / "study.sqlite3").exists()
    for other in (first, again):
        test_kill.assert_same(all_runs(other), all_runs(file))
    assert [c.seconds for c in again.cells] == [c.seconds for c in first.cells]
    for path in (tmp_path / "first").iterdir():
        assert "s3cr" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_several_that_make_one_store_on_a_server_at_once(server: tuple[str, str, str]) -> None:
    url, _, _ = server
    owner = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection, ThreadPoolExecutor(8) as pool:
        for number in range(5):
            connection.execute(sqlalchemy.text(f"create database new{number}"))
            barrier = threading.Barrier(8)

            def make(where: sqlalchemy.URL, barrier: threading.Barrier = barrier) -> dict[Trial, Run]:
                barrier.wait()
                with Opened(where.render_as_string(hide_password=False)) as store:
                    store.add(RUN)
                    return store.runs()

            places = [sqlalchemy.make_url(url).set(database=f"new{number}")] * 8
            assert list(pool.map(make, places)) == [{TRIAL: RUN}] * 8
    owner.dispose()


@pytest.mark.slow
def test_a_server_that_comes_back_is_waited_for(server: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, start, stop = server
    trials = [replace(TRIAL, seed=seed) for seed in (98, 99, 100)]
    with opened(url) as store:
        store.add(replace(RUN, trial=trials[0]))
        shell(stop)
        back = threading.Timer(3.0, shell, (start,))
        back.start()
        store.add(replace(RUN, trial=trials[1]))
        back.join()
        assert set(trials[:2]) <= set(store.runs())
        monkeypatch.setattr(database, "PATIENCE", 1.0)
        shell(stop)
        with pytest.raises(
            StateError, match=r"written to, but postgresql\+psycopg://owner:\*\*\*@.* answers: "
        ) as caught:
            store.add(replace(RUN, trial=trials[2]))
        assert "s3cr" not in all_texts(caught.value)
        shell(start)
        assert trials[2] not in store.runs()
        assert set(trials[:2]) <= set(store.runs())
