"""Tables of a GPU's results, and a figure of bars: `benchmarks.show` writes them into engine/gpu.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.speed.tables import COUNT, ERROR, TARGET, markdown, met
from normkit.catalog import Text

WITHIN = 1.05
FAR_OFF = 20.0
"""Error of another library in units of eps (1 + |mean| / std) that its time is worth nothing with."""
OWN = ("torch", "compile", "compile max-autotune", "normkit")
GROUPS = {
    Text("batch norm", "批归一化"): ("batch_norm",),
    Text("group, instance norm", "组归一化与实例归一化"): ("group_norm", "instance_norm"),
    Text("layer norm of pixels", "逐像素层归一化"): ("layer_norm2d",),
    Text("rows", "按行"): ("rms_norm", "layer_norm"),
}
Cells = Sequence[dict[str, Any]]

OVER_EAGER, OVER_COMPILE = Text("over eager", "对 eager"), Text("over compile", "对 compile")
TRAINING, INFERENCE = (
    Text("training: torch's norms", "训练：torch 的归一化"),
    Text("inference: torch's norms", "推理：torch 的归一化"),
)
OURS = Text("normkit's", "normkit 的")
COPY = Text("copy of {size} MiB at {speed:.2f} TB/s", "复制 {size} MiB 的速度为 {speed:.2f} TB/s")
MACHINE = Text(
    "{gpu}, torch {torch}, Triton {triton}, driver {driver}, {date}; {copy}; torch's own replacements: {native}.",
    "{gpu}，torch {torch}，Triton {triton}，驱动 {driver}，{date}；{copy}；torch 自己的替换：{native}。",
)
FAILED = Text("{who} failed: {why}", "{who} 失败：{why}")
OTHERWISE = Text("{who} computes something else", "{who} 计算的不是同一个函数")
WAITED = Text("the GPU waited for {who} in some calls", "某些调用中，GPU 等待 {who}")
WHERE = Text("{what} (in {count} cells, such as {first})", "{what}（共 {count} 项，例如 {first}）")
NO_TIME = Text("no time for {what}", "来不及测量 {what}")


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


def groups(cells: Cells, lang: str = "en") -> list[tuple[str, Cells]]:
    """The cells of each dtype, group of methods and pass, and all of a pass."""
    found: list[tuple[str, Cells]] = []
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    for dtype, (backward, way) in product(
        dtypes, ((False, Text("forward", "前向")), (True, Text("forward+backward", "前向加反向")))
    ):
        some = [cell for cell in cells if (cell["dtype"], cell["backward"]) == (dtype, backward)]
        what = Text(", ", "，").to(lang) + f"{dtype} {way.to(lang)}"
        found += [(name.to(lang) + what, [c for c in some if c["method"] in m]) for name, m in GROUPS.items()]
        found.append((Text("all", "全部").to(lang) + what, some))
    return [(name, some) for name, some in found if some]


def targets(cells: Cells, lang: str = "en") -> str:
    """What the kernels are to reach, and what they reach."""
    ways = [[cell for cell in cells if cell["backward"] == backward] for backward in (False, True)]
    good, number = share(cells)
    errors = [error for cell in cells if (error := cell["error"].get("normkit")) is not None]
    asked = [
        (
            Text("over eager: geometric mean", "对 eager：几何平均"),
            "≥",
            2.0,
            _mean([over(cell, "torch") for cell in cells]),
        ),
        (
            Text("over torch.compile: geometric mean", "对 torch.compile：几何平均"),
            "≥",
            1.0,
            _mean([over(cell, "compile") for cell in cells]),
        ),
        (
            Text("share of cells within 5 % of the best", "与最快者相差不超过 5 % 的比例"),
            "≥",
            1.0,
            good / number if number else None,
        ),
        (Text("limit, forward: median", "极限，前向：中位数"), "≥", 0.9, limits(ways[0])[0]),
        (Text("limit, forward and backward: median", "极限，前向加反向：中位数"), "≥", 0.8, limits(ways[1])[0]),
        (Text("limit: worst cell", "极限：最差的一项"), "≥", 0.6, limits(cells)[1]),
        (ERROR, "≤", 4.0, max(errors, default=None)),
    ]
    rows = []
    for what, sign, wanted, value in asked:
        reached = value is not None and (value >= wanted if sign == "≥" else value <= wanted)
        rows.append((what.to(lang), f"{sign} {wanted:.2f}", _text(value), met(reached, lang)))
    return markdown([name.to(lang) for name in TARGET], rows)


def by_group(cells: Cells, lang: str = "en") -> str:
    within, median = Text("within 5 % of the best", "与最快者相差不超过 5 %"), Text("limit, median", "极限，中位数")
    head = (Text("", ""), within, OVER_EAGER, OVER_COMPILE, median, Text("limit, worst", "极限，最差"))
    rows = []
    for name, some in groups(cells, lang):
        good, number = share(some)
        means = [_mean([over(cell, who) for cell in some]) for who in ("torch", "compile")]
        rows.append((name, COUNT.to(lang).format(good, number), *map(_text, means), *map(_text, limits(some))))
    return markdown([name.to(lang) for name in head], rows)


def by_cell(cells: Cells, lang: str = "en") -> str:
    """Microseconds of every cell."""
    ends = Text("of the best", "与最快者之比"), Text("of the limit", "达到极限的比例")
    head = (Text("cell", "项"), "torch", "compile", Text("best peer", "最快的其他库"), "normkit", *ends)
    rows = []
    for cell in cells:
        best = peer(cell)
        times = [ms(cell, "torch"), ms(cell, "compile", "compile max-autotune")]
        theirs = "–" if best is None else f"{best[0]} {1e3 * best[1]:.0f}"
        mine = ms(cell, "normkit")
        ratios = [_text(over_all(cell)), _text(of_limit(cell))]
        micro = [_text(None if t is None else 1e3 * t, ".0f") for t in (*times, mine)]
        rows.append((cell["name"], *micro[:2], theirs, micro[2], *ratios))
    return markdown([name.to(lang) if isinstance(name, Text) else name for name in head], rows)


def by_call(calls: Cells, lang: str = "en") -> str:
    """Microseconds of CPU time for one call."""
    who = ("torch", "compile", "normkit")
    rows = [(row["name"], *(_text(row["microseconds"].get(name), ".1f") for name in who)) for row in calls]
    return markdown((Text("call of a layer", "层的调用").to(lang), *who), rows)


def by_model(models: Cells, lang: str = "en") -> str:
    rows = []
    for row in models:
        cells = [row["name"] + (Text(", compiled", "，编译").to(lang) if row["compiled"] else "")]
        for what in ("training", "inference"):
            times = row["milliseconds"].get(what, {})
            cells += [_text(times.get(who)) for who in ("torch", "normkit")]
        rows.append(cells)
    head = (Text("model", "模型"), TRAINING, OURS, INFERENCE, OURS)
    return markdown([name.to(lang) for name in head], rows)


def failures(results: dict[str, Any]) -> list[str]:
    """What is wrong with normkit."""
    parts = ("tests", "cells", "calls", "models", "graphs")
    return [f"{part}: {row['name']}: {row['failed']}" for part in parts for row in results[part] if row.get("failed")]


def notes(results: dict[str, Any], lang: str = "en") -> list[str]:
    """Contestants that failed, what could not be compared, and what there was no time for."""
    failed: dict[str, list[str]] = {}
    for cell in results["cells"]:
        for who, why in cell["failed by"].items():
            failed.setdefault(FAILED.to(lang).format(who=who, why=why), []).append(cell["name"])
        for who, error in cell["error"].items():
            if who not in OWN and not error <= FAR_OFF:
                failed.setdefault(OTHERWISE.to(lang).format(who=who), []).append(f"{cell['name']}: {error:.3g}")
        for who, times in cell["times"].items():
            if times["queued"] < 1:
                failed.setdefault(WAITED.to(lang).format(who=who), []).append(cell["name"])
    found = [WHERE.to(lang).format(what=what, count=len(names), first=names[0]) for what, names in failed.items()]
    for part in ("calls", "models"):
        found += [f"{part}: {row['name']}: {row['note']}" for row in results.get(part, ()) if row.get("note")]
    return [*found, *(NO_TIME.to(lang).format(what=what) for what in results["left out"])]


def summary(results: dict[str, Any], lang: str = "en") -> str:
    """All tables, in one language."""
    machine, copy, cells = results["machine"], results["copy"], results["cells"]
    speed = COPY.to(lang).format(size=copy["bytes"] >> 20, speed=copy["bytes per ms"] / 1e9)
    parts = [
        MACHINE.to(lang).format(**{"driver": None, **machine}, copy=speed),
        targets(cells, lang) if cells else "",
        by_group(cells, lang) if cells else "",
        by_cell(cells, lang) if cells else "",
        by_call(results["calls"], lang) if results["calls"] else "",
        by_model(results["models"], lang) if results["models"] else "",
        "\n".join(f"- {note}" for note in notes(results, lang)),
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
