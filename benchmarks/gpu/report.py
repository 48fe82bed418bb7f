"""Tables of a GPU's results, and a figure of bars: `benchmarks.show` writes them into docs/en/engine/gpu.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

WITHIN = 1.05
FAR_OFF = 20.0
"""Error of another library in units of eps (1 + |mean| / std) that its time is worth nothing with."""
OWN = ("torch", "compile", "compile max-autotune", "normkit")
GROUPS = {
    "batch norm": ("batch_norm",),
    "group, instance norm": ("group_norm", "instance_norm"),
    "layer norm of pixels": ("layer_norm2d",),
    "rows": ("rms_norm", "layer_norm"),
}
Cells = Sequence[dict[str, Any]]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def ms(cell: dict[str, Any], *names: str) -> float | None:
    """The least time of these contestants."""
    return min((t for name in names if (t := cell["milliseconds"].get(name)) is not None), default=None)


def peer(cell: dict[str, Any]) -> tuple[str, float] | None:
    """The fastest of the other libraries."""
    others = [(name, t) for name, t in cell["milliseconds"].items() if name not in OWN and t is not None]
    return min(others, key=lambda pair: pair[1], default=None)


def over(cell: dict[str, Any], *names: str) -> float | None:
    """How many times as fast normkit is as the best of these."""
    mine, theirs = ms(cell, "normkit"), ms(cell, *names)
    return None if mine is None or theirs is None else theirs / mine


def over_all(cell: dict[str, Any]) -> float | None:
    return over(cell, *(name for name in cell["milliseconds"] if name != "normkit"))


def of_limit(cell: dict[str, Any]) -> float | None:
    mine = ms(cell, "normkit")
    return None if mine is None else float(cell["limit"]) / mine


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.geometric_mean(known) if known else None


def share(cells: Cells) -> tuple[int, int]:
    """In how many of these cells normkit is within 5 % of the fastest other contestant; a failure is not."""
    return sum((over_all(cell) or 0) >= 1 / WITHIN for cell in cells), len(cells)


def limits(cells: Cells) -> tuple[float | None, float | None]:
    """Median and worst share of the limit."""
    known = [v for v in map(of_limit, cells) if v is not None]
    return (statistics.median(known), min(known)) if known else (None, None)


def groups(cells: Cells) -> list[tuple[str, Cells]]:
    """The cells of each dtype, group of methods and pass, and all of a pass."""
    found: list[tuple[str, Cells]] = []
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    for dtype, (backward, way) in product(dtypes, ((False, "forward"), (True, "forward+backward"))):
        some = [cell for cell in cells if (cell["dtype"], cell["backward"]) == (dtype, backward)]
        what = f"{dtype} {way}"
        found += [(f"{name}, {what}", [c for c in some if c["method"] in methods]) for name, methods in GROUPS.items()]
        found.append((f"all, {what}", some))
    return [(name, some) for name, some in found if some]


def targets(cells: Cells) -> str:
    """What the kernels are to reach, and what they reach."""
    ways = [[cell for cell in cells if cell["backward"] == backward] for backward in (False, True)]
    good, number = share(cells)
    errors = [error for cell in cells if (error := cell["error"].get("normkit")) is not None]
    asked = [
        ("over eager: geometric mean", "≥", 2.0, _mean([over(cell, "torch") for cell in cells])),
        ("over torch.compile: geometric mean", "≥", 1.0, _mean([over(cell, "compile") for cell in cells])),
        ("share of cells within 5 % of the best", "≥", 1.0, good / number if number else None),
        ("limit, forward: median", "≥", 0.9, limits(ways[0])[0]),
        ("limit, forward and backward: median", "≥", 0.8, limits(ways[1])[0]),
        ("limit: worst cell", "≥", 0.6, limits(cells)[1]),
        ("error of y in eps (1 + abs(mean) / std): worst cell", "≤", 4.0, max(errors, default=None)),
    ]
    rows = []
    for what, sign, wanted, value in asked:
        met = value is not None and (value >= wanted if sign == "≥" else value <= wanted)
        rows.append((what, f"{sign} {wanted:.2f}", _text(value), "yes" if met else "no"))
    return markdown(("target", "required", "measured", "met"), rows)


def by_group(cells: Cells) -> str:
    head = ("", "within 5 % of the best", "over eager", "over compile", "limit, median", "limit, worst")
    rows = []
    for name, some in groups(cells):
        good, number = share(some)
        means = [_mean([over(cell, who) for cell in some]) for who in ("torch", "compile")]
        rows.append((name, f"{good} of {number}", *map(_text, means), *map(_text, limits(some))))
    return markdown(head, rows)


def by_cell(cells: Cells) -> str:
    """Microseconds of every cell."""
    head = ("cell", "torch", "compile", "best peer", "normkit", "of the best", "of the limit")
    rows = []
    for cell in cells:
        best = peer(cell)
        times = [ms(cell, "torch"), ms(cell, "compile", "compile max-autotune")]
        theirs = "–" if best is None else f"{best[0]} {1e3 * best[1]:.0f}"
        mine = ms(cell, "normkit")
        ends = [_text(over_all(cell)), _text(of_limit(cell))]
        micro = [_text(None if t is None else 1e3 * t, ".0f") for t in (*times, mine)]
        rows.append((cell["name"], *micro[:2], theirs, micro[2], *ends))
    return markdown(head, rows)


def by_call(calls: Cells) -> str:
    """Microseconds of CPU time for one call."""
    who = ("torch", "compile", "normkit")
    rows = [(row["name"], *(_text(row["microseconds"].get(name), ".1f") for name in who)) for row in calls]
    return markdown(("call of a layer", *who), rows)


def by_model(models: Cells) -> str:
    rows = []
    for row in models:
        cells = [row["name"] + (", compiled" if row["compiled"] else "")]
        for what in ("training", "inference"):
            times = row["milliseconds"].get(what, {})
            cells += [_text(times.get(who)) for who in ("torch", "normkit")]
        rows.append(cells)
    head = ("model", "training: torch's norms", "normkit's", "inference: torch's norms", "normkit's")
    return markdown(head, rows)


def failures(results: dict[str, Any]) -> list[str]:
    """What is wrong with normkit."""
    parts = ("tests", "cells", "calls", "models", "graphs")
    return [f"{part}: {row['name']}: {row['failed']}" for part in parts for row in results[part] if row.get("failed")]


def notes(results: dict[str, Any]) -> list[str]:
    """Contestants that failed, what could not be compared, and what there was no time for."""
    failed: dict[str, list[str]] = {}
    for cell in results["cells"]:
        for who, why in cell["failed by"].items():
            failed.setdefault(f"{who} failed: {why}", []).append(cell["name"])
        for who, error in cell["error"].items():
            if who not in OWN and not error <= FAR_OFF:
                failed.setdefault(f"{who} computes something else", []).append(f"{cell['name']}: {error:.3g}")
        for who, times in cell["times"].items():
            if times["queued"] < 1:
                failed.setdefault(f"the GPU waited for {who} in some calls", []).append(cell["name"])
    found = [f"{why} (in {len(names)} cells, such as {names[0]})" for why, names in failed.items()]
    for part in ("calls", "models"):
        found += [f"{part}: {row['name']}: {row['note']}" for row in results.get(part, ()) if row.get("note")]
    return [*found, *(f"no time for {what}" for what in results["left out"])]


def summary(results: dict[str, Any]) -> str:
    """All tables."""
    machine, copy = results["machine"], results["copy"]
    versions = f"torch {machine['torch']}, Triton {machine['triton']}, driver {machine.get('driver')}"
    speed = f"copy of {copy['bytes'] >> 20} MiB at {copy['bytes per ms'] / 1e9:.2f} TB/s"
    parts = [
        f"{machine['gpu']}, {versions}, {machine['date']}; {speed}; torch's own replacements: {machine['native']}.",
        targets(results["cells"]) if results["cells"] else "",
        by_group(results["cells"]) if results["cells"] else "",
        by_cell(results["cells"]) if results["cells"] else "",
        by_call(results["calls"]) if results["calls"] else "",
        by_model(results["models"]) if results["models"] else "",
        "\n".join(f"- {note}" for note in notes(results)),
    ]
    return "\n\n".join(part for part in parts if part)


def bars(results: dict[str, Any], target: Path) -> None:
    """Three panels, one bar for each group: share of good cells, speed over torch.compile, share of the limit."""
    from matplotlib import pyplot as plt

    from benchmarks.speed.pictures import LEGEND, STYLE, save

    found = groups(results["cells"])[::-1]
    good = [share(some)[0] / len(some) for _, some in found]
    compiled = [_mean([over(cell, "compile") for cell in some]) or 0 for _, some in found]
    reached = [limits(some) for _, some in found]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, sharey=True, figsize=(9, 0.36 * len(found) + 1.3))
        places = range(len(found))
        panels[0].barh(places, good, color="#1f5fa8")
        panels[1].barh(places, compiled, color="#d9822b")
        panels[2].barh(places, [median or 0 for median, _ in reached], color="#9fbfe0", label="median")
        panels[2].barh(places, [worst or 0 for _, worst in reached], color="#1f5fa8", height=0.4, label="worst")
        titles = ("within 5 % of the best", "speed over torch.compile", "share of the limit")
        for axes, title, line in zip(panels, titles, (1, 1, 0.9), strict=True):
            axes.axvline(line, color="#333333", linewidth=0.8)
            axes.set_title(title, loc="left", fontsize=9.5)
            axes.grid(axis="x")
        panels[0].set_yticks(places, [name for name, _ in found])
        figure.legend(*panels[2].get_legend_handles_labels(), ncols=2, **LEGEND)
        save(figure, target, results["machine"]["gpu"])
