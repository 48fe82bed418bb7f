"""The metric over the learning rates: all methods at one batch size, and one method at all batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from normkit.study.analysis.cells import Cell
from normkit.study.analysis.results import Results
from normkit.study.analysis.sensitivity import good_rates
from normkit.study.report.figures.panels import HEIGHT, WIDTH, axis_value, cells_at, colour
from normkit.study.report.figures.plot import Plot, Scale, around, cut, shape_of
from normkit.study.report.writing import formatting
from normkit.study.report.writing.texts import say


def rates(found: Results, size: int, lang: str) -> str | None:
    """The validation metric against learning rate, mean over tuning seeds; crosses did not train, rings were chosen."""
    tried = {cell.method: by_rate(cell) for cell in cells_at(found, size)}
    values = [value for points in tried.values() for value, _ in points.values()]
    if not values:
        return None
    every = sorted({rate for points in tried.values() for rate in points})
    log = not found.metric.higher_is_better and min(values) > 0
    low, high = around(_uncut(found, values, log), log=log)
    plot = Plot(
        WIDTH,
        HEIGHT,
        Scale(every[0] / 1.4, every[-1] * 1.4, 52, WIDTH - 8, log=True),
        Scale(low, high, HEIGHT - 38, 26, log),
    )
    shown = every[:: math.ceil(len(every) / 8)]
    plot.grid_x(shown, formatting.rate, say("axis.rate", lang))
    plot.grid_y(plot.y.ticks(6), lambda v: axis_value(found, v), found.metric.label("validation").to(lang))
    for cell in cells_at(found, size):
        points, css = tried[cell.method], colour(cell.method)
        plot.line([(rate, min(max(value, low), high)) for rate, (value, _) in points.items()], css, cell.method)
        for rate, (value, trained) in points.items():
            if not low <= value <= high:
                plot.beyond_y(rate, value, css, cell.method)
                continue
            plot.mark((rate, value), shape_of(cell.method) if trained else "cross", css, cell.method, size=3.4)
            if rate == cell.rate:
                plot.mark((rate, value), "ring", css, cell.method, size=9)
    return plot.svg(say("alt.rates", lang, size=size, metric=found.metric.label("validation").to(lang)))


def sensitivity(found: Results, method: str, lang: str) -> str | None:
    """The curves of `rates` for one method, a line for each batch size; all methods share the scales."""
    tried = {(cell.method, cell.batch_size): by_rate(cell) for cell in found.cells}
    values = [value for points in tried.values() for value, _ in points.values()]
    own = [(size, tried[method, size]) for size in found.design.batch_sizes if len(tried[method, size]) > 1]
    if not own:
        return None
    every = sorted({rate for points in tried.values() for rate in points})
    log = not found.metric.higher_is_better and min(values) > 0
    low, high = around(_uncut(found, values, log), log=log)
    width, height, bars = 300.0, 205.0 + 7 * len(own), 7.0 * len(own)
    x = Scale(every[0] / 1.4, every[-1] * 1.4, 44, width - 8, log=True)
    plot = Plot(width, height, x, Scale(low, high, height - 38 - bars, 24, log))
    plot.grid_y(plot.y.ticks(5), lambda v: axis_value(found, v), found.metric.label("validation").to(lang))
    foot = Plot(width, height, x, Scale(0, 1, height - 38, height - 38 - bars), plot.parts)
    foot.grid_x(every[:: math.ceil(len(every) / 4)], formatting.rate, say("axis.rate", lang))
    css = colour(method)
    for number, (size, points) in enumerate(own):
        dashed = "line" if number == 0 else "line dashed"
        inside = [(rate, min(max(value, low), high)) for rate, (value, _) in points.items()]
        plot.line(inside, css, method, css=dashed)
        # Below the lowest point of a valley there is no other part of its line.
        best = (max if found.metric.higher_is_better else min)(inside, key=lambda point: point[1])
        place = min(max(plot.x(best[0]), x.start + 32), x.end - 32)
        below = plot.y(best[1]) + (-7 if found.metric.higher_is_better else 14)
        plot.text(place, below, say("batch", lang, size=size), "middle", css="halo")
        for rate, (value, trained) in points.items():
            if not low <= value <= high:
                plot.beyond_y(rate, value, css, method)
            else:
                plot.mark((rate, value), shape_of(method) if trained else "cross", css, method, size=2.8)
        start, end = near_best(found, points)
        level = (number + 0.7) / (len(own) + 0.4)
        # A single rate has a bar of the width of a dot.
        foot.segment(
            (start / 1.06, level), (end * 1.06, level), css, method, css="whisker" if number == 0 else "whisker dashed"
        )
    return plot.svg(
        say(
            "alt.sensitivity",
            lang,
            name=formatting.title(method, lang),
            metric=found.metric.label("validation").to(lang),
        )
    )


def near_best(found: Results, points: Mapping[float, tuple[float, bool]]) -> tuple[float, float]:
    """The lowest and the highest rate around the best one whose means differ from its mean by `smallest` at most."""
    turn = -1 if found.metric.higher_is_better else 1
    near = good_rates({rate: turn * value for rate, (value, _) in points.items()}, found.design.smallest)
    assert near is not None
    return near


def by_rate(cell: Cell) -> dict[float, tuple[float, bool]]:
    """For each rate the mean over seeds, and whether every run trained."""
    found: dict[float, list[tuple[float, bool]]] = {}
    for run in cell.tuning:
        # Options of the optimizer are tried only at the best rate.
        if run.validation_error is not None and not run.trial.options:
            found.setdefault(run.trial.rate, []).append((run.validation_error, run.state == "trained"))
    return {
        rate: (math.fsum(v for v, _ in runs) / len(runs), all(trained for _, trained in runs))
        for rate, runs in sorted(found.items())
    }


def _uncut(found: Results, values: Sequence[float], log: bool) -> list[float]:
    """The values inside the axis: at rates that diverge, a metric that is no share has values without bound."""
    if found.metric.share:
        return list(values)
    downward = found.metric.higher_is_better
    heights = [math.log(v) if log else v for v in values]
    end = cut([heights], [max(heights) if downward else min(heights)], downward, most=0.5)
    inside = [end is None or (h >= end if downward else h <= end) for h in heights]
    return [v for v, keep in zip(values, inside, strict=True) if keep]
