"""A study from its benches to its comparison, however it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

from normkit.study import machine
from normkit.study.claims.experiment import Experiment
from normkit.study.comparison import Comparison, conclude
from normkit.study.conduct import Bench, Progress, conduct
from normkit.study.crew import Crew
from normkit.study.store import Store


def carry_out(
    benches: Sequence[Bench],
    experiments: Sequence[Experiment],
    store: Store,
    crew: Crew,
    *,
    progress: Progress,
    minutes: float | None = None,
    limit: float | None = None,
    command: str = "",
) -> Comparison:
    """Do what is not in the store yet, and conclude from all of it.

    An interrupt (Ctrl-C) ends the study early: what is stored is concluded from, with `complete` False; with
    nothing stored the interrupt is passed on.

    Args:
        benches: that of the answer first.
        experiments: what is asked of them.
        store: where finished runs are.
        crew: who works; it holds the tasks and designs of the benches.
        progress: called with (runs finished, runs in all, what is running).
        minutes: after which no further run begins.
        limit: seconds a run may take.
        command: for the report, what repeats the study.

    Raises:
        StateError: the store cannot be used, or no process can be started.
    """
    start = time.perf_counter()
    try:
        with crew:
            complete = conduct(benches, store, crew, progress, minutes, limit)
    except KeyboardInterrupt:
        if not any(bench.runs for bench in benches):
            raise
        complete = False
    except Exception as error:
        error.add_note(f"Finished runs are kept in {store.where}: the same call goes on from them.")
        raise
    return conclude(
        benches[0],
        benches[1:],
        experiments,
        complete=complete,
        machine=machine.facts() | {"workers": crew.workers, "executor": crew.executor},
        command=command,
        seconds=time.perf_counter() - start,
    )
