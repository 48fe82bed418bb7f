"""What the seeds of a study can tell apart, as text: differences, further rates, reports, learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from normkit.catalog import Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Pair
from normkit.study.report.writing import formatting
from normkit.study.training.design import MOST_SEEDS

HEADING = Text("What these seeds can tell apart", "这些随机种子能分辨什么")
_LEAD = Text(
    "A pair that is not resolved may still differ, by less than these seeds find. The third column is the difference "
    "that they find with a probability of 80 %, the fourth the number of further seeds that are needed to find "
    "{smallest}.",
    "未能分辨的两种方法仍可能有差异，只是小于这些随机种子所能发现的。第三列是以 80 % 的概率能够发现的差异，"
    "第四列是要发现 {smallest}的差异还需要的随机种子数。",
)
_PAIRS = (
    Text("methods", "方法"),
    Text("difference", "差值"),
    Text("these seeds find", "现有随机种子可发现"),
    Text("further seeds", "还需随机种子"),
)
_MANY = Text("more than {most}", "超过 {most}")
_OTHERS = Text("{count} more pairs, without the leader of their batch size", "其余 {count} 对（不含该批量的领先者）")
_ALL = Text("All pairs are resolved.", "所有两两比较均已有结论。")
_COMMAND = Text(
    "This resolves the pairs with the leader, or stops at the time limit:",
    "下列命令补足与领先者比较所需的随机种子，或到时停止：",
)
_RATES = Text("At other learning rates", "在其他学习率下")
_RATES_LEAD = Text(
    "A difference counts if it also holds at the rate of the better method, and at the rates that tuning cannot "
    "exclude. These were measured on the same seeds.",
    "只有在较优方法的学习率下，以及在调参无法排除的学习率下也成立的差异才算数。这些学习率用相同的随机种子测量。",
)
_AT = (
    Text("methods", "方法"),
    Text("trained at another rate", "换用其他学习率的方法"),
    Text("rate", "学习率"),
    Text("difference", "差值"),
)
_LOOKS = Text(
    "Results of this study were reported {count} times, with {seeds} seeds. Each report spends a part of the {alpha} "
    "probability of a wrong verdict; this one may spend {part}.",
    "本研究的结果已报告 {count} 次，随机种子数依次为 {seeds}。每次报告都用去 {alpha} 误判概率中的一部分；"
    "本次可用 {part}。",
)
_SENSITIVITY = Text("How much the learning rate matters", "学习率的影响")
_SENSITIVITY_LEAD = Text(
    "Sensitivity: the validation loss averaged over all rates, each at most the loss before training, minus that at "
    "the best rate; 0 means that any rate will do. The last column has the rates at which the {metric} is worse than "
    "the best by less than {smallest}.",
    "敏感度：所有学习率下验证损失的平均值（每个至多取训练前的损失）减去最佳学习率下的损失；0 表示任何学习率都可以。"
    "最后一列是{metric}比最佳值差不到 {smallest}的学习率范围。",
)
_STOPPED = Text(
    " Rates that were discarded early count with their loss at that point, so the value is at most too high.",
    "提前放弃的学习率按当时的损失计入，因此该值只会偏高。",
)
_CELLS = (
    Text("batch size", "批量"),
    Text("method", "方法"),
    Text("sensitivity", "敏感度"),
    Text("rates as good as the best", "与最佳相当的学习率"),
)


@dataclass(frozen=True)
class Table:
    """A table with a title and a text before it; `others` are rows that are shown on request, `summary` says which."""

    title: str
    lead: str
    headings: tuple[str, ...]
    rows: list[list[str]]
    others: list[list[str]]
    summary: str


def paragraphs(found: Results, lang: str) -> list[str]:
    """The texts before the tables."""
    texts = [_looks(found, lang)] if len(found.looks) > 1 else []
    resolved = all(pair.relation != "not resolved" for pair in found.pairs)
    return [*texts, _ALL.to(lang)] if resolved else texts


def tables(found: Results, lang: str) -> list[Table]:
    """The pairs that are not resolved, the differences at other rates, and the sensitivities; none without rows."""
    smallest = found.metric.amount(found.design.smallest, lang)
    stopped = any(cell.sensitivity and cell.sensitivity.stopped for cell in found.cells)
    lead = _SENSITIVITY_LEAD.to(lang).format(metric=found.metric.label("validation").to(lang), smallest=smallest)
    leaders = {standing.batch_size: standing.leader for standing in found.standings}
    left = [pair for pair in found.pairs if pair.relation == "not resolved"]
    led = [pair for pair in left if (leader := leaders[pair.batch_size]) and pair.has(leader)]
    others = list(_unresolved(found, [pair for pair in left if pair not in led], lang))
    made = [
        _table("", _LEAD.to(lang).format(smallest=smallest), _PAIRS, list(_unresolved(found, led, lang)), lang, others),
        _table(_RATES.to(lang), _RATES_LEAD.to(lang), _AT, list(_confirmed(found, lang)), lang),
        _table(
            _SENSITIVITY.to(lang),
            lead + (_STOPPED.to(lang) if stopped else ""),
            _CELLS,
            list(_sensitivities(found, lang)),
            lang,
        ),
    ]
    return [table for table in made if table.rows or table.others]


def resolving(found: Results, lang: str) -> str:
    """What the command of `more_seeds` does; empty if all pairs are resolved."""
    return _COMMAND.to(lang) if any(pair.relation == "not resolved" for pair in found.pairs) else ""


def more_seeds(found: Results) -> str:
    """The command that adds seeds until the comparison is resolved, for at most an hour."""
    plain = re.sub(r" --(until-resolved|minutes \S+)", "", found.command)
    return f"{plain} --until-resolved --minutes 60"


def _looks(found: Results, lang: str) -> str:
    seeds = formatting.listing([str(look.seeds) for look in found.looks], lang)
    alpha, part = (f"{100 * value:.3g} %" for value in (found.design.alpha, found.looks[-1].alpha))
    return _LOOKS.to(lang).format(count=len(found.looks), seeds=seeds, alpha=alpha, part=part)


def _unresolved(found: Results, left: Sequence[Pair], lang: str) -> Iterator[list[str]]:
    for pair in left:
        # Two fractions differ by at most 1: some pairs have too few seeds for any difference.
        known = pair.detectable is not None and not (found.metric.share and pair.detectable > 1)
        finds = found.metric.difference(pair.detectable or 0.0).lstrip("+") if known else "–"
        seeds = pair.difference.n + (pair.more_seeds or 0)
        few = pair.more_seeds is not None and seeds <= MOST_SEEDS
        more = str(pair.more_seeds) if few else _MANY.to(lang).format(most=MOST_SEEDS)
        yield [
            _names(found, pair, lang),
            " ".join(formatting.difference(pair.difference, found.metric, lang)),
            finds,
            more,
        ]


def _confirmed(found: Results, lang: str) -> Iterator[list[str]]:
    for pair in found.pairs:
        for each in pair.at_rates:
            yield [
                _names(found, pair, lang),
                formatting.inline(each.method, lang),
                formatting.rate(each.rate),
                " ".join(formatting.difference(each.difference, found.metric, lang)),
            ]


def _sensitivities(found: Results, lang: str) -> Iterator[list[str]]:
    for cell in found.cells:
        if cell.sensitivity:
            loss = cell.sensitivity.loss
            span = formatting.span(f"{loss.low:.2f}", f"{loss.high:.2f}", lang)
            low, high = cell.good_rates or (None, None)
            rates = (
                formatting.rate(low)
                if low == high
                else formatting.span(formatting.rate(low), formatting.rate(high), lang)
            )
            yield [str(cell.batch_size), formatting.title(cell.method, lang), f"{loss.value:.2f} ({span})", rates]


def _names(found: Results, pair: Pair, lang: str) -> str:
    names = f"{formatting.inline(pair.second, lang)} − {formatting.inline(pair.first, lang)}"
    return f"{names} ({pair.batch_size})" if len(found.design.batch_sizes) > 1 else names


def _table(
    title: str,
    lead: str,
    headings: Sequence[Text],
    rows: list[list[str]],
    lang: str,
    others: Sequence[list[str]] = (),
) -> Table:
    summary = _OTHERS.to(lang).format(count=len(others))
    return Table(title, lead, tuple(text.to(lang) for text in headings), rows, list(others), summary)
