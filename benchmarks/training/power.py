"""How many true differences `compare` finds, and at what cost: ``python -m benchmarks.training.power``.

Made-up runs: the error of a method is a parabola over the logarithm of the rate (0.05 higher one decade away), and one
method is worse than all others by some standard deviations of a run. The rules of `compare` are set against those of a
study that compares each method at its own rate only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.speed.measure import RESULTS, machine
from benchmarks.speed.pages import filled
from benchmarks.training.simulated import METHODS, Simulation, different, parabola

STEEPNESS, MIDDLE, SPREAD = 0.05, -1.5, 0.01
DOCS = RESULTS.parents[1] / "docs"
MARKS = "<!-- power -->\n", "<!-- /power -->\n"
"""The lines of a page before and after the table."""
HEADINGS = {
    "en": (
        "methods",
        "seeds",
        "difference, in standard deviations of a run",
        "`compare`: found",
        "wrong",
        "runs",
        "own rates only: found",
        "wrong",
    ),
    "zh": (
        "方法数",
        "随机种子数",
        "差异，以单次运行的标准差为单位",
        "`compare`：检出",
        "误判",
        "运行数",
        "只用各自的学习率：检出",
        "误判",
    ),
}


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


def page_of(lang: str) -> Path:
    """The page that shows the table."""
    return DOCS / lang / "compare" / "statistics.md"


def shown(page: str, results: dict[str, Any], lang: str) -> str:
    """The page with the table of these results: studies with equal seeds, at the steepness of the others."""
    headings = HEADINGS[lang]
    lines = ["| " + " | ".join(headings) + " |", "|" + "--:|" * len(headings)]
    for row in results["rows"]:
        case = row["case"]
        if case["steepness"] and not case["until_resolved"]:
            found = [f"{100 * row[rule]['found']:.0f} %" for rule in ("compare", "own rates only")]
            wrong = [
                f"{100 * row[rule]['studies with a wrong difference'] / results['studies']:.0f} %"
                for rule in ("compare", "own rates only")
            ]
            runs = f"{row['compare']['runs']:.1f}"
            cells = (case["methods"], case["seeds"], case["apart"], found[0], wrong[0], runs, found[1], wrong[1])
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return filled(page, "\n".join(lines) + "\n", MARKS)


def main(count: Annotated[int, typer.Option(help="Studies of each case.")] = 100) -> None:
    """Write benchmarks/results/power.json, and the table of docs/en/compare/statistics.md and its Chinese page."""
    rows = []
    for case in CASES:
        row = {"case": vars(case), "compare": studies(case, count, confirm=True)}
        if not case.until_resolved:
            row["own rates only"] = studies(case, count, confirm=False)
        rows.append(row)
        print(json.dumps(row), flush=True)
    results = {"machine": machine(), "studies": count, "rows": rows}
    (RESULTS / "power.json").write_text(json.dumps(results, indent=1) + "\n")
    for lang in HEADINGS:
        page = page_of(lang)
        page.write_text(shown(page.read_text(encoding="utf-8"), results, lang), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
