"""The table of the results as text: headings, rows, and the note on both, in either language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from normkit.catalog import LANGUAGES, Text
from normkit.study.analysis.results import Results
from normkit.study.report.writing import formatting
from normkit.study.report.writing.answer import answer
from normkit.study.report.writing.decision import decisions, why
from normkit.study.report.writing.places import PLACES, Shown, ordered, place
from normkit.study.report.writing.texts import say

_HEADINGS = {
    "batch_size": Text("batch", "批量"),
    "method": Text("method", "方法"),
    "value": Text("{metric}", "{metric}"),
    "interval": Text("95 % interval", "95 % 置信区间"),
    "place": Text("standing", "位次"),
    "steps": Text("steps", "步数"),
    "time": Text("time", "耗时"),
    "gap": Text("gap", "差距"),
    "untrained": Text("untrained", "未训练成功"),
}
_NOTE = Text(
    "batch: samples of one training step. {metric}: on the test data, mean over the seeds. steps: training steps until "
    "the training loss is {target}. time: of one training step, divided by that of no norm. gap: loss in evaluation "
    "mode minus loss in training mode. untrained: runs that did not train.",
    "批量：每个训练步的样本数。{metric}：在测试数据上，各随机种子的均值。步数：训练损失降到{target}所需的训练步数。"
    "耗时：每个训练步的时间与无归一化之比。差距：推理模式的损失减训练模式的损失。未训练成功：未训练成功的运行数。",
)
_INTERRUPTED = Text(
    "Interrupted: this shows the finished runs, and the same command continues. ",
    "研究被中断：以下只包含已完成的运行，再次执行同一命令即可继续。",
)
_FAILED = Text(
    "{count} runs failed, the first one with {method} at batch size {size} ({message}); the report lists all of them. ",
    "{count} 次运行失败，其中第一次为{method}，批量 {size}（{message}）；报告中列出了全部失败的运行。",
)
_ONE_FAILED = Text(
    "One run failed, with {method} at batch size {size} ({message}). ",
    "1 次运行失败：{method}，批量 {size}（{message}）。",
)
_NUMBER = Text("{target:g}", " {target:g} ")
_HALFWAY = Text(
    "halfway between that of the first step and the lowest of a method at the end",
    "首步损失与各方法最终损失中最低者的中点",
)
_VALUES = Text(" ({listed})", "（{listed}）")
_AT = Text("{target:g} at batch size {size}", "批量 {size} 时为 {target:g}")
_LISTED = Text(", ", "，")
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
    place: Shown
    texts: Texts


def headings(found: Results, lang: str = "en") -> Texts:
    """The headings of the columns."""
    texts = {name: text.to(lang).format(metric=found.metric.name.to(lang)) for name, text in _HEADINGS.items()}
    return Texts(**texts)


def rows(found: Results, lang: str = "en") -> list[Row]:
    """A row for each cell; within a batch size the best first."""
    shown = []
    for standing in found.standings:
        cells = [cell for cell in found.cells if cell.batch_size == standing.batch_size]
        for cell in ordered(found, cells):
            value, interval = formatting.error(cell.error, found.metric, lang)
            standing_ = place(found, cell)
            texts = Texts(
                batch_size=str(cell.batch_size),
                method=formatting.title(cell.method, lang),
                value=value,
                interval=interval,
                place=PLACES[standing_].to(lang),
                steps=formatting.steps(cell.median_steps),
                time=formatting.times(cell.time_ratio)[0],
                gap=formatting.signed(cell.gap)[0],
                untrained=_OF.to(lang).format(part=cell.untrained, all=len(cell.runs)),
            )
            shown.append(Row(cell.batch_size, standing_, texts))
    return shown


def note(found: Results) -> Text:
    """The meaning of the headings; before it, whether the study is complete and which runs failed."""
    en, zh = (
        ("" if found.complete else _INTERRUPTED.to(lang))
        + _failed(found, lang)
        + _NOTE.to(lang).format(target=target(found, lang), metric=found.metric.name.to(lang))
        for lang in LANGUAGES
    )
    return Text(en, zh)


def target(found: Results, lang: str) -> str:
    """The training loss that counts in the number of steps, with its value at each batch size if they differ."""
    if found.design.target_loss is not None:
        return _NUMBER.to(lang).format(target=found.design.target_loss)
    values = {cell.batch_size: cell.target for cell in found.cells if cell.target is not None}
    listed = _LISTED.to(lang).join(_AT.to(lang).format(target=v, size=size) for size, v in sorted(values.items()))
    return _HALFWAY.to(lang) + (_VALUES.to(lang).format(listed=listed) if listed else "")


def choices(found: Results, lang: str = "en") -> list[tuple[str, str, str, str]]:
    """The decision table: batch size, take or avoid, method, and the evidence."""
    shown = []
    for decision in decisions(found):
        for key, group in (("take", decision.take), ("avoid", decision.avoid)):
            for choice in group:
                name, reason = formatting.title(choice.method, lang), why(found, decision, choice, lang)
                shown.append((str(decision.batch_size), say(f"decision.{key}", lang), name, reason))
    return shown


def plain(found: Results) -> str:
    """Answer, table and note as plain English text."""
    lines = [headings(found), *(row.texts for row in rows(found))]
    chosen = _aligned(choices(found))
    return "\n".join([answer(found), "", *chosen, *([""] if chosen else []), *_aligned(lines), "", note(found)])


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _failed(found: Results, lang: str) -> str:
    if not found.failures:
        return ""
    trial, lines = found.failures[0].trial, found.failures[0].message.splitlines()
    text = (_FAILED if len(found.failures) > 1 else _ONE_FAILED).to(lang)
    return text.format(
        count=len(found.failures),
        method=formatting.inline(trial.method, lang),
        size=trial.batch_size,
        message=lines[0] if lines else "",
    )
