"""The plots of the page: matplotlib draws, the page's own colours and font are put in afterwards.

Each plot is one small panel, so that the page can set panels side by side or, on a phone, below each other. Where
nothing has been measured there is None in its place.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from normkit.study import words
from normkit.study.comparison import Comparison
from normkit.study.run import smooth
from normkit.study.stats import Interval, t_interval
from normkit.study.verdict import Cell

INK, MUTED, LINE = "#101112", "#707172", "#d0d1d2"
COLOURS = {
    "none": "#6b7281",
    "batch_norm": "#0072b2",
    "layer_norm": "#e69f00",
    "instance_norm": "#cc79a7",
    "group_norm": "#009e73",
    "weight_norm": "#d55e00",
    "unchanged": "#56b4e9",
    "rms_norm": "#b59f00",
    "layer_norm2d": "#8c6bb1",
    "weight_standardization": "#8b4513",
}
"""Okabe and Ito's palette, told apart by every kind of colour vision; the page replaces each by its variable."""
ERROR_TICKS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1)
MARKERS = {
    "none": "o",
    "batch_norm": "s",
    "layer_norm": "^",
    "instance_norm": "v",
    "group_norm": "D",
    "weight_norm": "P",
    "unchanged": "X",
    "rms_norm": "<",
    "layer_norm2d": ">",
    "weight_standardization": "p",
}
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--{method.replace('_', '-')}" for method, colour in COLOURS.items()
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def errors(comparison: Comparison, batch_size: int) -> str | None:
    """Test error of each method: every seed a dot, the mean with its interval, the leader on top."""
    shown = [c for c in _cells(comparison, batch_size) if c.error is not None]
    shown.sort(key=lambda cell: -_value(cell.error))
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        leader = _value(shown[-1].error)
        axes.axvspan(leader, leader + comparison.design.smallest, color=LINE, alpha=0.45, linewidth=0)
        for row, cell in enumerate(shown):
            seeds = [run.test_error for run in cell.runs if run.test_error is not None]
            axes.plot(seeds, [row + 0.22] * len(seeds), ".", color=COLOURS[cell.method], alpha=0.45, markersize=5)
            _mark(axes, cell.method, cell.error, row)
        _name_rows(axes, shown)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("test error")

    return panel(draw, f"Test error of each method with {batch_size} images per step", salt=f"errors{batch_size}")


