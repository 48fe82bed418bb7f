"""Two pictures of a benchmark: the speed-up of every cell, and bytes per second against footprint."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = {"float32": "#1f5fa8", "bfloat16": "#d9822b", "float16": "#2f9469"}
WHO = {"torch": ("torch eager", "#9a9a9a", "o"), "compile": ("torch.compile", "#d9822b", "^")}
WHO["normkit"] = ("normkit", "#1f5fa8", "o")
STYLE: Any = {"font.size": 9, "axes.edgecolor": "#888888", "svg.fonttype": "none", "svg.hashsalt": "normkit"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e4e4e4", "grid.linewidth": 0.7}
STYLE |= {"xtick.major.size": 0, "ytick.major.size": 0, "ytick.minor.size": 0, "axes.axisbelow": True}
LEGEND: dict[str, Any] = {"loc": "upper right", "frameon": False, "fontsize": 8.5, "handletextpad": 0.2}


class Row(Protocol):
    """What the pictures show of a cell."""

    cell: dict[str, Any]

    def over(self, *names: str) -> float | None:
        """How many times as fast normkit is as the best of these."""

    def gigabytes(self, name: str) -> float | None:
        """Per second, of the bytes that must move."""


def speedups(rows: Sequence[Row], target: Path) -> None:
    """One dot for each cell: how many times as fast as torch eager, and as torch.compile."""
    methods = list(dict.fromkeys(row.cell["method"] for row in rows))[::-1]
    with plt.rc_context(STYLE):
        size = (9, 0.62 * max(len(methods), 3) + 1.2)
        figure, panels = plt.subplots(1, 2, sharex=True, sharey=True, figsize=size)
        for axes, name in zip(panels, ("torch", "compile"), strict=True):
            axes.set_xscale("log", base=2)
            for lane, (dtype, colour) in enumerate(COLOURS.items()):
                for training in (False, True):
                    some = [r for r in rows if (r.cell["dtype"], r.cell["backward"]) == (dtype, training)]
                    height = 0.28 - 0.26 * lane - 0.09 * training
                    dots = [(v, methods.index(r.cell["method"]) + height) for r in some if (v := r.over(name))]
                    face = "white" if training else colour
                    axes.scatter(*_columns(dots), s=14, facecolor=face, edgecolor=colour, linewidth=0.9, zorder=3)
            axes.axvline(1, color="#333333", linewidth=1, zorder=2)
            axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(-4, 9)]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
            axes.grid(axis="x")
            axes.set_title(f"over {WHO[name][0]}", loc="left", fontsize=10)
            for y in range(0, len(methods), 2):
                axes.axhspan(y - 0.5, y + 0.5, color="#f6f6f6", zorder=0)
        panels[0].set_yticks(range(len(methods)), [method.replace("_", " ") for method in methods])
        panels[0].set_ylim(-0.5, len(methods) - 0.5)
        faces = [(name, colour, colour) for name, colour in COLOURS.items()]
        faces += [("forward", "#555555", "#555555"), ("forward and backward", "#555555", "white")]
        keys = [
            Line2D([], [], marker="o", linestyle="", markersize=4, color=edge, markerfacecolor=face, label=label)
            for label, edge, face in faces
        ]
        figure.legend(handles=keys, ncols=5, columnspacing=1.2, **LEGEND)
        save(figure, target, "normkit's speed-up, a dot for each cell")


def roofline(rows: Sequence[Row], target: Path) -> None:
    """Counted bytes per second over the size of one tensor, under the line of a plain copy; no calls of layers."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, sharey=True, figsize=(9, 4.2))
        for axes, backward in zip(panels, (False, True), strict=True):
            some = [r for r in rows if r.cell["backward"] == backward and r.cell["size"] != "overhead"]
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            for shift, (name, (label, colour, marker)) in enumerate(WHO.items()):
                dots = [(r.cell["bytes"] * 1.09 ** (shift - 1), v) for r in some if (v := r.gigabytes(name))]
                style = {"s": 13 if name == "normkit" else 9, "alpha": 0.7, "linewidth": 0, "zorder": 2 + shift}
                axes.scatter(*_columns(dots), color=colour, marker=marker, label=label, **style)
            copies: dict[int, list[float]] = defaultdict(list)
            for row in some:
                copies[row.cell["bytes"]].append(2 * row.cell["bytes"] / row.cell["milliseconds"]["copy"] / 1e6)
            line = sorted((size, statistics.median(speeds)) for size, speeds in copies.items())
            axes.plot(*_columns(line), color="#222222", linewidth=1.3, label="plain copy", zorder=1)
            axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(6, 34, 3)]))
            axes.yaxis.set_major_locator(FixedLocator([k * 10.0**i for i in range(-3, 4) for k in (1, 2, 5)]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(_bytes))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.grid()
            axes.set_title("forward and backward" if backward else "forward", loc="left", fontsize=10)
            axes.set_xlabel("size of one tensor")
        panels[0].set_ylabel("GB/s of the bytes that must move")
        figure.legend(*panels[0].get_legend_handles_labels(), ncols=4, columnspacing=1.2, **LEGEND)
        save(figure, target, "Bytes per second")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _bytes(value: float, _: object) -> str:
    power = min(int(value).bit_length() - 1, 39) // 10
    return f"{value / 1024**power:g} {('B', 'KB', 'MB', 'GB')[power]}"


def save(figure: Any, target: Path, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
