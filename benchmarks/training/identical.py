"""How often methods that are the same differ in a comparison: ``python -m benchmarks.training.identical``.

Six names of one perceptron, on subsets of scikit-learn's digits. Weights depend on name and seed, so that runs differ
by chance alone. The rules of `compare` are set against the rule of a study that only chooses the rate with the lowest
mean of each method, and tests the differences at these rates.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.speed.measure import RESULTS, machine
from normkit.study.analysis import verdict
from normkit.study.analysis.cells import cells
from normkit.study.analysis.verdict import Look, Pair
from normkit.study.execution.workload import REPEATED, STAGES, Workload
from normkit.study.resolving import Resolving
from normkit.study.suite import data
from normkit.study.task import Task
from normkit.study.training.design import design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

NAMES = ("none", "batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm")
SEEDS = (5, 10, 20)
SIZE, STEPS = 16, 50
PARTS = (150, 100, 500)


class NoReports:
    """A store without reports: each number of seeds is judged as if it were the first."""

    def looks(self, *_: Any) -> tuple[int, ...]:
        return ()


def network(name: str, seed: int) -> nn.Module:
    """The same perceptron for each name, with other weights."""
    torch.manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def task(number: int) -> Task:
    """A subset of the digits, with noise."""
    train, validation, test = data.digits(PARTS, 0.3, number)
    return Task(None, train, test, validation=validation, arms=network, name=f"subset {number}")


def run(trainer: Trainer, workload: Workload, asked: list[Trial]) -> int:
    """Train what is new; returns how many runs that were."""
    new = [trial for trial in dict.fromkeys(asked) if trial not in workload.runs]
    groups: dict[tuple[str, float], list[Trial]] = {}
    for trial in sorted(new, key=lambda trial: (trial.rate, trial.seed)):
        groups.setdefault((trial.method, trial.part), []).append(trial)
    for trials in groups.values():
        for found in trainer.execute(workload.task, workload.design, trials):
            workload.runs[found.trial] = found
    return len(new)


def differing(pairs: tuple[Pair, ...]) -> tuple[int, int]:
    """The number of pairs that differ, and of all pairs."""
    return sum(pair.relation in ("better", "worse") for pair in pairs), len(pairs)


def study(number: int) -> dict[str, Any]:
    """One data set: the pairs that differ at each number of seeds, by both rules, and the runs."""
    trainer = Trainer()
    plan = replace(design(NAMES, (SIZE,), SEEDS[-1], 7, STEPS, 0), confirm=True)
    workload = Workload("identical", task(number), plan)
    for what, ask in STAGES.items():
        while run(trainer, workload, list(ask(workload))) and what in REPEATED:
            pass
    apart = Workload("apart", workload.task, replace(plan, confirm=False), runs=workload.runs)
    run(trainer, apart, list(apart.results()))
    usual, found = len(workload.runs), {}
    for seeds in SEEDS:
        workload.design = replace(plan, seeds=seeds)
        resolving = Resolving(workload, NoReports())  # type: ignore[arg-type]
        while run(trainer, workload, list(resolving.confirm(workload))):
            pass
        before = replace(workload.design, confirm=False)
        looks = [Look(seeds, plan.alpha)]
        found[str(seeds)] = {
            "separate rates": differing(verdict.pairs(before, cells(before, workload.runs, {}), looks)),
            "compare": differing(verdict.pairs(workload.design, cells(workload.design, workload.runs, {}))),
        }
    rates = {cell.rate for cell in cells(plan, workload.runs, {}).values()}
    return {"set": number, "pairs": found, "rates": len(rates), "runs": usual, "confirming": len(workload.runs) - usual}


def main(sets: Annotated[int, typer.Option(help="Number of data sets.")] = 24) -> None:
    """Write benchmarks/results/identical.json."""
    torch.set_num_threads(1)
    found = []
    for number in range(sets):
        found.append(study(number))
        print(number, found[-1]["pairs"], found[-1]["confirming"], flush=True)
    total = {
        seeds: {
            rule: {
                "studies with a difference": sum(each["pairs"][str(seeds)][rule][0] > 0 for each in found),
                "pairs that differ": sum(each["pairs"][str(seeds)][rule][0] for each in found),
            }
            for rule in ("separate rates", "compare")
        }
        for seeds in SEEDS
    }
    print(json.dumps(total, indent=2))
    path = RESULTS / "identical.json"
    path.write_text(json.dumps({"machine": machine(), "total": total, "studies": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
