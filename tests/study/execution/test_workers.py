"""Workers that die, hang, raise or return a value that cannot be sent: one item fails, and no other."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lost_items import Number, odd
from torch import nn

import normkit
from normkit.errors import ArgumentError
from normkit.study.analysis.cells import cells
from normkit.study.execution import payload, scheduler
from normkit.study.execution.payload import Payload
from normkit.study.execution.store import Store
from normkit.study.execution.workers import Failure, make_executor
from normkit.study.execution.workers.local import Processes
from normkit.study.execution.workload import Workload
from normkit.study.suite import networks
from normkit.study.task import embedded
from normkit.study.training import design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial


def outcome(workers: int, items: list[str], limit: float | None = None) -> dict[str, Any]:
    with make_executor(Number(40), workers) as pool:
        return dict(pool.work(odd, items, limit))


def test_an_item_that_is_lost_takes_no_other_with_it() -> None:
    found = outcome(2, ["1", "raise", "kill", "2", "hang", "leave", "3", "lambda", "memory", "4"], limit=3.0)
    assert {item: found[item] for item in "1234"} == {item: (40 + int(item), 1) for item in "1234"}
    reasons = {item: result.reason for item, result in found.items() if isinstance(result, Failure)}
    assert reasons.pop("lambda").startswith(("AttributeError: ", "PicklingError: "))
    assert reasons == {
        "raise": "TwoPartsError: no room",
        "memory": "MemoryError: 4 GiB",
        "kill": "its process died: killed by SIGKILL, as the system does when memory runs out",
        "leave": "its process died: it ended with status 3",
        "hang": "it ran past its time limit of 3 s and was stopped",
    }
    assert 'raise TwoPartsError("no ", "room")' in found["raise"].trace


def test_alone_the_work_is_done_in_this_process() -> None:
    before = torch.get_num_threads()
    found = outcome(1, ["1", "raise", "memory"])
    assert found["1"] == (41, 1)
    assert [found[item].reason for item in ("raise", "memory")] == ["TwoPartsError: no room", "MemoryError: 4 GiB"]
    assert torch.get_num_threads() == before


def interrupt(payload: int, item: str) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_is_not_the_loss_of_an_item() -> None:
    with make_executor(0, 1) as pool, pytest.raises(KeyboardInterrupt):
        list(pool.work(interrupt, ["1"]))


def test_the_next_item_is_asked_for_when_a_worker_is_free() -> None:
    asked: list[str] = []

    def items() -> Any:
        for item in ("1", "2", "3"):
            asked.append(item)
            yield item

    with make_executor(0, 1) as pool:
        work = pool.work(odd, items())
        next(work)
        assert asked == ["1"]


class Breaking(Processes):
    """Its pool breaks down twice after a worker has started, as if a worker had died between two items."""

    def __init__(self, payload: Any, workers: int) -> None:
        super().__init__(payload, workers)
        self.pools = 0

    def _start(self) -> Any:
        self.pools += 1
        pool = super()._start()
        if self.pools < 3:
            threading.Thread(target=self._sabotage, args=(pool,)).start()
        return pool

    def _sabotage(self, pool: Any) -> None:
        while len(list(Path(self.folder.name).glob("*.started"))) < self.pools:
            time.sleep(0.01)
        pool._pool_manager.handle_broken_pool(BrokenProcessPool("All workers expired"))


def slow(payload: int, item: int) -> int:
    time.sleep(0.3)
    return payload + item


@pytest.mark.slow
def test_a_pool_that_breaks_is_made_again_and_loses_nothing() -> None:
    with Breaking(40, 2) as pool:
        assert dict(pool.work(slow, range(5))) == {item: 40 + item for item in range(5)}
        assert pool.pools == 3


def deadly(method: str, seed: int) -> nn.Module:
    if method == "group_norm":
        os.kill(os.getpid(), signal.SIGKILL)
    return networks.convnet(method, seed, channels=embedded.CHANNELS)


def workload(build: Any) -> Workload:
    plan = replace(design.design(("BN", "GN"), (4,), 2, 3, 40, 0), gap_images=32, time_rounds=3)
    return Workload("main", replace(embedded.digits(), arms=build), plan, timed=True)


@pytest.mark.slow
def test_runs_that_kill_their_process_fail_and_the_study_goes_on(tmp_path: Path) -> None:
    one = workload(deadly)
    with make_executor(Payload.of([one]), 2) as pool, Store(tmp_path / "s.sqlite3") as store:
        assert scheduler.run_stages([one], store, pool, lambda *_: None)
        assert store.runs(one.task, one.design) == one.runs
    fates = {(run.trial.method, run.state, run.message.partition(":")[0]) for run in one.runs.values()}
    assert fates >= {("group_norm", "failed", "its process died")}
    assert {method for method, state, _ in fates if state == "failed"} == {"group_norm"}
    assert len(cells(one.design, one.runs, one.times)["batch_norm", 4].runs) == 2
    assert set(one.times[4]) == {"none", "batch_norm"}


def endless(task: object, design: object, timing: object) -> None:
    raise MemoryError


def instant(trainer: object, task: object, design: object, trials: Sequence[Trial]) -> list[Run]:
    return [Run(trial, "trained", "", (1.0,) * 40, 0.1, 0.2, 0.5, 0.2, 0.2, 0.2) for trial in trials]


def test_step_times_that_are_lost_are_missing_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "execute", instant)
    monkeypatch.setattr(payload, "time_steps", endless)
    one = workload(networks.convnet)
    lost = r"times at 4 images per step are missing .* \(MemoryError: \): the same call"
    with (
        make_executor(Payload.of([one]), 1) as pool,
        Store(tmp_path / "s.sqlite3") as store,
        pytest.warns(RuntimeWarning, match=lost),
    ):
        assert scheduler.run_stages([one], store, pool, lambda *_: None)
    assert one.times == {}
    assert len(cells(one.design, one.runs, one.times)["batch_norm", 4].runs) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 1, "time_limit": 5.0}, r"in separate processes, which can be stopped, got 5 with workers=1"),
        ({"time_limit": 0.0}, r"time_limit must be more than 0 seconds, got 0.0: leave it out for none"),
        ({"time_limit": float("nan")}, r"time_limit must be more than 0 seconds, got nan"),
        ({"workers": 0}, r"workers must be at least 1, got 0: leave it out for one per core"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        normkit.compare(out=tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"executor": "prozesses"},
            "executor must be one of processes, ray, got 'prozesses': did you mean 'processes'",
        ),
        ({"address": "auto"}, "got 'auto' with executor='processes': give executor='ray' too"),
    ],
)
def test_an_executor_that_is_not_there_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_executor(0, 2, **given)
