"""The answer of a study in one sentence, in both languages."""

from __future__ import annotations

from typing import NamedTuple

from normkit.catalog import Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Standing
from normkit.study.report.writing import formatting
from normkit.study.task.metric import ERROR

_START = Text("On {task}, ", "在“{task}”上：")
_SEPARATOR, _END = Text("; ", "；"), Text(".", "。")
_WHERE = Text("at batch size {size} ", "批量为 {size} 时，")
_NONE_TRAINED = Text("no method trained", "没有方法训练成功")
_NOT_MEASURED = Text("nothing has been measured yet", "尚无测量结果")
_FEWEST = Text(" makes the fewest errors ({value})", "的错误率最低（{value}）")
_LOWEST = Text(" has the lowest {metric} ({value})", "的{metric}最低（{value}）")
_EQUAL = Text(", with {names} equal to it", "，{names}与之相当")
_ALL_BEHIND = Text(", and every other method is behind", "，其余方法均落后")
_ALL_UNRESOLVED = Text(
    ", but {seeds} seeds cannot distinguish any other method from it",
    "，但 {seeds} 个种子不足以将其他任何方法与它区分开",
)
_ONE_BEHIND = Text(
    ", only {names} is behind, and {seeds} seeds cannot distinguish the others from it",
    "，只有{names}落后，{seeds} 个种子不足以将其余方法与它区分开",
)
_SOME_BEHIND = Text(_ONE_BEHIND.replace(" is ", " are "), _ONE_BEHIND.zh)
_SOME_UNRESOLVED = Text(
    ", but {seeds} seeds cannot distinguish {names} from it", "，但 {seeds} 个种子不足以将{names}与它区分开"
)


class Clause(NamedTuple):
    """A part of the answer: the text before the name of the leader, the name, and the text after it."""

    before: str
    leader: str = ""
    after: str = ""


class Parts(NamedTuple):
    """The parts of the answer: a start, a clause for each batch size, and an end."""

    start: str
    clauses: list[Clause]
    end: str


def answer(found: Results) -> Text:
    """Which method leads at each batch size, which are behind it, and which cannot be distinguished from it."""
    en, zh = (
        f"{start}{_SEPARATOR.to(lang).join(map(''.join, clauses))}{end}"
        for lang in ("en", "zh")
        for start, clauses, end in [parts(found, lang)]
    )
    return Text(en, zh)


def parts(found: Results, lang: str) -> Parts:
    """The answer in one language, in parts."""
    clauses = [_clause(found, standing, lang) for standing in found.standings]
    return Parts(_START.to(lang).format(task=found.task.to(lang)), clauses, _END.to(lang))


def _clause(found: Results, standing: Standing, lang: str) -> Clause:
    where = _WHERE.to(lang).format(size=standing.batch_size)
    if standing.leader is None:
        measured = any(cell.error for cell in found.cells if cell.batch_size == standing.batch_size)
        return Clause(where + (_NONE_TRAINED if measured else _NOT_MEASURED).to(lang))
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    name = found.metric.name.to(lang)
    if lang == "zh" and name.isascii():
        # A space separates Latin letters from Chinese characters.
        name = f" {name} "
    what = (_FEWEST if found.metric == ERROR else _LOWEST).to(lang)
    text = what.format(metric=name, value=found.metric.value(leader.error.value))
    title = formatting.inline if lang == "en" else formatting.title
    return Clause(where, title(standing.leader, lang), text + _others(standing, leader.error.n, lang))


def _others(standing: Standing, seeds: int, lang: str) -> str:
    """The other methods at a batch size; a group that follows from the others is not named."""
    behind, equal, unresolved = (
        [formatting.inline(method, lang) for method in group]
        for group in (standing.behind, standing.equal_to, standing.unresolved)
    )
    text = _EQUAL.to(lang).format(names=formatting.listing(equal, lang)) if equal else ""
    if not unresolved:
        return text if equal or not behind else text + _ALL_BEHIND.to(lang)
    if not behind and not equal:
        return text + _ALL_UNRESOLVED.to(lang).format(seeds=seeds)
    # The shorter list gives the same information.
    if behind and not equal and len(behind) < len(unresolved):
        what, names = _ONE_BEHIND if len(behind) == 1 else _SOME_BEHIND, behind
    else:
        what, names = _SOME_UNRESOLVED, unresolved
    return text + what.to(lang).format(names=formatting.listing(names, lang), seeds=seeds)
