"""The figures of the comparison: one panel for each batch size; None if nothing has been measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normkit.study.analysis.cells import Cell
from normkit.study.analysis.results import Results
from normkit.study.analysis.stats import Interval
from normkit.study.report.figures.curves import Curve, mean_curve
from normkit.study.report.figures.plot import Plot, Scale, around, cut, marker, shape_of
from normkit.study.report.writing import formatting
from normkit.study.report.writing.places import ordered
from normkit.study.report.writing.texts import say

WIDTH, HEIGHT = 440.0, 290.0
ROW = 27.0


def colour(method: str) -> str:
    """The page's variable of a method."""
    return f"var({variable(method)})"


def variable(method: str) -> str:
    """The name of that variable; all placements of a method have one colour."""
    return f"--{method.partition(':')[0].replace('_', '-')}"


def errors(found: Results, size: int, lang: str) -> str | None:
    """The test metric of each method: every seed a dot, the mean with its interval, the leader on top."""
    shown = ordered(found, (cell for cell in cells_at(found, size) if cell.error is not None))
    if not shown:
        return None
    downward = found.metric.higher_is_better
    low, high = bounds(found, size, margin=0.04)
    plot = _rows(shown, low, high, lang)
    plot.zone(*zone(found, size, low, high))
    plot.grid_x(plot.x.ticks(5), lambda v: axis_value(found, v), found.metric.label("test").to(lang))
    if is_cut(found, size):
        plot.broken_x(downward)
    for row, cell in enumerate(shown):
        interval, css = cell.error, colour(cell.method)
        assert interval is not None
        value, spread = formatting.error(interval, found.metric, lang)
        seeds = [run.test_error for run in cell.runs if run.test_error is not None]
        plot.dots([(v, row + 0.26) for v in seeds if low <= v <= high], css, cell.method)
        if not low <= interval.value <= high:
            plot.beyond(row, value, css, cell.method, downward)
            continue
        if not all(low <= v <= high for v in seeds):
            plot.beyond(row + 0.26, "", css, cell.method, downward)
        _whisker(plot, cell.method, interval, row - 0.08)
        title = f"{formatting.title(cell.method, lang)}: {value} ({spread})"
        plot.mark((interval.value, row - 0.08), shape_of(cell.method), css, cell.method, title=title)
    return plot.svg(say("alt.errors", lang, size=size, metric=found.metric.label("test").to(lang)))


def bounds(found: Results, size: int, margin: float) -> tuple[float, float]:
    """The ends of the axis of a batch size; outliers are beyond the end where the metric is bad."""
    cells = [cell for cell in cells_at(found, size) if cell.error is not None]
    values = [v for cell in cells for v in _spread(cell)]
    end, downward = _cut(found, size), found.metric.higher_is_better
    if end is not None:
        values = [v for v in values if (v >= end if downward else v <= end)]
    return found.metric.limited(*around(values, margin=margin))


def is_cut(found: Results, size: int) -> bool:
    """Whether outliers lie beyond the axis of a batch size."""
    return _cut(found, size) is not None


def zone(found: Results, size: int, low: float, high: float) -> tuple[float, float]:
    """From the mean of the best method, the smallest difference that matters; inside the axis."""
    values = [cell.error.value for cell in cells_at(found, size) if cell.error is not None]
    if found.metric.higher_is_better:
        return max(low, max(values) - found.design.smallest), max(values)
    return min(values), min(high, min(values) + found.design.smallest)


def _cut(found: Results, size: int) -> float | None:
    cells = [cell for cell in cells_at(found, size) if cell.error is not None]
    means = [cell.error.value for cell in cells if cell.error]
    return cut([_spread(cell) for cell in cells], means, found.metric.higher_is_better)


def _spread(cell: Cell) -> list[float]:
    """The seeds of a cell and the ends of its interval."""
    assert cell.error is not None
    return [run.test_error for run in cell.runs if run.test_error is not None] + [cell.error.low, cell.error.high]


def curves(found: Results, size: int, lang: str) -> str | None:
    """Training loss over the steps: geometric mean over seeds, smoothed, with its 95 % band."""
    design = found.design
    drawn = [
        (cell.method, colour(cell.method), mean_curve([run.losses for run in cell.runs], design.window))
        for cell in cells_at(found, size)
    ]
    return curve_plot(
        [(method, css, curve) for method, css, curve in drawn if curve.steps],
        design.steps_at(size),
        lang,
        say("alt.curves", lang, size=size),
        target=next((cell.target for cell in cells_at(found, size)), None),
    )


