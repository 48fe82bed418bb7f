"""The answer of a study, in both languages: which methods to use at each batch size, then the evidence."""

from __future__ import annotations

from typing import NamedTuple

from normkit.catalog import Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Standing
from normkit.study.report.writing import formatting
from normkit.study.report.writing.decision import EXTREMES, Decision, decisions, untrained_methods

_USE = Text("Use {names} at {where}", "{where}：选用{names}")
_ANY = Text("any of the {count} methods", "这 {count} 种方法中的任意一种")
_NONE_RULED_OUT = Text("; these runs rule out none of them", "，这些运行未能排除其中任何一种")
_WHERE = Text("batch size {size}", "批量 {size}")
_WHERES = Text("batch sizes {size}", "批量 {size}")
_END = Text(".", "。")
_BETWEEN = Text(" ", "")
_NONE_TRAINED = Text("No method trained at {where}", "{where}：没有方法训练成功")
_FAILED = Text(
    "There is no result at {where}, because runs failed ({message})", "{where}：运行失败，没有结果（{message}）"
)
_NOT_MEASURED = Text("Nothing has been measured yet at {where}", "{where}：尚无测量结果")
_ON = Text("On {task} at {where}, ", "在“{task}”上，{where} 时")
_AT = Text("At {where}, ", "{where} 时")
_LEADER = Text("{leader} has the {extreme} {metric} ({value})", "{leader}的{metric}{extreme}（{value}）")
_EQUAL = Text("{names} {verb} equal to it within {least}", "{names}与之相当（相差不超过 {least}）")
_UNTRAINED = Text("no run of {names} trained", "{names}没有一次运行训练成功")
_WORSE = Text("{names} {verb} measurably worse", "{names}显著更差")
_ONE_UNRESOLVED = Text(
    "the difference to {names} is within what {seeds} seeds can resolve",
    "与{names}的差异用 {seeds} 个随机种子尚无法分辨",
)
_UNRESOLVED = Text(
    "the differences to {names} are within what {seeds} seeds can resolve",
    "与{names}的差异用 {seeds} 个随机种子尚无法分辨",
)
_ALL_OTHERS = Text("all other methods", "其他所有方法")
_EVERY_OTHER = Text("every other method", "其他所有方法")
_OTHERS = Text("the others", "其余方法")


class Clause(NamedTuple):
    """A part of the decision: the text before the names to use, the names, and the text after them."""

    before: str
    names: str = ""
    after: str = ""


class Parts(NamedTuple):
    """The answer in parts: a clause for each group of batch sizes, and a sentence of evidence for each batch size."""

    clauses: list[Clause]
    evidence: list[str]


def answer(found: Results) -> Text:
    """Which methods to use at each batch size; then which one leads, and how the others compare with it."""
    en, zh = (
        _BETWEEN.to(lang).join([*map("".join, clauses), *evidence])
        for lang in ("en", "zh")
        for clauses, evidence in [parts(found, lang)]
    )
    return Text(en, zh)


def parts(found: Results, lang: str) -> Parts:
    """The answer in one language, in parts."""
    groups: dict[str, list[int]] = {}
    for decision in decisions(found):
        key = ",".join(sorted(choice.method for choice in decision.take)) or f"?{_reason(found, decision, lang)}"
        groups.setdefault(key, []).append(decision.batch_size)
    made = {decision.batch_size: decision for decision in decisions(found)}
    clauses = [_clause(found, made[sizes[0]], _where(sizes, lang), lang) for sizes in groups.values()]
    led = [standing for standing in found.standings if standing.leader]
    sentences = []
    for number, standing in enumerate(led):
        where = _where([standing.batch_size], lang)
        start = (_AT if number else _ON).to(lang).format(task=found.task.to(lang), where=where)
        sentences.append(start + _evidence(found, standing, lang) + _END.to(lang))
    return Parts(clauses, [formatting.chinese(text) if lang == "zh" else text for text in sentences])


