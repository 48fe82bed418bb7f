"""A study from end to end: failed runs are recorded, nothing is run twice, an interrupt loses nothing."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from normkit.errors import ArgumentError, StateError
from normkit.study.claims import SUITE
from normkit.study.comparison import Comparison
from normkit.study.execution import payload, scheduler
from normkit.study.execution.payload import Payload
from normkit.study.execution.store import Store
from normkit.study.execution.workers import make_executor
from normkit.study.execution.workload import Workload
from normkit.study.run_study import run_study
from normkit.study.setup import make_folder
from normkit.study.suite import networks
from normkit.study.task import Task, embedded
from normkit.study.training import design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

DIGITS = embedded.digits()


def plan(*methods: str, steps: int = 40, seeds: int = 2) -> design.Design:
    return replace(design.design(methods, (4,), seeds, 3, steps, 0), gap_images=32, time_rounds=3)


def convnet(method: str, seed: int) -> nn.Sequential:
    return networks.convnet(method, seed, channels=embedded.CHANNELS)


def whole(
    work: Task, plan: design.Design, folder: Path, progress: scheduler.Progress | None = None, workers: int = 1
) -> Comparison:
    workload = Workload("digits", work, plan, timed=True)
    with Store(folder / "study.sqlite3") as store:
        pool = make_executor(Payload.of([workload]), workers)
        return run_study([workload], (), store, pool, progress=progress or silent)


def silent(done: int, total: int, what: str) -> None:
    pass


def no_group_norm(method: str, seed: int) -> nn.Module:
    if method == "group_norm":
        raise RuntimeError("no room for it")
    return convnet(method, seed)


def test_a_run_that_raises_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    broken = replace(DIGITS, arms=no_group_norm)
    found = whole(broken, plan("BN", "GN"), tmp_path, silent)
    assert found.complete
    assert {(f.trial.method, f.message) for f in found.failures} == {("group_norm", "RuntimeError: no room for it")}
    assert len(found.failures) == 6
    note = (
        "6 runs failed, the first one with group norm at batch size 4 (RuntimeError: no room for it); the report lists"
    )
    assert note in found.note
    assert note in str(found)
    assert all('raise RuntimeError("no room for it")' in f["trace"] for f in found.to_dict()["failures"])
    assert len(found.cell("batch_norm", 4).runs) == 2
    assert found.cell("group_norm", 4).error is None
    assert found.cell("group_norm", 4).time_ratio is None
    assert found.cell("batch_norm", 4).time_ratio is not None
    assert all("in no_group_norm" in f.trace for f in found.failures)
    with Store(tmp_path / "study.sqlite3") as store:
        assert sum(r.state == "failed" for r in store.runs(broken, plan("BN", "GN")).values()) == 6


def test_a_resumed_study_runs_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = plan("BN")
    first = whole(DIGITS, p, tmp_path, silent)
    ran: list[Trial] = []
    execute = Trainer.execute
    monkeypatch.setattr(Trainer, "execute", lambda s, t, d, trials: (ran.extend(trials), execute(s, t, d, trials))[1])
    monkeypatch.setattr(payload, "time_steps", lambda *_: pytest.fail("timed again"))
    second = whole(DIGITS, p, tmp_path, silent)
    assert ran == []
    assert (second.cells, second.pairs) == (first.cells, first.pairs)
    grown = whole(DIGITS, replace(p, seeds=3), tmp_path, silent)
    assert {trial.seed for trial in ran} == {p.evaluation_seeds[-1] + 1}
    assert len(ran) == 2
    assert len(grown.cell("none", 4).runs) == 3


def test_the_comparison_is_finished_and_reported_before_the_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, Trial]] = []

    def execute(_: Trainer, task: Task, plan: design.Design, trials: Sequence[Trial]) -> list[Run]:
        ran.extend((plan.seeds, trial) for trial in trials)
        return [Run(t, "trained", "", (1.0,) * 40, 0.1, 0.1 + t.rate, 0.1, test_error=0.1) for t in trials]

    monkeypatch.setattr(Trainer, "execute", execute)
    monkeypatch.setattr(payload, "time_steps", lambda *_: {"none": [0.1] * 3, "batch_norm": [0.1] * 3})
    p, q = plan("BN"), plan("BN", seeds=3)
    works = [Workload("digits", DIGITS, p, timed=True), Workload("other", DIGITS, replace(q, seed=1))]
    one = next(each for each in SUITE if each.workloads == ("digits",))
    # An experiment on each workload, of which that on the other one is not measured early.
    two = [replace(one, effect=lambda _: None), replace(one, effect=lambda _: None, cells=(("other", "none", 4),))]
    early: list[tuple[int, Comparison]] = []
    stages: list[str] = []

    def report(found: Comparison) -> Path:
        early.append((len(ran), found))
        return tmp_path / "index.html"

    with Store(tmp_path / "study.sqlite3") as store:
        pool = make_executor(Payload.of(works), 1)
        found = run_study(works, two, store, pool, progress=lambda *now: stages.append(now[2]), report=report)
    ((count, first),) = early
    assert {seeds for seeds, _ in ran[:count]} == {2}
    assert {seeds for seeds, _ in ran[count:]} == {3}
    assert (first.complete, found.complete) == (False, True)
    assert (first.awaited, found.awaited) == (1, 0)
    assert first.cells == found.cells, "the first page has the whole comparison, times included"
    assert first.cell("batch_norm", 4).time_ratio is not None
    assert found.trained == len(ran) > first.trained == count
    assert stages.index("timing") < stages.index("claims: trying learning rates")
    assert not any(stage.startswith("claims") for stage in stages[: stages.index("timing")])


def test_a_long_study_has_a_page_when_a_third_of_the_seeds_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(_: Trainer, task: Task, plan: design.Design, trials: Sequence[Trial]) -> list[Run]:
        # The methods differ so much that a test would say so; but no difference is confirmed yet.
        errors = {t: 0.1 + 0.2 * (t.method == "none") + 0.001 * (t.seed % 7) + 1e-4 * t.rate for t in trials}
        return [Run(t, "trained", "", (1.0,) * 40, e, e, 0.1, test_error=e) for t, e in errors.items()]

    monkeypatch.setattr(Trainer, "execute", execute)
    pages: list[Comparison] = []
    said: list[str] = []

    def report(found: Comparison) -> Path:
        pages.append(found)
        return tmp_path / "index.html"

    def run(seeds: int) -> Comparison:
        work = Workload("digits", DIGITS, plan("BN", seeds=seeds))
        with Store(tmp_path / "study.sqlite3") as store:
            pool = make_executor(Payload.of([work]), 1)
            return run_study([work], [], store, pool, progress=silent, report=report, announce=said.append)

    assert run(4).complete
    assert not pages, "a short study has one page"
    monkeypatch.setattr(scheduler, "LONG", 0.0)
    found = run(8)
    assert not pages, "a third of the seeds were measured before"
    found = run(30)
    (early,) = pages
    assert (early.preliminary, early.complete, early.looks[-1].seeds) == (True, False, 30)
    assert {len(cell.runs) for cell in early.cells} == {10}
    assert (found.preliminary, found.complete) == (False, True)
    assert {len(cell.runs) for cell in found.cells} == {30}
    assert said == [f"A third of the seeds are measured, for a preliminary report: {tmp_path / 'index.html'}"]


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on the numbers of a run: they are made up, and differ between methods and rates."""

    def execute(_: Trainer, task: Task, plan: design.Design, trials: Sequence[Trial]) -> list[Run]:
        errors = {t: 0.1 + 0.1 * t.rate + 0.1 * (t.method == "none") + 0.01 * (t.seed % 7) for t in trials}
        return [Run(t, "trained", "", (1.0,) * plan.steps, e, e, 0.1, test_error=e) for t, e in errors.items()]

    monkeypatch.setattr(Trainer, "execute", execute)
    monkeypatch.setattr(payload, "time_steps", lambda *_: {"none": [0.1] * 3, "batch_norm": [0.1] * 3})


