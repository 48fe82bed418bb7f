"""The tables: all cells, all pairs, the runs that failed and the runs that did not train."""

from __future__ import annotations

from collections import Counter
from typing import Any

from normkit.study.analysis.cells import Cell
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Pair
from normkit.study.report.writing import formatting
from normkit.study.report.writing.places import PLACES, TONES, place
from normkit.study.report.writing.texts import say
from normkit.study.training.trial import Run


def row(found: Results, cell: Cell, lang: str) -> dict[str, Any]:
    """One method at one batch size; each entry has the text to show and the value to sort by."""
    error, train = (formatting.error(i, found.metric, lang) for i in (cell.error, cell.train_error))
    where = place(found, cell)
    gap, ratio = formatting.signed(cell.gap, lang=lang), formatting.times(cell.time_ratio, lang)
    order = list(PLACES).index(where)
    entries = [
        ("error", error[0], cell.error and cell.error.value, error[1]),
        ("train-error", train[0], cell.train_error and cell.train_error.value, ""),
        ("steps", formatting.steps(cell.median_steps), cell.median_steps and cell.median_steps[0], ""),
        ("gap", gap[0], cell.gap and cell.gap.value, ""),
        (
            "time",
            formatting.milliseconds(cell.seconds),
            sorted(cell.seconds)[len(cell.seconds) // 2] if cell.seconds else None,
            "",
        ),
        ("ratio", ratio[0], cell.time_ratio and cell.time_ratio.value, ratio[1]),
        ("memory", formatting.size(cell.saved_bytes), cell.saved_bytes, ""),
        ("rate", formatting.rate(cell.rate), cell.rate, formatting.options(cell.options)),
        ("untrained", f"{cell.untrained}/{len(cell.runs)}", cell.untrained, ""),
    ]
    return {
        "method": cell.method,
        "title": formatting.title(cell.method, lang),
        "batch_size": cell.batch_size,
        "place": where,
        "order": order,
        "badge": PLACES[where].to(lang),
        "tone": TONES[where],
        "entries": [
            {"key": key, "text": text, "sort": "" if value is None else value, "more": more}
            for key, text, value, more in entries
        ],
    }


def pair(found: Results, given: Pair, lang: str) -> dict[str, Any]:
    """Two methods at a batch size: `second` minus `first` in the metric, and which one is better."""
    turn = -1 if found.metric.higher_is_better else 1
    near, wide = (formatting.turned(interval, turn) for interval in (given.difference, given.wide))
    difference, spread = formatting.difference(near, found.metric, lang)
    better = {"better": given.first, "worse": given.second}.get(given.relation)
    return {
        "id": pair_id(given),
        "batch_size": given.batch_size,
        "compared": f"{formatting.inline(given.second, lang)} − {formatting.inline(given.first, lang)}",
        "difference": difference,
        "value": near.value,
        "spread": spread,
        "wide": formatting.difference(wide, found.metric, lang)[1],
        "p": formatting.probability(given.p_corrected),
        "p_value": given.p_corrected,
        "relation": formatting.inline(better, lang) if better else say(f"relation.{given.relation}", lang),
    }


def pair_id(given: Pair) -> str:
    """The id of the row of a pair."""
    return f"pair-{given.batch_size}-{given.first}-{given.second}".replace(":", "-")


def failure(run: Run, lang: str) -> dict[str, str]:
    """A run that failed, with its message."""
    trial = run.trial
    where = say(
        "failures.item",
        lang,
        name=formatting.title(trial.method.partition(":")[0], lang),
        size=trial.batch_size,
        rate=formatting.rate(trial.rate),
        seed=trial.seed,
    )
    return {"where": where, "message": run.message, "trace": run.trace}


def untrained(found: Results, lang: str) -> list[tuple[str, str]]:
    """The cells with runs that did not train, and the reasons."""
    shown = []
    for cell in found.cells:
        why = Counter(
            "messages.broke" if run.broke else "messages.guess" for run in cell.runs if run.state == "untrained"
        )
        if why:
            count = say("messages.count", lang, count=cell.untrained, runs=len(cell.runs))
            reasons = formatting.listing([say(key, lang) for key in why], lang)
            where = say("messages.where", lang, name=formatting.title(cell.method, lang), size=cell.batch_size)
            shown.append((where, count + say("colon", lang) + reasons))
    return shown


def on_edge(found: Results, lang: str) -> str:
    """The cells in which the best rate was the lowest or highest one tried."""
    named = [
        say("edge.item", lang, name=formatting.inline(c.method, lang), size=c.batch_size, rate=formatting.rate(c.rate))
        for c in found.on_edge
    ]
    return say("edge", lang, names=formatting.listing(named, lang)) if named else ""


def recalibrated(found: Results, lang: str) -> list[str]:
    """The effect of recalibration, for methods with running statistics."""
    return [
        say(
            "recalibrated",
            lang,
            name=formatting.title(c.method, lang),
            size=c.batch_size,
            metric=found.metric.label("test").to(lang),
            before=formatting.error(c.error, found.metric)[0],
            after=formatting.error(c.recalibrated_error, found.metric)[0],
        )
        for c in found.cells
        if c.error is not None and c.recalibrated_error is not None
    ]
