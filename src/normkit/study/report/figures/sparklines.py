"""Small figures: the seeds of a cell, an effect with the smallest that matters, the variants of an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Evidence, Form, Unit, VariantValues
from normkit.study.analysis.results import Results
from normkit.study.analysis.stats import Interval
from normkit.study.report.figures.curves import Curve, mean_curve
from normkit.study.report.figures.panels import WIDTH, bounds, colour, curve_plot, zone
from normkit.study.report.figures.plot import MARKERS, Plot, Scale, around, cut, shape_of
from normkit.study.report.writing import formatting
from normkit.study.report.writing.texts import say
from normkit.study.task import embedded
from normkit.study.task.metric import number

TONES = {"supported": "var(--good)", "contradicted": "var(--bad)", "not resolved": "var(--open)"}
_NONE, _FIRST, *_REST = embedded.METHODS
SPARE = (_FIRST, *reversed(_REST), _NONE)
"""The methods whose colours are used for the variants of an experiment, if several variants are of one method."""
WIDE = 1.5
"""A corrected interval makes an axis longer by at most this many times on each side."""
PAIRED = 30
"""The largest number of seeds that are joined by lines."""


def strip(found: Results, cell: Cell, lang: str) -> str:
    """Every seed of a cell, the mean and its interval, on the scale of its batch size."""
    if cell.error is None:
        return ""
    low, high = bounds(found, cell.batch_size, margin=0.02)
    plot = Plot(132, 24, Scale(low, high, 3, 129), Scale(0, 1, 24, 0))
    plot.zone(*zone(found, cell.batch_size, low, high))
    css = colour(cell.method)
    seeds = [run.test_error for run in cell.runs if run.test_error is not None]
    plot.dots([(v, 0.74) for v in seeds if low <= v <= high], css, radius=1.7)
    if low <= cell.error.value <= high:
        plot.segment((_inside(cell.error.low, plot.x), 0.34), (_inside(cell.error.high, plot.x), 0.34), css)
        plot.mark((cell.error.value, 0.34), shape_of(cell.method), css, size=3.4)
    else:
        plot.beyond(0.34, "", css, downward=found.metric.higher_is_better)
    value, spread = formatting.error(cell.error, found.metric, lang)
    label = say(
        "alt.strip",
        lang,
        name=formatting.title(cell.method, lang),
        size=cell.batch_size,
        value=value,
        spread=spread,
        n=cell.error.n,
    )
    return plot.svg(label, "strip")


def effect(evidence: Evidence, lang: str) -> str:
    """An effect in the size of a word; right of the line the claim holds."""
    low, high = _reach(evidence)
    plot = Plot(84, 16, Scale(low, high, 2, 82), Scale(-1, 1, 16, 0))
    _effect(plot, evidence, size=3.0)
    finding = say(f"finding.{evidence.finding}", lang)
    return plot.svg(say("alt.effect", lang, effect=formatting.effect(evidence, lang)[0], finding=finding), "mini")


def effect_axis(evidence: Evidence, lang: str) -> str:
    """The same figure with an axis."""
    low, high = _reach(evidence)
    plot = Plot(WIDTH, 78, Scale(low, high, 14, WIDTH - 14), Scale(-1, 1, 38, 8))
    plot.grid_x(_unit_ticks(plot.x, evidence.unit), _written(evidence.unit), say(f"axis.{evidence.unit}", lang))
    _effect(plot, evidence, size=5.0)
    finding = say(f"finding.{evidence.finding}", lang)
    return plot.svg(say("alt.effect", lang, effect=formatting.effect(evidence, lang)[0], finding=finding))


def variants(evidence: Evidence, lang: str) -> str | None:
    """A row for each variant: its seeds, equal seeds joined, and the mean with its interval."""
    shown = [variant for variant in evidence.variants if variant.values]
    if not shown:
        return None
    values = [v for variant in shown for v in variant.values]
    log = evidence.form == "rate" and min(values) > 0
    low, high = around(values, log=log, least=1e-6)
    means = [sum(variant.values) / len(variant.values) for variant in shown]
    if not log and (end := cut([variant.values for variant in shown], means)) is not None:
        low, high = around([v for v in values if v <= end], least=1e-6)
    if evidence.form == "share":
        low = max(low, min(0.0, *values))
    if evidence.form == "seconds":
        ordered = sorted(values)
        high = min(high, 1.1 * ordered[int(0.97 * (len(ordered) - 1))])
        low *= 0.98
    row = 46.0
    height = 14 + row * len(shown) + 36
    plot = Plot(WIDTH, height, Scale(low, high, 12, WIDTH - 12, log), Scale(-0.5, len(shown) - 0.5, 14, height - 36))
    # A percentage needs no label.
    label = "" if evidence.form == "share" else say(f"form.{evidence.form}", lang)
    plot.grid_x(plot.x.ticks(5), lambda v: _tick(v, evidence.form), label)
    colours = variant_colours(evidence)
    counts = {len(variant.values) for variant in shown}
    if len(counts) == 1 and counts.pop() <= PAIRED:
        for seed in zip(*(variant.values for variant in shown), strict=True):
            plot.line([(v, i + 0.1) for i, v in enumerate(seed)], "var(--line)", css="pair")
    for i, variant in enumerate(shown):
        css = colours[evidence.variants.index(variant)]
        plot.text(12, plot.y(i) - 9, variant.label.to(lang), css="name")
        plot.dots([(v, i + 0.1) for v in variant.values if low <= v <= high], css, radius=2.2)
        if variant.interval is not None:
            if variant.interval.value > high:
                plot.beyond(i + 0.34, formatting.shown(variant.interval.value, evidence.form), css)
                plot.broken_x()
                continue
            ends = [min(max(v, low), high) for v in (variant.interval.low, variant.interval.high)]
            plot.segment((ends[0], i + 0.34), (ends[1], i + 0.34), css)
            plot.mark((variant.interval.value, i + 0.34), MARKERS.get(variant.method, "circle"), css, size=4)
    return plot.svg(say("alt.variants", lang, question=evidence.question.to(lang)))


def variant_curves(evidence: Evidence, lang: str) -> str | None:
    """Training loss of each variant with its band."""
    colours = dict(zip(map(id, evidence.variants), variant_colours(evidence), strict=True))
    drawn = [("", colours[id(variant)], curve) for variant, curve in curves_of(evidence)]
    last = max((curve.steps[-1] for *_, curve in drawn), default=0)
    return curve_plot(
        drawn, last, lang, say("alt.variant.curves", lang, question=evidence.question.to(lang)), height=250.0
    )


def curves_of(evidence: Evidence) -> list[tuple[VariantValues, Curve]]:
    """The learning curves of the variants that have one."""
    found = []
    for variant in evidence.variants:
        losses = evidence.curves.get(str(variant.label), ())
        shortest = min(map(len, losses), default=0)
        curve = mean_curve(losses, max(1, min(20, shortest // 5)))
        if curve.steps:
            found.append((variant, curve))
    return found


def variant_colours(evidence: Evidence) -> list[str]:
    """For each variant the colour of its method, or different colours if variants share a method."""
    methods = [variant.method for variant in evidence.variants]
    if len(set(methods)) == len(methods):
        return [colour(method) for method in methods]
    return [colour(SPARE[i % len(SPARE)]) for i in range(len(methods))]


def _effect(plot: Plot, evidence: Evidence, size: float) -> None:
    css, smallest = TONES[evidence.finding], evidence.smallest
    plot.zone(max(-smallest, plot.x.low), min(smallest, plot.x.high))
    plot.segment((0, -1), (0, 1), "var(--muted)", css="zero")
    wide, near = ([_inside(v, plot.x) for v in (i.low, i.high)] for i in (evidence.wide, evidence.effect))
    plot.segment((wide[0], 0), (wide[1], 0), css, css="thin")
    for end, shown in zip((evidence.wide.low, evidence.wide.high), wide, strict=True):
        if abs(end - shown) > 1e-9 * abs(shown):
            plot.beyond(0, "", css, downward=end < shown)
    plot.segment((near[0], 0), (near[1], 0), css)
    if math.isfinite(evidence.effect.value):
        plot.mark((evidence.effect.value, 0), "circle", css, size=size)


def _tick(value: float, form: Form) -> str:
    """A round value, without its unit if the axis has it."""
    if form == "share":
        return f"{100 * value:g} %"
    return f"{1000 * value if form == 'seconds' else value:g}".replace("-", "−")


def _reach(evidence: Evidence) -> tuple[float, float]:
    """A range that contains zero, the smallest effect that matters and the intervals."""
    near = [-1.2 * evidence.smallest, 1.2 * evidence.smallest, 0.0, *_finite(evidence.effect)]
    low, high = around(near, margin=0.04)
    room = WIDE * (high - low)
    # The corrected interval of few seeds may be so wide that nothing else could be seen.
    wide = [min(max(end, low - room), high + room) for end in _finite(evidence.wide)]
    return around([*near, *wide], margin=0.04)


def _finite(interval: Interval) -> Sequence[float]:
    return [v for v in (interval.value, interval.low, interval.high) if math.isfinite(v)]


def _inside(value: float, scale: Scale) -> float:
    return min(max(value, scale.low), scale.high)


def _unit_ticks(scale: Scale, unit: Unit) -> list[float]:
    """Round values of the unit; for a ratio, powers of its base."""
    if unit not in ("log2 ratio", "log10 ratio"):
        return scale.ticks(5)
    base = math.log10(2) if unit == "log2 ratio" else 1.0
    wide = Scale(10 ** (scale.low * base), 10 ** (scale.high * base), 0, 1, log=True)
    return [math.log10(v) / base for v in wide.ticks(5)]


def _written(unit: Unit) -> Callable[[float], str]:
    if unit == "points":
        return lambda v: formatting.plus(100 * v, 1).replace(".0", "")
    if unit in ("log2 ratio", "log10 ratio"):
        base = 2.0 if unit == "log2 ratio" else 10.0
        return lambda v: f"{base**v:.3g}×"
    return lambda v: ("+" if v > 0 else "") + number(v)