@pytest.mark.usefixtures("without_training")
def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    p = plan("BN")
    cut = whole(DIGITS, p, tmp_path, stop)
    assert not cut.complete
    assert sum(len(cell.tuning) + len(cell.runs) for cell in cut.cells) == 6
    assert cut.answer == "Nothing has been measured yet at batch size 4."
    rest = whole(DIGITS, p, tmp_path, silent)
    assert rest.complete
    assert len(rest.cell("batch_norm", 4).runs) == 2


@pytest.mark.usefixtures("without_training")
def test_an_interrupt_that_is_lost_on_its_way_ends_the_study_too(tmp_path: Path) -> None:
    def swallow(done: int, total: int, what: str) -> None:
        if done == 6:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    cut = whole(DIGITS, plan("BN"), tmp_path, swallow)
    assert not cut.complete
    assert sum(len(cell.tuning) + len(cell.runs) for cell in cut.cells) == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_before_anything_is_passed_on(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(DIGITS, plan("BN"), tmp_path, stop)


@pytest.mark.usefixtures("without_training")
def test_an_unforeseen_error_says_what_is_kept(tmp_path: Path) -> None:
    def fail(done: int, total: int, what: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        whole(DIGITS, plan("BN"), tmp_path, fail)
    assert caught.value.__notes__ == [
        f"Finished runs are kept in {tmp_path / 'study.sqlite3'}: the same call continues from them."
    ]


def test_a_folder_or_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.sqlite3"
    file.write_text("no database", encoding="utf-8")
    with pytest.raises(
        StateError, match=r"be opened \(file is not a database\): move it away, or choose another folder"
    ):
        whole(DIGITS, plan("BN"), tmp_path, silent)
    assert file.read_text(encoding="utf-8") == "no database"
    with pytest.raises(
        ArgumentError, match=r"one can be made, got '.*study.sqlite3/x' \(Not a directory\): name another"
    ):
        make_folder(file / "x")


def test_a_script_without_a_guard_gets_an_error_that_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import normkit\n"
        "normkit.compare(methods=['BN'], batch_sizes=[8], seeds=2, trials=3, steps=40, workers=2, claims=False, "
        f"out={str(tmp_path)!r}, progress=False)\n"
    )
    # Without an answer it would wait for ever; importing torch twice takes a few seconds.
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "the training processes must live until their work is done, but one ended early" in done.stderr
    # The workers say so themselves, before they do any work.
    assert "a worker process cannot start a study, and this one calls compare while it imports" in done.stderr
    assert "A script that calls compare must do so under `if __name__ == '__main__':`" in done.stderr
