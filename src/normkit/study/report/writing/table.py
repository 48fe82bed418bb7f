"""The table of the results as text: headings, rows, and the note on both, in either language."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from normkit.catalog import LANGUAGES, Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Place
from normkit.study.report.writing import formatting
from normkit.study.report.writing.answer import answer

PLACES: Mapping[Place, Text] = {
    "leads": Text("leads", "领先"),
    "equal": Text("equal", "相当"),
    "not resolved": Text("not resolved", "未定"),
    "behind": Text("behind", "落后"),
    "not measured": Text("not measured", "未测量"),
}
"""The places of a method at a batch size, in this order when they are sorted."""
TONES: Mapping[Place, str] = {
    "leads": "good", "equal": "good", "not resolved": "open", "behind": "bad", "not measured": "open",
}  # fmt: skip
"""Good, bad or open: the colour of a place."""

_HEADINGS = {
    "batch_size": Text("batch", "批量"),
    "method": Text("method", "方法"),
    "value": Text("{metric}", "{metric}"),
    "interval": Text("95 %", "95 %"),
    "place": Text("standing", "位次"),
    "steps": Text("steps", "步数"),
    "time": Text("time", "时间"),
    "gap": Text("gap", "差距"),
    "untrained": Text("untrained", "未训练成功"),
}
_NOTE = Text(
    "batch: samples per step; {metric}: on the test data, with its 95 % interval; steps: until the training loss is "
    "{target:g}; time: of a training step, relative to no norm; gap: loss in evaluation minus loss in training mode; "
    "untrained: runs that did not train.",
    "批量：每步的样本数；{metric}：在测试数据上，附 95 % 区间；步数：训练损失降到 {target:g} 所需；时间：每个训练步，"
    "相对于不归一化；差距：推理模式的损失减训练模式的损失；未训练成功：未能训练的运行数。",
)
_INTERRUPTED = Text(
    "Interrupted: this is based on the finished runs; repeat the command to continue. ",
    "研究中断：以下依据已完成的运行；重复同一命令即可继续。",
)
_FAILED = Text(
    "{count} runs failed, first {method} at batch size {size} ({message}); the report has all. ",
    "{count} 次运行失败，首先是批量为 {size} 时的{method}（{message}）；报告中列有全部。",
)
_OF = Text("{part} of {all}", "{part}/{all}")


class Texts(NamedTuple):
    """The texts of a row or of the headings, one for each column."""

    batch_size: str
    method: str
    value: str
    interval: str
    place: str
    steps: str
    time: str
    gap: str
    untrained: str


class Row(NamedTuple):
    """A row: batch size and place, and the texts."""

    batch_size: int
    place: Place
    texts: Texts


def headings(found: Results, lang: str = "en") -> Texts:
    """The headings of the columns."""
    texts = {name: text.to(lang).format(metric=found.metric.name.to(lang)) for name, text in _HEADINGS.items()}
    return Texts(**texts)


def rows(found: Results, lang: str = "en") -> list[Row]:
    """A row for each cell; within a batch size the lowest error first."""
    shown = []
    for standing in found.standings:
        cells = [cell for cell in found.cells if cell.batch_size == standing.batch_size]
        for cell in sorted(cells, key=lambda cell: cell.error.value if cell.error else math.inf):
            value, interval = formatting.error(cell.error, found.metric, lang)
            place = found.place(cell)
            texts = Texts(
                batch_size=str(cell.batch_size),
                method=formatting.title(cell.method, lang),
                value=value,
                interval=interval,
                place=PLACES[place].to(lang),
                steps=formatting.steps(cell.median_steps),
                time=formatting.times(cell.time_ratio)[0],
                gap=formatting.signed(cell.gap)[0],
                untrained=_OF.to(lang).format(part=cell.untrained, all=len(cell.runs)),
            )
            shown.append(Row(cell.batch_size, place, texts))
    return shown


def note(found: Results) -> Text:
    """The meaning of the headings; before it, whether the study is complete and which runs failed."""
    en, zh = (
        ("" if found.complete else _INTERRUPTED.to(lang))
        + _failed(found, lang)
        + _NOTE.to(lang).format(target=found.design.target_loss, metric=found.metric.name.to(lang))
        for lang in LANGUAGES
    )
    return Text(en, zh)


def plain(found: Results) -> str:
    """Answer, table and note as plain English text."""
    lines = [headings(found), *(row.texts for row in rows(found))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([answer(found), "", *text, "", note(found)])


def _failed(found: Results, lang: str) -> str:
    if not found.failures:
        return ""
    trial, lines = found.failures[0].trial, found.failures[0].message.splitlines()
    return _FAILED.to(lang).format(
        count=len(found.failures),
        method=formatting.inline(trial.method, lang),
        size=trial.batch_size,
        message=lines[0] if lines else "",
    )
