"""Every figure of a report as files: an SVG that needs no page around it, and its data as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from normkit import catalog
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Evidence
from normkit.study.analysis.results import Results
from normkit.study.analysis.stats import Interval
from normkit.study.report.figures import learning_rates, panels, sparklines
from normkit.study.report.figures.curves import Curve, mean_curve

Row = Mapping[str, Any]
_COLOURS = {
    "paper": "#ffffff", "card": "#ffffff", "ink": "#191c22", "muted": "#5b6270", "line": "#dee1e6", "good": "#00664c",
    "bad": "#a02f14", "open": "#525866", "none": "#5f6776", "unchanged": "#3f4653",
}  # fmt: skip
"""The colours of the light page; a file is usually printed, or shown on white."""
_RULES = (
    "text{fill:muted;font:11.5px 'Helvetica Neue',Arial,'Noto Sans','Noto Sans CJK SC',sans-serif}"
    "text.name,text.halo{paint-order:stroke;stroke:card;stroke-width:3px;stroke-linejoin:round}"
    "text.name{fill:ink;font-weight:500}.grid{stroke:line;stroke-width:.8;fill:none}"
    ".line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}.pair{fill:none;stroke-width:.9}"
    ".band{opacity:.16;stroke:none}.dots{opacity:.5}.whisker{fill:none;stroke-width:2.4;stroke-linecap:round}"
    ".thin{fill:none;stroke-width:1.1;stroke-linecap:round}.amount{fill:none;stroke-width:11}.zero{stroke-width:1}"
    ".dashed{stroke-dasharray:5 3;stroke-linecap:butt}"
    ".target{stroke-width:1;stroke-dasharray:3 3}.zone{fill:muted;opacity:.17}.mk{fill:currentColor}"
    ".mo{fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round}.cut{fill:none;stroke:muted;stroke-width:1.4}"
)
"""The rules of the page's style sheet that its figures use, with the names of colours."""
_ENLARGED = 1.5


