"""Tables of whole models, which the benchmark writes into engine/performance.md in both languages."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.measure import names
from benchmarks.speed import pages
from benchmarks.speed.measure import RESULTS
from benchmarks.speed.tables import TARGET, markdown, met
from normkit.catalog import LANGUAGES, Text

MARKS = "<!-- models -->\n", "<!-- /models -->\n"
"""The lines of a page before and after the tables."""
LEAST = 0.97
"""The target for every model: torch's time over normkit's; what is missing to 1 is noise."""

MACHINE = Text(
    "{cpu}, {isa}, {threads} threads, torch {torch}, {date}; {quiet} of {every} cells were measured while nothing else "
    "ran; only those count. Times are milliseconds; a ratio is torch's time over that of the other, so that above 1 "
    "the other is faster. The share of the norms is that in the time of torch's eager model, by torch's profiler.",
    "{cpu}，{isa}，{threads} 个线程，torch {torch}，{date}；"
    "{every} 项中有 {quiet} 项在没有其他程序运行时测得，只计入这些项。"
    "时间以毫秒为单位；比值为 torch 的时间除以另一方的时间，大于 1 表示另一方更快。"
    "归一化占比指 torch 的 profiler 在 eager 模型中测得的归一化时间所占的比例。",
)
PASSES = {True: Text("a training step", "一个训练步"), False: Text("inference", "推理")}
HEADING = {
    True: Text("A training step: forward, loss, backward, optimizer.", "一个训练步：前向、损失、反向、优化器。"),
    False: Text("Inference: forward, in evaluation mode and without gradients.", "推理：前向，评估模式，不求梯度。"),
}
MODES = {False: Text("eager", "eager"), True: Text("compiled", "compile")}
MODEL, NORMS, SHARE = Text("model", "模型"), Text("norms", "归一化层数"), Text("share of the norms", "归一化占比")
RATIO, COLUMN = Text("ratio", "比值"), Text("{how}: {who}", "{how}：{who}")
NAMES = {"torch": Text("torch", "torch"), "normkit": Text("normkit", "normkit"), "folded": Text("folded", "折叠后")}
MEAN = Text("Geometric means of the ratios: {all}.", "比值的几何平均：{all}。")
SLOWEST = Text("{what}, {how}: lowest ratio of normkit", "{what}，{how}：normkit 的最低比值")

Row = Mapping[str, Any]


def ratio(row: Row, name: str) -> float | None:
    """How many times as fast a contestant is as torch."""
    mine, torch = (row["milliseconds"].get(who) for who in (name, "torch"))
    return torch / mine if mine and torch else None


def line(row: Row) -> str:
    """A row of results for the terminal."""
    times = "  ".join(f"{name} {'failed' if t is None else f'{t:.4g}'}" for name, t in row["milliseconds"].items())
    errors = "  ".join(f"{name} {e:.2g}" for name, e in row["error"].items())
    reasons = "".join(f"; {name}: {why}" for name, why in row["failed"].items())
    return f"{row['name']}: ms {times}; error {errors}{reasons}{'' if row['quiet'] else '; machine not quiet'}"


def summary(results: Mapping[str, Any], lang: str = "en") -> str:
    """Machine, targets, and one table each for training and inference, in one language."""
    rows = [row for row in results["cells"] if row["quiet"]]
    machine = MACHINE.to(lang).format(**results["machine"], quiet=len(rows), every=len(results["cells"]))
    tables = [f"{HEADING[training].to(lang)}\n\n{_table(rows, training, lang)}" for training in PASSES]
    return "\n\n".join((machine, _targets(rows, lang), *tables))


def write_pages(results: Mapping[str, Any]) -> None:
    """Put the tables into the page of each language."""
    for lang in LANGUAGES:
        page = page_of(lang)
        page.write_text(filled(page.read_text(encoding="utf-8"), results, lang), encoding="utf-8")


def page_of(lang: str) -> Path:
    """The page that shows the tables."""
    return RESULTS.parents[1] / "docs" / lang / "engine" / "performance.md"


def filled(page: str, results: Mapping[str, Any], lang: str) -> str:
    """The page with the tables of these results."""
    return pages.filled(page, f"\n{summary(results, lang)}\n\n", MARKS)


def _targets(rows: Sequence[Row], lang: str) -> str:
    lines = []
    for training, what in PASSES.items():
        for compiled, how in MODES.items():
            chosen = [row for row in rows if (row["training"], row["compiled"]) == (training, compiled)]
            least = min(_known(ratio(row, "normkit") for row in chosen), default=None)
            name = SLOWEST.to(lang).format(what=what.to(lang), how=how.to(lang))
            lines.append((name, f"≥ {LEAST:.2f}", _text(least), "–" if least is None else met(least >= LEAST, lang)))
    return markdown([name.to(lang) for name in TARGET], lines)


def _table(rows: Sequence[Row], training: bool, lang: str) -> str:
    """Lines by model, layout and precision; columns for eager, then for compiled models; then the means of ratios."""
    columns = [(compiled, who) for compiled in MODES for who in names(training, compiled)]
    head = [MODEL.to(lang), NORMS.to(lang), SHARE.to(lang)]
    for compiled, who in columns:
        mode = COLUMN.to(lang).format(how=MODES[compiled].to(lang), who=NAMES[who].to(lang))
        head += [mode] if who == "torch" else [NAMES[who].to(lang), RATIO.to(lang)]
    found: dict[str, dict[bool, Row]] = {}
    for row in rows:
        if row["training"] == training:
            subject = " ".join((row["model"], row["layout"], row["precision"]))
            found.setdefault(subject, {})[row["compiled"]] = row
    lines = []
    ratios: dict[tuple[bool, str], list[float | None]] = {column: [] for column in columns}
    for subject, modes in found.items():
        part = modes[False]["share"] if False in modes else None
        cells = [subject, str(next(iter(modes.values()))["norms"]), _text(part, ".0%")]
        for compiled, who in columns:
            row = modes.get(compiled, {"milliseconds": {}})
            cells += [_text(row["milliseconds"].get(who), ".3g")]
            cells += [] if who == "torch" else [_text(ratio(row, who))]
            ratios[compiled, who].append(ratio(row, who))
        lines.append(cells)
    means = [
        f"{MODES[compiled].to(lang)} {NAMES[who].to(lang)} {statistics.geometric_mean(_known(values)):.2f}"
        for (compiled, who), values in ratios.items()
        if who != "torch" and _known(values)
    ]
    joined = ("，" if lang == "zh" else ", ").join(means) or "–"
    return f"{markdown(head, lines)}\n\n{MEAN.to(lang).format(all=joined)}"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _text(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)