def _where(sizes: list[int], lang: str) -> str:
    where = (_WHERE if len(sizes) == 1 else _WHERES).to(lang)
    named = list(map(str, sizes))
    return where.format(size="、".join(named) if lang == "zh" else formatting.listing(named))


def _reason(found: Results, decision: Decision, lang: str) -> str:
    """Why there is nothing to use at a batch size, as a format of its place."""
    size = decision.batch_size
    if any(cell.error for cell in found.cells if cell.batch_size == size):
        return _NONE_TRAINED.to(lang)
    failed = [run for run in found.failures if run.trial.batch_size == size]
    if failed and found.complete:
        lines = failed[0].message.splitlines() or [""]
        message = lines[0].replace("{", "{{").replace("}", "}}")
        return _FAILED.to(lang).replace("{message}", message)
    return _NOT_MEASURED.to(lang)


def _clause(found: Results, decision: Decision, where: str, lang: str) -> Clause:
    if not decision.take:
        return Clause(_reason(found, decision, lang).format(where=where) + _END.to(lang))
    names = [formatting.inline(choice.method, lang) for choice in decision.take]
    listed = formatting.listing(names, lang, choice=True)
    every = not decision.avoid and any(choice.place == "not resolved" for choice in decision.take)
    if every and len(names) > 3:
        listed = _ANY.to(lang).format(count=len(names))
    # The page sets the names apart, so the spaces of Chinese are part of what surrounds them.
    space = " " if lang == "zh" and listed[:1].isascii() else ""
    before, after = _USE.to(lang).format(where=where, names="\0").split("\0")
    return Clause(before + space, listed, after + (_NONE_RULED_OUT.to(lang) if every else "") + _END.to(lang))


def _evidence(found: Results, standing: Standing, lang: str) -> str:
    """The leader of a batch size, and the groups of the other methods."""
    assert standing.leader is not None
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    text = _LEADER.to(lang).format(
        leader=formatting.inline(standing.leader, lang),
        extreme=EXTREMES[found.metric.higher_is_better].to(lang),
        metric=found.metric.name.to(lang),
        value=found.metric.value(leader.error.value),
    )
    others = _groups(found, standing, leader.error.n, lang)
    if not others:
        return text
    if lang == "zh":
        return "，".join([text, *others])
    return f"{text}: {', and '.join([', '.join(others[:-1]), others[-1]] if others[1:] else others)}"


def _groups(found: Results, standing: Standing, seeds: int, lang: str) -> list[str]:
    """The other methods at a batch size; a group that follows from the others is not named."""
    lost = untrained_methods(found, standing)
    worse = [method for method in standing.behind if method not in lost]
    unclear = [method for method in standing.unresolved if method not in lost]
    untrained, behind, equal, unresolved = (
        [formatting.inline(method, lang) for method in group] for group in (lost, worse, standing.equal_to, unclear)
    )
    said = []
    if equal:
        verb, least = "is" if len(equal) == 1 else "are", found.metric.amount(found.design.smallest, lang)
        said.append(_EQUAL.to(lang).format(names=formatting.listing(equal, lang), verb=verb, least=least))
    if unresolved:
        one = len(unresolved) == 1
        named = (
            formatting.listing(unresolved, lang) if standing.behind or lost or equal or one else _ALL_OTHERS.to(lang)
        )
        said.append((_ONE_UNRESOLVED if one else _UNRESOLVED).to(lang).format(names=named, seeds=seeds))
    if behind:
        some = bool(equal or unresolved or untrained)
        alone = len(behind) == 1
        names = behind[0] if alone else (_OTHERS if some else _EVERY_OTHER).to(lang)
        said.append(_WORSE.to(lang).format(names=names, verb="is" if alone or not some else "are"))
    if untrained:
        said.append(_UNTRAINED.to(lang).format(names=formatting.listing(untrained, lang)))
    return said