class Figure(NamedTuple):
    """A figure: the name of its files, the SVG, and the rows of its data."""

    name: str
    svg: str
    rows: Sequence[Row]

    @property
    def csv(self) -> str:
        """The rows as CSV; a column that a row does not have is empty."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def figures(found: Results, lang: str = "en") -> Iterator[Figure]:
    """All figures that the results have data for: those of the comparison, then those of the experiments."""
    for size in found.design.batch_sizes:
        for name, draw, rows in _PANELS:
            svg = draw(found, size, lang)
            if svg is not None:
                yield Figure(f"{name}-batch-{size}", standalone(svg), list(rows(found, _cells(found, size))))
    for method in found.design.methods:
        svg = learning_rates.sensitivity(found, method, lang)
        if svg is not None:
            cells = [cell for cell in found.cells if cell.method == method]
            values = [{"batch_size": cell.batch_size, **row} for cell in cells for row in _rates(found, [cell])]
            yield Figure(f"rate-sensitivity-{method.replace(':', '-')}", standalone(svg), values)
    svg = panels.batch_sizes(found, lang)
    if svg is not None:
        yield Figure("batch-sizes", standalone(svg), list(_means(found.cells)))
    for evidence in found.evidence:
        yield from _of_experiment(found, evidence, lang)


def _of_experiment(found: Results, evidence: Evidence, lang: str) -> Iterator[Figure]:
    of_claim = [e for e in found.evidence if e.claim == evidence.claim]
    name = f"{evidence.claim}-{of_claim.index(evidence) + 1}"
    effect = {"experiment": evidence.name, "unit": evidence.unit, "finding": evidence.finding}
    wide = {"corrected_low": evidence.wide.low, "corrected_high": evidence.wide.high}
    yield Figure(
        f"{name}-effect",
        standalone(sparklines.effect_axis(evidence, lang)),
        [effect | _ends(evidence.effect) | wide | {"smallest": evidence.smallest}],
    )
    values = sparklines.variants(evidence, lang)
    if values is not None:
        rows = [
            {"variant": str(variant.label), "run": number, "value": value}
            for variant in evidence.variants
            for number, value in enumerate(variant.values)
        ]
        yield Figure(f"{name}-values", standalone(values), rows)
    curves = sparklines.variant_curves(evidence, lang)
    if curves is not None:
        drawn = [(str(v.label), curve) for v, curve in sparklines.curves_of(evidence)]
        yield Figure(f"{name}-curves", standalone(curves), [row for d in drawn for row in _curve("variant", *d)])


def standalone(svg: str) -> str:
    """An SVG of the page as a file of its own: with a namespace, a size, a background and plain colours."""
    colours = dict(_COLOURS)
    colours |= {method.name.replace("_", "-"): method.mark.light for method in catalog.METHODS if method.mark}
    rules = re.sub(r"(?<=:)(muted|card|ink|line)\b", lambda match: colours[match[1]], _RULES)
    text = re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], svg)
    width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', text)[0])
    margin = 8
    box = f'viewBox="{-margin} {-margin} {width + 2 * margin:g} {height + 2 * margin:g}"'
    size = f'width="{_ENLARGED * (width + 2 * margin):g}" height="{_ENLARGED * (height + 2 * margin):g}"'
    text = re.sub(r'viewBox="[^"]*"', f'xmlns="http://www.w3.org/2000/svg" {box} {size}', text, count=1)
    ground = f'<rect x="{-margin}" y="{-margin}" width="100%" height="100%" fill="{colours["card"]}"/>'
    start = text.index("</title>") + len("</title>")
    return f"{text[:start]}<style>{rules}</style>{ground}{text[start:]}\n"


def _cells(found: Results, size: int) -> list[Cell]:
    return [cell for cell in found.cells if cell.batch_size == size]


def _ends(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _means(cells: Sequence[Cell]) -> Iterator[Row]:
    for cell in cells:
        if cell.error is not None:
            yield {"batch_size": cell.batch_size, "method": cell.method} | _ends(cell.error)


def _errors(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    """The mean of each method with its interval, and every seed."""
    for cell in cells:
        if cell.error is not None:
            yield {"method": cell.method, "seed": "mean"} | _ends(cell.error)
        for run in cell.runs:
            if run.test_error is not None:
                yield {"method": cell.method, "seed": run.trial.seed, "value": run.test_error}


def _curves(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    for cell in cells:
        yield from _curve("method", cell.method, mean_curve([run.losses for run in cell.runs], found.design.window))


def _curve(key: str, name: str, curve: Curve) -> Iterator[Row]:
    for step, value, low, high in zip(*curve, strict=True):
        yield {key: name, "step": step, "value": value, "low": low, "high": high}


def _rates(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    for cell in cells:
        for rate, (value, trained) in learning_rates.by_rate(cell).items():
            yield {
                "method": cell.method,
                "rate": rate,
                "value": value,
                "trained": trained,
                "chosen": rate == cell.rate,
            }


def _gaps(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    for cell in cells:
        if cell.gap is not None:
            yield {"method": cell.method} | _ends(cell.gap)


def _times(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    """The median of each method with its interval, and every round."""
    for cell in cells:
        if cell.time_ratio is not None:
            yield {"method": cell.method, "round": "median"} | _ends(cell.time_ratio)
            for number, (mine, plain) in enumerate(zip(cell.seconds, cell.plain_seconds, strict=True)):
                yield {"method": cell.method, "round": number, "value": mine / plain, "seconds": mine}


def _memory(found: Results, cells: Sequence[Cell]) -> Iterator[Row]:
    for cell in cells:
        if cell.saved_bytes is not None:
            yield {"method": cell.method, "bytes": cell.saved_bytes}


_PANELS: tuple[
    tuple[
        str,
        Callable[[Results, int, str], str | None],
        Callable[[Results, Sequence[Cell]], Iterator[Row]],
    ],
    ...,
] = (
    ("results", panels.errors, _errors),
    ("learning-curves", panels.curves, _curves),
    ("learning-rates", learning_rates.rates, _rates),
    ("train-eval-gap", panels.gaps, _gaps),
    ("step-time", panels.times, _times),
    ("memory", panels.memory, _memory),
)
"""The figures with one panel for each batch size: name, drawing, and data."""
