"""What to take and what to avoid at each batch size, and the comparison that each choice is based on."""

from __future__ import annotations

from typing import NamedTuple

from normkit.catalog import Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Pair, Standing
from normkit.study.report.writing import formatting
from normkit.study.report.writing.places import Shown, ordered, place

_LEADS = Text("{extreme} {metric}: {value} ({spread})", "{metric}{extreme}：{value}（{spread}）")
_EQUAL = Text("equal within {least}", "差异在 {least}以内")
_UNRESOLVED = Text("not resolved with {seeds} seeds", "用 {seeds} 个随机种子未能分辨")
_BEHIND = Text("measurably worse", "显著更差")
_THAN = Text("measurably worse than {name}", "显著差于{name}")
_UNTRAINED = Text("no run trained", "没有运行训练成功")
_ALSO = Text("; the difference is {why}", "；差异{why}")
_DIFFERENCE = Text("{why}: {value} ({more})", "{why}：{value}（{more}）")
_POINTS = Text(" points", " 个百分点")
EXTREMES = {False: Text("lowest", "最低"), True: Text("highest", "最高")}
"""By whether a higher metric is better: where the leader is."""


class Choice(NamedTuple):
    """A method, its place, and its comparison with the leader, or with the first method that is better than it."""

    method: str
    place: Shown
    pair: Pair | None


class Decision(NamedTuple):
    """The choices at a batch size, the best first; without a leader there are none."""

    batch_size: int
    take: tuple[Choice, ...]
    avoid: tuple[Choice, ...]


def decisions(found: Results) -> list[Decision]:
    """A decision for each batch size."""
    return [_decision(found, standing) for standing in found.standings]


def _decision(found: Results, standing: Standing) -> Decision:
    size = standing.batch_size
    if standing.leader is None:
        return Decision(size, (), ())
    cells = ordered(found, (cell for cell in found.cells if cell.batch_size == size and cell.error is not None))
    choices = [Choice(cell.method, place(found, cell), _pair(found, standing, cell.method)) for cell in cells]
    lost = untrained_methods(found, standing)
    return Decision(
        size,
        tuple(choice for choice in choices if choice.method in standing.front and choice.method not in lost),
        tuple(choice for choice in choices if choice.method in (*standing.behind, *lost)),
    )


def untrained_methods(found: Results, standing: Standing) -> tuple[str, ...]:
    """Methods besides the leader of which no run trained, if one of the leader did; few seeds may not resolve this."""

    def none_trained(method: str | None) -> bool:
        cell = found.cell(method, standing.batch_size) if method else None
        return cell is not None and cell.untrained == len(cell.runs)

    if none_trained(standing.leader):
        return ()
    return tuple(filter(none_trained, (*standing.behind, *standing.unresolved)))


def _pair(found: Results, standing: Standing, method: str) -> Pair | None:
    pairs = {frozenset((p.first, p.second)): p for p in found.pairs if p.batch_size == standing.batch_size}
    leading = pairs.get(frozenset((standing.leader or "", method)))
    if method not in standing.behind or (leading and leading.relation in ("better", "worse")):
        return leading
    beaten = (p for p in pairs.values() if (p.relation == "worse" and p.first == method) or _wins(p, method))
    return next(beaten, leading)


def _wins(pair: Pair, against: str) -> bool:
    return pair.relation == "better" and pair.second == against


def why(found: Results, decision: Decision, choice: Choice, lang: str) -> str:
    """The evidence for a choice: the value of the leader, or the difference to it with its interval."""
    text = _why(found, decision, choice, lang)
    return formatting.chinese(text) if lang == "zh" else text


def _why(found: Results, decision: Decision, choice: Choice, lang: str) -> str:
    cell = found.cell(choice.method, decision.batch_size)
    if choice.place == "leads":
        value, spread = formatting.error(cell.error, found.metric, lang)
        extreme = EXTREMES[found.metric.higher_is_better].to(lang)
        metric = found.metric.name.to(lang)
        return _LEADS.to(lang).format(extreme=extreme, metric=metric, value=value, spread=spread)
    if choice in decision.avoid and cell.untrained == len(cell.runs):
        unresolved = _UNRESOLVED.to(lang).format(seeds=len(cell.runs)) if choice.place == "not resolved" else ""
        return _UNTRAINED.to(lang) + (_ALSO.to(lang).format(why=unresolved) if unresolved else "")
    if choice.pair is None:
        return _BEHIND.to(lang)
    other = choice.pair.second if choice.pair.first == choice.method else choice.pair.first
    leader = decision.take[0].method
    reason = {
        "equal": _EQUAL.to(lang).format(least=found.metric.amount(found.design.smallest, lang)),
        "not resolved": _UNRESOLVED.to(lang).format(seeds=choice.pair.difference.n),
    }.get(choice.place, (_BEHIND if other == leader else _THAN).to(lang))
    value, more = _difference(found, choice, lang)
    if choice.pair.relation in ("better", "worse"):
        # The verdict is that of the test; Bonferroni's interval is a little wider than Holm's test.
        p = formatting.probability(choice.pair.p_corrected)
        more = f"p {p}" if p.startswith("<") else f"p = {p}"
    return _DIFFERENCE.to(lang).format(why=reason.format(name=formatting.inline(other, lang)), value=value, more=more)


def _difference(found: Results, choice: Choice, lang: str) -> tuple[str, str]:
    """The method minus the other one in the metric, with the interval that is corrected over all comparisons."""
    pair = choice.pair
    assert pair is not None
    # A positive difference means that the first is better; shown is how the metric of this method differs.
    sign = (1 if pair.second == choice.method else -1) * (-1 if found.metric.higher_is_better else 1)
    value, spread = formatting.difference(formatting.turned(pair.wide, sign), found.metric, lang)
    return value + (_POINTS.to(lang) if found.metric.share else ""), spread
