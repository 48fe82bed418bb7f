"""Tables and pictures from a result file alone: ``python -m benchmarks.show benchmarks/results/cpu.json``."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu import report
from benchmarks.gpu.report import markdown

MARKER = "<!-- results -->"
NOISE = 1.05
LARGE = 1 << 14  # elements: from here on the kernel takes longer than its call
Numbers = Sequence[float | None]
app = typer.Typer()


def fraction_of_limit(milliseconds: float, copy_milliseconds: float, units: int) -> float:
    """The speed of reading and writing `units` tensors, relative to a plain copy, which reads one and writes one.

    >>> fraction_of_limit(5.0, 1.6, 5)
    0.8
    """
    return copy_milliseconds * units / 2 / milliseconds


@dataclass(frozen=True)
class Row:
    """A cell with the numbers computed from its times."""

    cell: dict[str, Any]

    def ms(self, name: str) -> float | None:
        """Time of a contestant; for torch, of the faster of its two ways of standardizing a weight."""
        times = self.cell["milliseconds"].items()
        return min((t for key, t in times if key.split(",")[0] == name and t is not None), default=None)

    def over(self, *names: str) -> float | None:
        """How many times as fast normkit is as the best of these."""
        mine, theirs = self.ms("normkit"), [t for t in map(self.ms, names) if t is not None]
        return min(theirs) / mine if mine and theirs else None

    @property
    def others(self) -> list[str]:
        """All contestants except normkit, the copy, and oneDNN, which torch may use itself."""
        return [name for name in self.cell["milliseconds"] if name not in ("normkit", "copy", "onednn")]

    def of_limit(self) -> float | None:
        mine, copy = self.ms("normkit"), self.ms("copy")
        return fraction_of_limit(mine, copy, self.cell["units"]) if mine and copy else None

    def gigabytes(self, name: str) -> float | None:
        """Gigabytes per second, counting the bytes that must move."""
        time = self.ms(name)
        return self.cell["bytes"] * self.cell["units"] / time / 1e6 if time else None

    @property
    def large(self) -> bool:
        return bool(math.prod(self.cell["shape"]) >= LARGE)


def _known(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _mean(values: Numbers) -> float | None:
    return statistics.geometric_mean(_known(values)) if _known(values) else None


def _median(values: Numbers) -> float | None:
    return statistics.median(_known(values)) if _known(values) else None


def _least(values: Numbers) -> float | None:
    return min(_known(values), default=None)


def _text(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _group(name: str, rows: Sequence[Row]) -> list[str]:
    both = _known(r.over(*r.others) for r in rows)
    limits = [[r.of_limit() for r in rows if r.cell["backward"] == backward] for backward in (False, True)]
    means = [_text(_mean([r.over(who) for r in rows])) for who in ("torch", "compile")]
    slower = f"{sum(v < 1 / NOISE for v in both)} of {len(both)}"
    ends = [f"{_text(_median(f))} ({_text(_least(f))})" for f in limits]
    return [name, str(len(rows)), *means, slower, _text(_least(both)), *ends]


def _by(key: str, rows: Sequence[Row]) -> str:
    head = ("", "cells", "over eager", "over compile", "slower", "worst", "limit, forward", "limit, both")
    names = dict.fromkeys(r.cell[key] for r in rows)
    return markdown(head, [_group(name, [r for r in rows if r.cell[key] == name]) for name in names])


def _targets(rows: Sequence[Row]) -> str:
    """The targets, and the measured values."""
    weights = [r for r in rows if r.cell["size"] == "weights"]
    large = [r for r in rows if r.large and r not in weights]
    small = [r for r in rows if not r.large and r not in weights]
    limit = [r for r in rows if r.cell["limit"]]
    errors = _known(r.cell["error"]["normkit"] for r in rows)
    asked: list[tuple[str, float | None, float]] = [
        ("16K elements and more, over eager: geometric mean", _mean([r.over("torch") for r in large]), 2.5),
        ("over torch.compile: geometric mean", _mean([r.over("compile") for r in large]), 2.2),
        ("over the best of all: worst cell", _least([r.over(*r.others) for r in large]), 1 / NOISE),
        ("limit, forward: median", _median([r.of_limit() for r in limit if not r.cell["backward"]]), 0.85),
        ("limit, forward and backward: median", _median([r.of_limit() for r in limit if r.cell["backward"]]), 0.8),
        ("limit: worst cell", _least([r.of_limit() for r in limit]), 0.6),
        ("below 16K elements, over eager: worst cell", _least([r.over("torch") for r in small]), 1 / NOISE),
        ("norms of weights, over eager: worst cell", _least([r.over("torch") for r in weights]), 1 / NOISE),
        # Negative, because the error must stay below its target.
        ("error of y in eps (1 + abs(mean) / std): worst cell", -max(errors) if errors else None, -4.0),
    ]
    table = [
        (what, f"{'≥' if target > 0 else '≤'} {abs(target):.2f}", _text(None if v is None else abs(v)), _met(v, target))
        for what, v, target in asked
    ]
    return markdown(("target", "required", "measured", "met"), table)


def _met(value: float | None, target: float) -> str:
    return "–" if value is None else "yes" if value >= target else "no"


def summary(results: dict[str, Any]) -> str:
    """The targets, and tables by size and by method."""
    every = [Row(cell) for cell in results["cells"]]
    rows = [r for r in every if r.cell["quiet"]]
    facts = results["machine"]
    machine = f"{facts['cpu']}, {facts['isa']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}"
    quiet = f"{len(rows)} of {len(every)} cells were measured while nothing else ran; only those count."
    explanation = (
        "The tables show how many times as fast normkit is as torch eager and torch.compile (geometric means), the "
        "number of cells in which it is more than 5 % slower than the fastest other contestant, the lowest speed "
        "relative to that contestant, and the fraction of the limit reached (median, lowest in brackets). The first "
        "table is by size, the second by method for cells with 16K elements or more:"
    )
    tables = _by("size", rows), _by("method", [r for r in rows if r.large])
    return "\n\n".join((f"{machine}; {quiet}", _targets(rows), explanation, *tables))


def table(results: dict[str, Any]) -> str:
    """Every cell: milliseconds, ratios, fraction of the limit, errors of y; and the contestants that failed."""
    who = ("torch", "compile", "onednn", "normkit", "copy")
    head = (
        "cell",
        *(f"{name} ms" for name in who),
        "over torch",
        "over compile",
        "of the limit",
        "error torch",
        "error",
    )
    lines = []
    for row in map(Row, results["cells"]):
        times = [_text(row.ms(name), ".4g") for name in who]
        ratios = [_text(v) for v in (row.over("torch"), row.over("compile"), row.of_limit())]
        errors = [_text(row.cell["error"][name], ".2g") for name in ("torch", "normkit")]
        lines.append([row.cell["name"] + ("" if row.cell["quiet"] else " (not quiet)"), *times, *ratios, *errors])
    failed = [f"- {c['name']}: {who}: {why}" for c in results["cells"] for who, why in c["failed"].items()]
    return "\n".join([markdown(head, lines), *(["", "Failed:", "", *failed] if failed else [])])


@app.command()
def main(
    path: Annotated[Path, typer.Argument(help="result file; tables and pictures are written next to it")],
    docs: Annotated[
        Path | None, typer.Option(help="document in which the part between the markers is replaced")
    ] = None,
) -> None:
    """Print the summary; write the table of all cells and the pictures, and bring a document up to date."""
    from benchmarks.speed.pictures import roofline, speedups

    results = json.loads(path.read_text())
    if "gpu" in results["machine"]:
        text, pictures = report.summary(results), (("the cells by group", report.bars),)
        given: Any = results
        path.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
    else:
        text, pictures = summary(results), (("speed-up of every cell", speedups), ("bytes per second", roofline))
        given = [Row(cell) for cell in results["cells"] if cell["quiet"]]
        path.with_suffix(".md").write_text(f"{text}\n\n{table(results)}\n", encoding="utf-8")
    links = []
    for name, draw in pictures:
        target = path.with_name(f"{path.stem}-{draw.__name__}.svg")
        draw(given, target)
        if docs is not None:
            links.append(f"![{name}]({os.path.relpath(target.resolve(), docs.resolve().parent)})")
    if docs is not None:
        before, _, after = docs.read_text(encoding="utf-8").split(MARKER)
        inside = "\n\n".join((text, *links))
        docs.write_text(f"{before}{MARKER}\n\n{inside}\n\n{MARKER}{after}", encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    app()