def curve_plot(
    drawn: Sequence[tuple[str, str, Curve]],
    last: int,
    lang: str,
    label: str,
    target: float | None = None,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> str | None:
    """Curves with their bands, from (method, colour, curve)."""
    if not drawn:
        return None
    log = all(value > 0 for *_, curve in drawn for value in curve.value)
    ends = [v for *_, curve in drawn for v in (*curve.value, *_clipped(curve, log))]
    low, high = around(ends, log=log, margin=0.03)
    plot = Plot(width, height, Scale(0, last, 46, width - 8), Scale(low, high, height - 38, 26, log))
    plot.grid_x(plot.x.ticks(5), lambda v: f"{v:g}", say("axis.step", lang))
    plot.grid_y(plot.y.ticks(6), lambda v: f"{v:g}".replace("-", "−"), say("axis.training", lang))
    for method, css, curve in drawn:
        lows, highs = ([min(max(v, low), high) for v in ends] for ends in (curve.low, curve.high))
        plot.band(curve.steps, lows, highs, css, method)
    for method, css, curve in drawn:
        plot.line(list(zip(curve.steps, curve.value, strict=True)), css, method)
    if target is not None and low < target < high:
        plot.segment((0, target), (last, target), "var(--muted)", css="target")
        left = _room(plot, drawn, target, 0.0, 0.22) > _room(plot, drawn, target, 0.78, 1.0)
        place = plot.x(0) + 4 if left else width - 8
        plot.text(place, plot.y(target) - 4, say("target", lang, target=target), "start" if left else "end", css="halo")
    return plot.svg(label)


def _room(plot: Plot, drawn: Sequence[tuple[str, str, Curve]], height: float, start: float, end: float) -> float:
    """The distance between a label just above a height and the curves, in a part of the width."""
    label = plot.y(height) - 8
    first, last = (plot.x.low + share * (plot.x.high - plot.x.low) for share in (start, end))
    return min(
        (
            abs(plot.y(value) - label)
            for *_, curve in drawn
            for step, value in zip(curve.steps, curve.value, strict=True)
            if first <= step <= last
        ),
        default=math.inf,
    )


def batch_sizes(found: Results, lang: str) -> str | None:
    """The test metric against batch size, one line for each method."""
    sizes, methods = found.design.batch_sizes, found.design.methods
    if len(sizes) < 2 or not any(cell.error for cell in found.cells):
        return None
    intervals = [cell.error for cell in found.cells if cell.error is not None]
    log = found.metric.share and not found.metric.higher_is_better and min(i.value for i in intervals) > 0
    ends = [v for i in intervals for v in (i.value, i.high, i.low if i.low > 0 or not log else i.value)]
    if not log:
        values = {m: [c.error.value for c in found.cells if c.method == m and c.error] for m in methods}
        downward = found.metric.higher_is_better
        rows = [each for each in values.values() if each]
        end = cut(rows, [min(each) if downward else max(each) for each in rows], downward)
        ends = [v for v in ends if end is None or (v >= end if downward else v <= end)]
    low, high = around(ends, log=log)
    plot = Plot(
        WIDTH,
        HEIGHT,
        Scale(sizes[0] / 1.35, sizes[-1] * 1.35, 52, WIDTH - 8, log=True),
        Scale(low, high, HEIGHT - 38, 26, log),
    )
    plot.grid_x(sizes, lambda v: f"{v:g}", say("axis.batch", lang))
    plot.grid_y(plot.y.ticks(6), lambda v: axis_value(found, v), found.metric.label("test").to(lang))
    for index, method in enumerate(methods):
        shift = (sizes[-1] / sizes[0] * 2) ** (0.012 * (index - (len(methods) - 1) / 2))
        cells = [found.cell(method, size) for size in sizes]
        points = [(cell.batch_size * shift, cell.error) for cell in cells if cell.error is not None]
        plot.line([(x, min(max(i.value, low), high)) for x, i in points], colour(method), method)
        for x, interval in points:
            if not low <= interval.value <= high:
                plot.beyond_y(x, interval.value, colour(method), method, found.metric.value(interval.value))
                continue
            plot.segment((x, max(interval.low, low)), (x, min(interval.high, high)), colour(method), method)
            plot.mark((x, interval.value), shape_of(method), colour(method), method)
    return plot.svg(say("alt.sizes", lang, metric=found.metric.label("test").to(lang)))


def gaps(found: Results, size: int, lang: str) -> str | None:
    """Loss in evaluation mode minus loss in training mode, with intervals."""
    shown = [cell for cell in cells_at(found, size) if cell.gap is not None]
    if not shown:
        return None
    sizes = [[abs(c.gap.low), abs(c.gap.high), abs(c.gap.value)] for c in shown if c.gap]
    limit = cut([[0.0, *each] for each in sizes], [each[-1] for each in sizes])
    most = max(map(max, sizes))
    # Of a method with running statistics the gap is what the figure is about, so only an enormous one is cut.
    reach = max(0.1, 1.1 * (limit if limit is not None and most > 10 * max(0.1, limit) else most))
    plot = _rows(shown, -reach, reach, lang)
    plot.grid_x(plot.x.ticks(4), lambda v: formatting.plus(v, 2 if reach < 1 else 1), say("axis.gap", lang))
    plot.segment((0, -0.5), (0, len(shown) - 0.5), "var(--muted)", css="zero")
    for row, cell in enumerate(shown):
        assert cell.gap is not None
        if abs(cell.gap.value) > reach:
            text = formatting.plus(cell.gap.value)
            plot.beyond(row, text, colour(cell.method), cell.method, downward=cell.gap.value < 0)
            plot.broken_x(downward=cell.gap.value < 0)
            continue
        _whisker(plot, cell.method, cell.gap, row)
        plot.mark((cell.gap.value, row), shape_of(cell.method), colour(cell.method), cell.method)
    return plot.svg(say("alt.gaps", lang, size=size))


def times(found: Results, size: int, lang: str) -> str | None:
    """Time of a step relative to no norm: every round a dot, the median with its interval."""
    shown = [cell for cell in cells_at(found, size) if cell.time_ratio is not None]
    if not shown:
        return None
    ratios = {c.method: [a / b for a, b in zip(c.seconds, c.plain_seconds, strict=True)] for c in shown}
    # A few disturbed rounds would make the others too small to see.
    values = [v for each in ratios.values() for v in sorted(each)[: math.ceil(0.95 * len(each))]]
    low, high = around([1.0, *values], margin=0.05)
    plot = _rows(shown, max(0.0, low), high, lang)
    plot.grid_x(plot.x.ticks(5), lambda v: f"{v:g}×", say("axis.time", lang))
    plot.segment((1, -0.5), (1, len(shown) - 0.5), "var(--muted)", css="zero")
    for row, cell in enumerate(shown):
        interval = cell.time_ratio
        assert interval is not None
        css = colour(cell.method)
        inside = [(v, row + 0.26) for v in ratios[cell.method] if max(0.0, low) <= v <= high]
        plot.dots(inside, css, cell.method, radius=1.6)
        _whisker(plot, cell.method, interval, row - 0.08)
        plot.mark((interval.value, row - 0.08), shape_of(cell.method), css, cell.method)
    return plot.svg(say("alt.times", lang, size=size))


def memory(found: Results, size: int, lang: str) -> str | None:
    """The memory that one step saves for its backward pass, as bars."""
    shown = [cell for cell in cells_at(found, size) if cell.saved_bytes is not None]
    if not shown:
        return None
    most = max(cell.saved_bytes or 0 for cell in shown)
    unit, name = next(((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if most >= u), (1, "B"))
    plot = _rows(shown, 0, 1.22 * most / unit or 1.0, lang)
    plot.grid_x(plot.x.ticks(4), lambda v: f"{v:g} {name}", say("axis.memory", lang))
    for row, cell in enumerate(shown):
        length, css = (cell.saved_bytes or 0) / unit, colour(cell.method)
        plot.segment((0, row), (length, row), css, cell.method, css="amount")
        plot.text(
            plot.x(length) + 5, plot.y(row) + 4, formatting.size(cell.saved_bytes), css="halo", method=cell.method
        )
    return plot.svg(say("alt.memory", lang, size=size))


def swatch(method: str) -> str:
    """The line and marker of a method, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true" style="color:{colour(method)}">'
        f'<path class="mo" d="M1 7H27"/>{marker(14, 7, shape_of(method), 4.6)}</svg>'
    )


def _rows(shown: Sequence[Cell], low: float, high: float, lang: str) -> Plot:
    """A plot with one row for each method, from the top down."""
    height = 12 + ROW * len(shown) + 40
    letters = max(sum(2 if letter > "\u2e80" else 1.08 for letter in formatting.title(c.method, lang)) for c in shown)
    left = min(178.0, 14 + 6.3 * letters)
    plot = Plot(WIDTH, height, Scale(low, high, left, WIDTH - 12), Scale(-0.5, len(shown) - 0.5, 8, height - 40))
    for row, cell in enumerate(shown):
        name = formatting.title(cell.method, lang)
        plot.text(left - 10, plot.y(row) + 4, name, "end", css="name", method=cell.method)
    return plot


def _whisker(plot: Plot, method: str, interval: Interval, row: float) -> None:
    low, high = (min(max(v, plot.x.low), plot.x.high) for v in (interval.low, interval.high))
    plot.segment((low, row), (high, row), colour(method), method)


def axis_value(found: Results, value: float) -> str:
    """A value of the metric on an axis."""
    return f"{100 * value:g} %" if found.metric.share else f"{value:g}".replace("-", "−")


def _clipped(curve: Curve, log: bool) -> list[float]:
    """The ends of a band that determine the scale: at most three times the line, or a third of it."""
    if not log:
        return [*curve.low, *curve.high]
    return [max(a, v / 3) for a, v in zip(curve.low, curve.value, strict=True)] + [
        min(a, 3 * v) for a, v in zip(curve.high, curve.value, strict=True)
    ]


def cells_at(found: Results, size: int) -> list[Cell]:
    """The cells of a batch size, in the order of the methods."""
    return [found.cell(method, size) for method in found.design.methods]
