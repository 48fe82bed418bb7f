"""The answer of a study in one sentence, in both languages."""

from __future__ import annotations

from typing import NamedTuple

from normkit.catalog import Text
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Standing
from normkit.study.report.writing import formatting
from normkit.study.task.metric import ERROR


class Clause(NamedTuple):
    """A part of the answer: the text before the name of the leader, the name, and the text after it."""

    before: str
    leader: str = ""
    after: str = ""


def answer(found: Results) -> Text:
    """Which method leads at each batch size, which are behind it, and which cannot be told from it."""
    en, zh = ([start, *map("".join, clauses)] for start, clauses in (parts(found, "en"), parts(found, "zh")))
    return Text(f"{en[0]}{'; '.join(en[1:])}.", f"{zh[0]}{'；'.join(zh[1:])}。")


def parts(found: Results, lang: str) -> tuple[str, list[Clause]]:
    """The start of the answer, and a clause for each batch size."""
    if lang == "zh":
        return f"在“{found.task.zh}”上：", [_chinese(found, standing) for standing in found.standings]
    return f"On {found.task}, ", [_english(found, standing) for standing in found.standings]


def _english(found: Results, standing: Standing) -> Clause:
    where = f"at batch size {standing.batch_size} "
    if standing.leader is None:
        return Clause(where + ("no method trained" if _measured(found, standing) else "nothing has been measured yet"))
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    value = found.metric.value(leader.error.value)
    what = "makes the fewest errors" if found.metric == ERROR else f"has the lowest {found.metric.name}"
    rest = _english_rest(standing, leader.error.n)
    return Clause(where, formatting.inline(standing.leader), f" {what} ({value}){rest}")


def _english_rest(standing: Standing, count: int) -> str:
    behind, equal, unresolved = _groups(standing, "en")
    text = f", {formatting.listing(equal)} being equal to it" if equal else ""
    if not unresolved:
        return text if equal or not behind else f"{text}, and every other method is behind"
    seeds = f"{count} seeds"
    if not behind and not equal:
        return f"{text}, but {seeds} cannot tell any other method from it"
    # The shorter list says as much.
    if behind and not equal and len(behind) < len(unresolved):
        verb = "is" if len(behind) == 1 else "are"
        return f"{text}, only {formatting.listing(behind)} {verb} behind, and {seeds} cannot tell the others from it"
    return f"{text}, but {seeds} cannot tell {formatting.listing(unresolved)} from it"


def _chinese(found: Results, standing: Standing) -> Clause:
    where = f"批量为 {standing.batch_size} 时，"
    if standing.leader is None:
        return Clause(where + ("没有方法训练成功" if _measured(found, standing) else "尚无测量结果"))
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    value = found.metric.value(leader.error.value)
    name = found.metric.name.zh
    # Latin letters are separated from Chinese ones by a space.
    space = " " if name.isascii() else ""
    rest = _chinese_rest(standing, leader.error.n)
    return Clause(where, formatting.title(leader.method, "zh"), f"的{space}{name}{space}最低（{value}）{rest}")


def _chinese_rest(standing: Standing, count: int) -> str:
    behind, equal, unresolved = _groups(standing, "zh")
    text = f"，{formatting.listing(equal, 'zh')}与之相当" if equal else ""
    if not unresolved:
        return text if equal or not behind else f"{text}，其余方法均落后"
    seeds = f"{count} 个种子"
    if not behind and not equal:
        return f"{text}，但 {seeds}不足以将其他任何方法与它区分开"
    if behind and not equal and len(behind) < len(unresolved):
        return f"{text}，只有{formatting.listing(behind, 'zh')}落后，{seeds}不足以将其余方法与它区分开"
    return f"{text}，但 {seeds}不足以将{formatting.listing(unresolved, 'zh')}与它区分开"


def _groups(standing: Standing, lang: str) -> tuple[list[str], list[str], list[str]]:
    behind, equal, unresolved = (
        [formatting.inline(method, lang) for method in group]
        for group in (standing.behind, standing.equal_to, standing.unresolved)
    )
    return behind, equal, unresolved


def _measured(found: Results, standing: Standing) -> bool:
    return any(cell.error for cell in found.cells if cell.batch_size == standing.batch_size)