def curves(comparison: Comparison, batch_size: int) -> str | None:
    """Training loss over the steps: geometric mean over seeds, smoothed, with its 95 % band."""
    design = comparison.design
    if not any(cell.runs for cell in _cells(comparison, batch_size)):
        return None
    ends: list[float] = []

    def draw(axes: Axes) -> None:
        for cell in _cells(comparison, batch_size):
            lines = [np.log(np.maximum(smooth(run.losses, design.window), 1e-4)) for run in cell.runs if run.losses]
            # A run that broke off has no loss from there on; the mean goes as far as two runs do.
            length = sorted((len(line) for line in lines), reverse=True)[1] if len(lines) > 1 else 0
            bands = [t_interval([float(line[i]) for line in lines if len(line) > i]) for i in range(length)]
            steps = np.arange(length) + design.window
            value, low, high = (np.exp([getattr(band, name) for band in bands]) for name in ("value", "low", "high"))
            ends.extend(value[-1:])
            colour = COLOURS[cell.method]
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                steps,
                value,
                color=colour,
                marker=MARKERS[cell.method],
                markevery=(0.08, 0.16),
                markersize=4.5,
            )
        axes.axhline(design.target_loss, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        # Curves that have fallen well below the target leave its right end free, others its left.
        right = all(end < design.target_loss / 2 for end in ends)
        axes.text(
            design.steps if right else 2,
            design.target_loss * 1.04,
            "target",
            ha="right" if right else "left",
            color=MUTED,
            fontsize=9,
        )
        axes.set_yscale("log")
        _log_ticks(axes, [digit * 10.0**power for power in range(-4, 2) for digit in (1, 2, 5)], "{:g}")
        axes.set_xlim(0, design.steps)
        axes.set_xlabel("training step")
        axes.set_ylabel("training loss")

    return panel(draw, f"Training loss over the steps with {batch_size} images per step", salt=f"curves{batch_size}")


def batch_sizes(comparison: Comparison) -> str | None:
    """Test error against batch size, one line for each method."""
    sizes = comparison.design.batch_sizes
    methods = comparison.design.methods
    if len(sizes) < 2 or not any(cell.error for cell in comparison.cells):
        return None

    def draw(axes: Axes) -> None:
        for index, method in enumerate(methods):
            shift = 1.025 ** (index - (len(methods) - 1) / 2)
            cells = [comparison.cell(method, size) for size in sizes]
            points = [(c.batch_size * shift, c.error) for c in cells if c.error is not None]
            if not points:
                continue
            values = [_value(interval) for _, interval in points]
            reach = [
                [value - interval.low for value, (_, interval) in zip(values, points, strict=True)],
                [interval.high - value for value, (_, interval) in zip(values, points, strict=True)],
            ]
            axes.errorbar(
                [x for x, _ in points], values, reach, color=COLOURS[method], marker=MARKERS[method], markersize=6
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.margins(x=0.12)
        axes.set_yscale("log")
        _log_ticks(axes, ERROR_TICKS, "{:.0%}")
        axes.set_xlabel("images per step")
        axes.set_ylabel("test error")

    return panel(draw, "Test error against batch size", salt="sizes")


def rates(comparison: Comparison, batch_size: int) -> str | None:
    """Validation error against learning rate on the first tuning seed; crosses did not train, rings were chosen."""
    first = comparison.design.tuning_seeds[0]
    if not any(cell.tuning for cell in _cells(comparison, batch_size)):
        return None

    def draw(axes: Axes) -> None:
        for cell in _cells(comparison, batch_size):
            points = [
                (run.job.rate, run.validation_error, run.state)
                for run in cell.tuning
                if run.validation_error is not None and run.job.seed == first and not run.job.options
            ]
            colour = COLOURS[cell.method]
            axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=1.4)
            for rate, error, state in points:
                marker = "x" if state == "untrained" else MARKERS[cell.method]
                axes.plot([rate], [error], color=colour, marker=marker, markersize=5)
                if rate == cell.rate:
                    axes.plot([rate], [error], "o", markersize=12, markerfacecolor="none", markeredgecolor=colour)
        axes.set_xscale("log")
        ticks = comparison.design.rates
        axes.xaxis.set_major_locator(FixedLocator(ticks[:: max(1, len(ticks) // 8)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.rate(x)))
        axes.set_yscale("log")
        _log_ticks(axes, ERROR_TICKS, "{:.0%}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation error")

    return panel(
        draw, f"Validation error against learning rate with {batch_size} images per step", salt=f"rates{batch_size}"
    )


def gaps(comparison: Comparison, batch_size: int) -> str | None:
    """Loss in evaluation mode minus loss in training mode, with intervals."""
    shown = [c for c in _cells(comparison, batch_size)[::-1] if c.gap is not None]
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, cell in enumerate(shown):
            _mark(axes, cell.method, cell.gap, row)
        _name_rows(axes, shown)
        reach = max([0.1, *(1.1 * abs(end) for cell in shown if cell.gap for end in (cell.gap.low, cell.gap.high))])
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("loss in evaluation − loss in training mode")

    return panel(draw, f"Train/eval gap with {batch_size} images per step", salt=f"gaps{batch_size}")


def swatch(method: str, salt: str) -> str:
    """The line and marker of a method, for a legend."""

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], color=COLOURS[method], marker=MARKERS[method], markevery=[1], markersize=6)

    return panel(draw, f"Line of {words.inline(method)}", salt=f"{salt} {method}", size=(0.4, 0.2))


def panel(draw: Callable[[Axes], None], label: str, *, salt: str, size: tuple[float, float] = (5.6, 3.5)) -> str:
    """One plot as SVG to stand inside a page: no outside reference, ids of its own, the page's colours and font.

    Args:
        draw: puts the plot on the axes.
        label: what the plot shows, for those who do not see it.
        salt: makes the ids differ from those of other plots on the page.
        size: in inches of 72 units.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(text.getvalue(), label, salt)


def _for_page(svg: str, label: str, salt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{label}">', svg, count=1)
    # Axes and ticks are numbered alike in every plot; nothing refers to those ids.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _cells(comparison: Comparison, batch_size: int) -> list[Cell]:
    return [comparison.cell(method, batch_size) for method in comparison.design.methods]


def _value(interval: Interval | None) -> float:
    return math.nan if interval is None else interval.value


def _mark(axes: Axes, method: str, interval: Interval | None, row: float) -> None:
    if interval is not None:
        colour = COLOURS[method]
        axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.4)
        axes.plot([interval.value], [row], color=colour, marker=MARKERS[method], markersize=7)


def _name_rows(axes: Axes, shown: Sequence[Cell]) -> None:
    axes.set_yticks(range(len(shown)), [words.title(cell.method) for cell in shown])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(shown) - 0.4)


def _log_ticks(axes: Axes, ticks: Sequence[float], form: str) -> None:
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form.format(y)))
