"""What early discards of learning rates change and save: ``python -m benchmarks.training.discarded``.

Every rate of the built-in tasks is trained to the end. The rates that `compare` would have trained are then picked from
these runs, because the first steps of a run are those of a short one.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.speed.measure import RESULTS, machine
from normkit.study.execution.workload import REPEATED, Workload
from normkit.study.task import embedded
from normkit.study.training.design import FIRST_PART, Design, design
from normkit.study.training.rates import TIES
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial
from normkit.study.training.tuning import tuned

FORECAST = ("none", "batch_norm", "layer_norm", "group_norm", "weight_norm")
TASKS: dict[str, tuple[tuple[str, ...], tuple[int, ...], int]] = {
    "digits": (embedded.METHODS, (2, 32), 6),
    "forecast": (FORECAST, (8, 32), 3),
    "characters": (("none", "batch_norm", "layer_norm"), (8,), 1),
}
"""Methods, batch sizes and number of studies."""


def full(workload: Workload, kept: Path | None) -> dict[Trial, Run]:
    """All rates to the end; `kept` is a file for the runs, so that an interrupted call goes on from there."""
    if kept is not None and kept.exists():
        runs = [Run.from_dict(each) for each in pickle.loads(kept.read_bytes())]
        return {run.trial: run for run in runs}
    trainer, plan, runs = Trainer(), workload.design, []
    for method in plan.methods:
        for size in plan.batch_sizes:
            trials = [Trial("tune", method, size, rate, seed) for rate in plan.rates for seed in plan.tuning_seeds]
            runs += trainer.execute(workload.task, plan, trials)
    if kept is not None:
        kept.write_bytes(pickle.dumps([run.to_dict() for run in runs]))
    return {run.trial: run for run in runs}


def shortened(run: Run, plan: Design) -> Run:
    """The run of the first steps of a run, as far as the choice of rates uses it."""
    steps = round(FIRST_PART * plan.steps)
    broke = len(run.losses) < steps
    return replace(
        run,
        trial=replace(run.trial, part=FIRST_PART),
        losses=run.losses[:steps],
        state="untrained" if broke else "trained",
        validation_loss=None if broke else 1.0,
    )


def discarded(workload: Workload, runs: dict[Trial, Run]) -> None:
    """Give the workload the runs that it asks for; rates beyond the range are left out."""
    for what, ask in (("first", Workload.first_steps), ("rates", Workload.rates), (REPEATED[0], Workload.rates_beside)):
        while new := [t for t in ask(workload) if t not in workload.runs and t.rate in workload.design.rates]:
            for trial in new:
                found = runs[replace(trial, part=1.0)]
                workload.runs[trial] = shortened(found, workload.design) if trial.part < 1 else found
            if what not in REPEATED:
                break


def steps_of(workload: Workload) -> float:
    """Steps of training, in those of a full run."""
    return sum(trial.part for trial in workload.runs)


def study(name: str, seed: int, kept: Path | None) -> Counter[str]:
    """One study: how often the same rate is chosen, and the steps."""
    methods, sizes, _ = TASKS[name]
    work = embedded.TASKS[name]() if name != "digits" else embedded.digits(seed)
    low, high = work.rates
    plan = replace(design(methods, sizes, 2, 7, work.max_steps, seed), lowest_rate=low, highest_rate=high, discard=True)
    early = Workload(name, work, plan)
    late = Workload(name, work, replace(plan, discard=False))
    runs = full(early, kept)
    discarded(early, runs)
    late.runs |= {trial: runs[trial] for trial in late.all_rates()}
    found: Counter[str] = Counter()
    found["steps"], found["all steps"] = round(steps_of(early), 1), round(steps_of(late), 1)  # type: ignore[assignment]
    for size in sizes:
        for confirm, key in ((False, "own"), (True, "shared")):
            one, other = (tuned(replace(w.design, confirm=confirm), w.runs, size) for w in (early, late))
            for method in methods:
                found[f"{key} studies"] += 1
                found[f"{key} same"] += one[method].setting == other[method].setting
                curve, setting = other[method].curve, one[method].setting
                found[f"{key} tied"] += bool(curve and setting and setting[0] in curve.within(TIES))
    return found


def main(keep: Annotated[Path | None, typer.Option(help="A folder for the runs, to go on from.")] = None) -> None:
    """Write benchmarks/results/discarded.json."""
    torch.set_num_threads(1)
    total: dict[str, Any] = {}
    for name, (_, _, count) in TASKS.items():
        start = time.process_time()
        sums: Counter[str] = Counter()
        for seed in range(count):
            sums.update(study(name, seed, keep and keep / f"{name}-{seed}.pkl"))
            print(name, seed, dict(sums), round(time.process_time() - start), flush=True)
        total[name] = dict(sums)
    path = RESULTS / "discarded.json"
    path.write_text(json.dumps({"machine": machine(), "total": total}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
