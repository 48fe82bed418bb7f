"""How many true differences `compare` finds, and at what cost: ``python -m benchmarks.training.power``.

Made-up runs: the error of a method is a parabola over the logarithm of the rate (0.05 higher one decade away), and one
method is worse than all others by some standard deviations of a run. The rules of `compare` are set against those of a
study that compares each method at its own rate only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.speed.measure import RESULTS, machine
from benchmarks.training.simulated import METHODS, Simulation, different, parabola

STEEPNESS, MIDDLE, SPREAD = 0.05, -1.5, 0.01


@dataclass(frozen=True)
class Case:
    """Studies of some methods and seeds, in which the last method is worse by `apart` standard deviations."""

    methods: int
    seeds: int
    apart: float
    steepness: float = STEEPNESS
    until_resolved: bool = False


CASES = (
    *(Case(3, seeds, apart) for seeds in (10, 20) for apart in (1, 2)),
    *(Case(7, seeds, apart) for seeds in (10, 20) for apart in (1, 2, 3)),
    Case(7, 10, 2, steepness=0),
    *(Case(3, 10, apart, until_resolved=True) for apart in (0, 1, 2)),
)


def studies(case: Case, count: int, confirm: bool) -> dict[str, Any]:
    """The share of true differences that are found, the studies with a wrong one, and the measured runs."""
    generator = np.random.default_rng(case.seeds)
    worse, found, wrong, runs = METHODS[case.methods - 1], 0, 0, 0
    for _ in range(count):
        curves = {method: parabola(case.steepness, MIDDLE) for method in METHODS[: case.methods]}
        curves[worse] = parabola(case.steepness, MIDDLE, 0.1 + SPREAD * case.apart)
        simulation = Simulation(
            lambda method, rate, curves=curves: curves[method](rate),
            case.methods,
            case.seeds,
            generator,
            SPREAD,
            changes={"confirm": confirm},
            further=case.until_resolved and confirm,
        )
        differing = different(simulation.pairs())
        right = [pair for pair in differing if worse in (pair.first, pair.second) and case.apart > 0]
        right = [pair for pair in right if (pair.relation == "better") == (pair.second == worse)]
        found, wrong = found + len(right), wrong + (len(differing) > len(right))
        runs += sum(trial.kind == "measure" for trial in simulation.workload.runs)
    return {
        "found": round(found / (count * (case.methods - 1)), 3),
        "studies with a wrong difference": wrong,
        "runs": round(runs / (count * case.methods * case.seeds), 2),
    }


def main(count: Annotated[int, typer.Option(help="Studies of each case.")] = 100) -> None:
    """Write benchmarks/results/power.json."""
    rows = []
    for case in CASES:
        row = {"case": vars(case), "compare": studies(case, count, confirm=True)}
        if not case.until_resolved:
            row["own rates only"] = studies(case, count, confirm=False)
        rows.append(row)
        print(json.dumps(row), flush=True)
    path = RESULTS / "power.json"
    path.write_text(json.dumps({"machine": machine(), "studies": count, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
