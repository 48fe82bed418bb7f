"""The answer of a comparison in one sentence, in both languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normkit.catalog import Text
from normkit.study import words
from normkit.study.metric import ERROR
from normkit.study.verdict import Standing

if TYPE_CHECKING:
    from normkit.study.comparison import Comparison


def answer_of(found: Comparison) -> Text:
    """Which method leads at each batch size, who is behind it, and who cannot be told from it."""
    en, zh = ([clause(found, standing) for standing in found.standings] for clause in (_english, _chinese))
    return Text(f"On {found.task}, {'; '.join(en)}.", f"在“{found.task.zh}”上：{'；'.join(zh)}。")


def _english(found: Comparison, standing: Standing) -> str:
    where = f"at batch size {standing.batch_size}"
    if standing.leader is None:
        return f"{where} {'no method trained' if _measured(found, standing) else 'nothing has been measured yet'}"
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    value = found.metric.value(leader.error.value)
    what = "makes the fewest errors" if found.metric == ERROR else f"has the lowest {found.metric.name}"
    text = f"{where} {words.inline(leader.method)} {what} ({value})"
    behind, equal, unresolved = _groups(standing, "en")
    if equal:
        text += f", {words.listing(equal)} being equal to it"
    if not unresolved:
        return text if equal or not behind else f"{text}, and every other method is behind"
    seeds = f"{leader.error.n} seeds"
    if not behind and not equal:
        return f"{text}, but {seeds} cannot tell any other method from it"
    # The shorter list says as much.
    if behind and not equal and len(behind) < len(unresolved):
        verb = "is" if len(behind) == 1 else "are"
        return f"{text}, only {words.listing(behind)} {verb} behind, and {seeds} cannot tell the others from it"
    return f"{text}, but {seeds} cannot tell {words.listing(unresolved)} from it"


def _chinese(found: Comparison, standing: Standing) -> str:
    where = f"批量为 {standing.batch_size} 时，"
    if standing.leader is None:
        return f"{where}{'没有方法训练成功' if _measured(found, standing) else '尚无测量结果'}"
    leader = found.cell(standing.leader, standing.batch_size)
    assert leader.error is not None
    value = found.metric.value(leader.error.value)
    name = found.metric.name.zh
    # Latin letters stand apart from Chinese ones.
    space = " " if name.isascii() else ""
    text = f"{where}{words.title(leader.method, 'zh')}的{space}{name}{space}最低（{value}）"
    behind, equal, unresolved = _groups(standing, "zh")
    if equal:
        text += f"，{words.listing(equal, 'zh')}与之相当"
    if not unresolved:
        return text if equal or not behind else f"{text}，其余方法均落后"
    seeds = f"{leader.error.n} 个种子"
    if not behind and not equal:
        return f"{text}，但 {seeds}不足以将其他任何方法与它区分开"
    if behind and not equal and len(behind) < len(unresolved):
        return f"{text}，只有{words.listing(behind, 'zh')}落后，{seeds}不足以将其余方法与它区分开"
    return f"{text}，但 {seeds}不足以将{words.listing(unresolved, 'zh')}与它区分开"


def _groups(standing: Standing, lang: str) -> tuple[list[str], list[str], list[str]]:
    behind, equal, unresolved = (
        [words.inline(method, lang) for method in group]
        for group in (standing.behind, standing.equal_to, standing.unresolved)
    )
    return behind, equal, unresolved


def _measured(found: Comparison, standing: Standing) -> bool:
    return any(cell.error for cell in found.cells if cell.batch_size == standing.batch_size)
