"""`kill -9` at any moment, and two processes on one store: no finished run is lost, changed or stored twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_up import prepared

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.study.execution.store import Store
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

SCRIPT = """
import sys
from pathlib import Path
import test_kill

if __name__ == "__main__":
    test_kill.study(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""
GIVEN: dict[str, Any] = {
    "methods": ["BN"],
    "batch_sizes": [4],
    "trials": 3,
    "steps": 40,
    "claims": False,
    "progress": False,
}
WORKLOAD = prepared(methods=["BN"], batch_sizes=[4], seeds=2, trials=3, steps=40, claims=False)[0][0]


def study(folder: Path, seeds: int, workers: int = 1, **options: Any) -> None:
    normkit.compare(**GIVEN, seeds=seeds, out=folder, workers=workers, **options)


@contextmanager
def started(folder: Path, seeds: int, workers: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """The study in a separate process group; no process of it remains afterwards."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(seeds), str(workers)],
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def members(group: int) -> list[int]:
    """The living processes of a group, without those of Python that clean up after their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, leader = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if int(leader) == group and state != "Z" and "resource_tracker" not in command:
            found.append(int(path.name))
    return found


def stored(folder: Path) -> dict[Trial, Run]:
    """The runs that are there; none of a file that is not there yet."""
    if not (folder / "study.sqlite3").exists():
        return {}
    with Store(folder / "study.sqlite3") as store:
        return store.runs(WORKLOAD.task, WORKLOAD.design)


def copies(folder: Path) -> Counter[str]:
    """How often each trial was stored as finished."""
    return Counter(trial for (trial,) in asked(folder, FINISHED))


FINISHED = """
select json_extract(value_json, '$.job') from trial_user_attributes join trials using (trial_id)
where key = 'run' and state = 'COMPLETE'
"""


def asked(folder: Path, question: str) -> list[tuple[Any, ...]]:
    """Read from the file directly, because opening it as a store would create the tables of the study."""
    path = folder / "study.sqlite3"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        try:
            return connection.execute(question).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []


def owners(folder: Path) -> Counter[str]:
    """How many trials each process has taken."""
    return Counter(owner for (owner,) in asked(folder, "select owner from normkit_taken"))


def assert_shared(folder: Path) -> None:
    """Two processes with one worker each did the work, and hardly any of it twice.

    When a stage has nothing else left, a process repeats the trials that the other one has not finished; if both end
    within the same milliseconds, both are stored. That is at most one batch of trials for each of three stages.
    """
    found = copies(folder)
    assert sum(found.values()) - len(found) <= 3 * WORKLOAD.design.stack
    # One may have started a little later, but neither may have done nearly all.
    shares = owners(folder)
    assert len(shares) == 2
    assert min(shares.values()) > 0.2 * sum(shares.values())


def assert_same(runs: dict[Trial, Run], others: dict[Trial, Run]) -> None:
    """All equal; averages over many samples at the end up to 1e-6, about ten roundings of fp32 at 1.

    The order in which a vector unit sums depends on the address of the memory, which differs between processes.
    """
    assert runs.keys() == others.keys()
    for trial in runs:
        one, other = runs[trial], others[trial]
        assert rounded(one) == pytest.approx(rounded(other), rel=1e-6, abs=1e-6)
        same: dict[str, Any] = {"validation_loss": None, "gap": None, "probes": {}, "seconds": 0.0}
        assert replace(one, **same) == replace(other, **same)


def rounded(run: Run) -> dict[str, float]:
    found = {"validation loss": run.validation_loss, "gap": run.gap, **run.probes}
    return {name: value for name, value in found.items() if value is not None}


def await_(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def without_announcements() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def test_a_killed_study_goes_on_from_its_runs(tmp_path: Path) -> None:
    with started(tmp_path, seeds=2, workers=1) as process:
        await_(lambda: stored(tmp_path), 120)
        process.kill()
        process.wait()
    before = stored(tmp_path)
    study(tmp_path, 2, resume=True)
    after = stored(tmp_path)
    assert 0 < len(before) < len(after) == sum(copies(tmp_path).values())
    assert {trial: after[trial] for trial in before} == before
    # The runs of both processes are those of a single one; the slow test compares all of them.
    some = (next(iter(before)), max(after, key=lambda trial: trial.seed))
    assert_same(
        {trial: after[trial] for trial in some},
        {trial: Trainer().execute(WORKLOAD.task, WORKLOAD.design, [trial])[0] for trial in some},
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    cut, whole, seeds = tmp_path / "cut", tmp_path / "whole", 600
    cut.mkdir()
    moments = random.Random(0)
    sizes = []
    for kill in range(20):
        before = stored(cut)
        # Some kills happen during the start of Python, of the store or of the workers, most after at least one batch.
        more, delay = moments.choice([(0, 8.0), (1, 3.0), (1, 3.0)])
        with started(cut, seeds) as process:
            await_(lambda old=before, more=more: len(copies(cut)) >= len(old) + more, 120)
            time.sleep(moments.uniform(0.0, delay))
            assert process.poll() is None, "the study was too short for the test"
            durable = stored(cut)
            # Half the time only the parent: its workers must notice by themselves.
            if kill % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            await_(lambda process=process: not members(process.pid), 10)
        after = stored(cut)
        assert {trial: after[trial] for trial in before} == before
        assert {trial: after[trial] for trial in durable} == durable
        assert max(copies(cut).values(), default=1) == 1
        sizes.append(len(after))
    print("runs after each kill:", sizes)
    # Behind kills that came too early all sizes would be one.
    assert len(set(sizes)) > 10
    study(cut, seeds, workers=2, resume=True)
    study(whole, seeds, workers=2)
    assert_same(stored(cut), stored(whole))
    assert max(copies(cut).values()) == 1
    assert len(copies(cut)) == len(stored(cut))


@pytest.mark.slow
def test_two_at_once_share_the_work(tmp_path: Path) -> None:
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    shared.mkdir()
    # Many batches for each, so that a start some seconds later does not decide.
    with started(shared, seeds=200, workers=1) as first, started(shared, seeds=200, workers=1) as second:
        assert first.wait(300) == 0
        assert second.wait(300) == 0
    study(whole, 200)
    assert_same(stored(shared), stored(whole))
    assert_shared(shared)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_an_interrupt_of_the_whole_group_leaves_a_report(tmp_path: Path) -> None:
    command = "compare --methods BN --batch-sizes 4 --seeds 100 --trials 3 --steps 60 --workers 2 --no-progress --out"
    process = subprocess.Popen(
        [sys.executable, "-c", "from normkit.cli import app; app()", *command.split(), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    await_(lambda: len(copies(tmp_path)) > 10, 60)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Report: " in output
    assert errors.strip() == "Interrupted. The same command continues from here."
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["complete"] is False
    # The last ones are still about to end when the parent has gone.
    await_(lambda: not members(process.pid), 10)


RANKS = """
import json
import sys
from pathlib import Path
import normkit

if __name__ == "__main__":
    found = normkit.compare(methods=["BN"], batch_sizes=[4], seeds=200, trials=3, steps=40, claims=False,
                            out=sys.argv[1],
                            progress=False)
    Path(sys.argv[1], f"rank{'' if found.path else ' other'}.txt").write_text(json.dumps(len(found.cells)))
"""


@pytest.mark.slow
def test_the_ranks_of_torchrun_share_the_work(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANKS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = tmp_path / "out"
    done = subprocess.run(
        [*command, str(out)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "index.html",
        "results.json",
        "study.sqlite3",
        "rank.txt",
        "rank other.txt",
    }
    assert_shared(out)
    alone = normkit.compare(**GIVEN, seeds=200, workers=1, out=tmp_path / "alone")
    cells = json.loads((out / "results.json").read_text(encoding="utf-8"))["cells"]
    assert [cell["error"] for cell in cells] == [cell["error"] for cell in alone.to_dict()["cells"]]
    assert all(cell["time_ratio"] for cell in cells)


def test_what_torchrun_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        ArgumentError, match=r"on several machines the store must be a server .* got a file: give store="
    ):
        study(tmp_path, 2)
    with pytest.raises(
        ArgumentError, match=r"each rank does a part of the work itself, got executor='ray': leave that"
    ):
        study(tmp_path, 2, executor="ray")


def test_resume_demands_a_store_and_a_study_in_it(tmp_path: Path) -> None:
    with pytest.raises(
        StateError, match=r"there is no .*study.sqlite3: leave out resume to begin one, or name the folder"
    ):
        study(tmp_path, 2, resume=True)
    assert not (tmp_path / "study.sqlite3").exists()
    study(tmp_path, 2)
    with pytest.raises(
        StateError, match=r"has none with this data, this training and this version .*: leave out resume"
    ):
        study(tmp_path, 2, resume=True, seed=1)
