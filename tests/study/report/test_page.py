"""The page in both languages: complete, readable by all, and equal to the data. Nothing is trained."""

from __future__ import annotations

import math
import re
import string
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import made_up
import numpy as np
import pytest
from parsed import Page

import normkit
from normkit import catalog
from normkit.errors import ArgumentError
from normkit.study import claims, report
from normkit.study.analysis import verdict
from normkit.study.comparison import Comparison
from normkit.study.execution.workload import first_part
from normkit.study.report.figures import panels, plot
from normkit.study.report.page import decision as page_decision
from normkit.study.report.page import page
from normkit.study.report.writing import decision, formatting, texts
from normkit.study.task import variants

LANGS = ("en", "zh")


@pytest.mark.parametrize("lang", LANGS)
def test_the_page_needs_nothing_but_itself(pages: dict[str, str], lang: str) -> None:
    text = pages[lang]
    for outside in (r"https?:", r"\"//", r"@import", r"<link", r"\ssrc=", r"url\((?!#)", r"\bfetch\(", "XMLHttp"):
        assert not re.search(outside, text), outside
    assert len(text.encode()) < 1.5e6


@pytest.mark.parametrize("lang", LANGS)
def test_ids_are_single_and_links_arrive(pages: dict[str, str], lang: str) -> None:
    parsed = Page(pages[lang])
    ids = [str(e["id"]) for e in parsed.elements if e.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(e["href"]) for e in parsed.all("a")]
    assert len(links) > 40
    assert all(link.startswith("#") and link[1:] in ids for link in links)


@pytest.mark.parametrize("lang", LANGS)
def test_the_page_can_be_read_by_all(pages: dict[str, str], lang: str) -> None:
    parsed = Page(pages[lang])
    assert parsed.all("html")[0]["lang"] == {"en": "en", "zh": "zh-Hans"}[lang]
    levels = [int(str(e["tag"])[1]) for e in parsed.elements if re.fullmatch("h[1-6]", str(e["tag"]))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for cell in parsed.all("th"):
        assert cell.get("scope") in ("col", "row")
    for svg in parsed.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    for button in parsed.all("button"):
        assert str(button["text"]).strip() or button.get("aria-label")
    assert parsed.all("a")[0]["href"] == "#answer"
    assert all(e.get("tabindex") == "0" for e in parsed.elements if e.get("role") == "region")


@pytest.mark.parametrize("lang", LANGS)
def test_the_answer_comes_first(pages: dict[str, str], found: Comparison, lang: str) -> None:
    parsed = Page(pages[lang])
    (answer,) = (e for e in parsed.elements if e.get("id") == "answer")
    assert "".join(str(answer["text"]).split()) == "".join(found.answer.to(lang).split())
    order = [
        e.get("id")
        for e in parsed.elements
        if e.get("id") in ("answer", "decision", "methods", "claims", "figures", "origin")
    ]
    assert order == ["answer", "decision", "methods", "claims", "figures", "origin"]


def test_no_english_is_left_on_the_chinese_page(pages: dict[str, str], found: Comparison) -> None:
    """Two English words side by side; names, commands and the messages of others are no prose."""
    given = {"normkit compare", "scikit-learn", *(run.message for run in found.failures)}
    given |= {str(value) for value in found.machine.values()}
    parsed = Page(re.sub(r"<(script|style)>.*?</\1>", "", pages["zh"], flags=re.S))
    shown = [
        str(e[key])
        for e in parsed.elements
        for key in ("aria-label", "title", "data-label", "data-copied")
        if e.get(key)
    ]
    leaves = [e for e in parsed.elements if e["tag"] not in ("code", "pre", "style", "script")]
    coded = [e for e in parsed.elements if e["tag"] in ("code", "pre")]
    for element in leaves:
        inside = {str(e["text"]) for e in coded if e["path"][-1:] == [element["tag"]]}
        text = str(element["text"])
        for part in inside:
            text = text.replace(part, " ")
        if element["tag"] in ("p", "li", "dt", "dd", "th", "td", "h1", "h2", "h3", "h4", "summary", "text", "title",
                              "figcaption", "button", "caption", "small", "a", "span", "b"):  # fmt: skip
            shown.append(text)
    parts = sorted(given | {str(e["text"]) for e in coded}, key=len, reverse=True)
    assert len(shown) > 500
    for text in shown:
        for part in parts:
            text = text.replace(part, " ")
        assert not re.search(r"[A-Za-z]{2,} +[A-Za-z]{2,}", text), text


def test_every_text_exists_in_both_languages() -> None:
    plain = {"PyTorch", "Python", "normkit", "Ray", "95 %"}
    for key, text in texts.TEXTS.items():
        fields = [
            {name for _, name, *_ in string.Formatter().parse(t) if name is not None} for t in (str(text), text.zh)
        ]
        assert fields[0] == fields[1], key
        assert re.search("[\u4e00-\u9fff：]", text.zh) or text.zh in plain, key


def test_every_text_is_used() -> None:
    folder = Path(report.__file__).parent
    files = [p for p in folder.rglob("*") if p.suffix in (".py", ".html") and p.name != "texts.py"]
    code = "".join(p.read_text("utf-8") for p in files)
    made = (
        "alt.",
        "fact.",
        "value.",
        "form.",
        "axis.",
        "finding.",
        "bound.",
        "relation.",
        "messages.",
        "unchanged.",
        "none.",
    )
    unused = [key for key in texts.TEXTS if f'"{key}"' not in code and not key.startswith(made)]
    assert unused == []


def test_numbers_on_the_page_are_those_of_the_data(pages: dict[str, str], found: Comparison) -> None:
    parsed = Page(pages["en"])
    rows = {(e["data-m"], e["data-batch"]): e for e in parsed.all("tr") if e.get("data-batch")}
    assert len(rows) == len(made_up.METHODS) * len(made_up.SIZES)
    for cell in found.cells:
        text = str(rows[cell.method, str(cell.batch_size)]["text"])
        errors = [run.test_error for run in cell.runs]
        assert f"{100 * np.mean(errors):.1f}\xa0%" in text
        assert f"{1000 * np.median(cell.seconds):.2f}"[:4] in text
        assert f"{sum(run.state == 'untrained' for run in cell.runs)}/{made_up.SEEDS}" in text
        assert formatting.rate(cell.rate) in text
    # No run is hidden: as many dots as seeds in the figure of the answer, but for the outlier, which has an arrow.
    first = pages["en"][pages["en"].index('class="head"') : pages["en"].index('id="methods"')]
    dots = re.findall(r'class="dots"[^>]*d="([^"]*)"', first)
    assert sum(path.count("M") for path in dots) == (len(found.cells) - len(made_up.SIZES)) * made_up.SEEDS
    assert first.count('class="cut"') == first.count(texts.say("dots.cut", "en")) == len(made_up.SIZES)
    for size in made_up.SIZES:
        outlier = found.cell("instance_norm", size).error
        assert outlier is not None
        assert f">{formatting.percent(outlier.value)}</text>" in first


def test_what_is_said_leads_to_its_experiments(pages: dict[str, str], found: Comparison) -> None:
    parsed = Page(pages["en"])
    experiments = {str(e["id"]): e for e in parsed.all("details") if e.get("data-claim")}
    assert len(experiments) == len(found.evidence) > 5
    assert len(parsed.all("a", **{"class": "verdict"})) >= 5
    for evidence in found.evidence:
        (shown,) = (e for e in experiments.values() if str(evidence.question) in str(e["text"]))
        for text in (evidence.design, evidence.measure, evidence.rule, formatting.effect(evidence)[0], evidence.repeat):
            assert str(text) in str(shown["text"])
        assert evidence.finding in str(shown["text"])
        for variant in evidence.variants:
            assert str(variant.label) in str(shown["text"])
    assert all(f'id="{claim}"' in pages["en"] for claim in catalog.CLAIMS)


def test_what_is_said_is_in_the_catalog() -> None:
    linked = [each for row in catalog.METHODS for each in (*row.strengths, *row.weaknesses) if each.claim]
    assert {each.claim for each in linked} == {*catalog.CLAIMS} - {"P-1", "P-2", "QK-1"}
    for each in linked:
        names = [experiment.name for experiment in claims.SUITE if experiment.claim == each.claim]
        assert any(name.startswith(each.experiments) for name in names), (each.claim, each.experiments)


def test_texts_of_others_cannot_break_the_page(found: Comparison) -> None:
    name = catalog.Text("<b>x</b> & y", "<b>x</b> & y")
    text = page.render(replace(found, task=name))
    Page(text)
    assert "<b>x</b>" not in text
    assert "MemoryError: &lt;none&gt; left" in text
    assert "Traceback: a &lt; b" in text


def test_an_unfinished_study_is_called_so(found: Comparison) -> None:
    cut = replace(found, complete=False, cells=tuple(replace(c, runs=(), seconds=(), tuning=()) for c in found.cells))
    cut = replace(cut, standings=tuple(replace(s, leader=None) for s in cut.standings), pairs=(), evidence=())
    for lang in LANGS:
        text = page.render(cut, lang)
        Page(text)
        assert texts.say("incomplete.text", lang) in text
        assert texts.say("nothing", lang) in text
        assert texts.say("incomplete.text", lang) not in page.render(found, lang)
    assert str(cut).count("Interrupted: this shows the finished runs") == 1


@pytest.mark.parametrize("lang", LANGS)
def test_a_report_without_results_begins_with_the_reason(found: Comparison, lang: str) -> None:
    cells = tuple(replace(cell, runs=(), seconds=()) for cell in found.cells)
    empty = replace(found, cells=cells, standings=tuple(verdict.Standing(s, None) for s in made_up.SIZES), pairs=())
    text = page.render(replace(empty, evidence=()), lang)
    parsed = Page(text)
    (reason,) = (e for e in parsed.elements if e.get("id") == "reason")
    assert "MemoryError: <none> left" in str(reason["text"])
    assert text.index('id="reason"') < text.index('id="answer"')
    assert not parsed.all("section", id="decision")
    assert f'<p class="notice">{texts.say("nothing", lang)}' not in text[: text.index('id="methods"')]
    assert "MemoryError" in empty.answer.to(lang)
    assert "yet" not in empty.answer.split(".")[0]
    assert 'id="reason"' not in page.render(found, lang)


@pytest.mark.parametrize("lang", LANGS)
def test_a_page_before_the_claims_are_measured_says_how_many(found: Comparison, lang: str) -> None:
    early = replace(found, complete=False, awaited=5)
    text = page.render(early, lang)
    done = len(found.evidence)
    assert texts.say("awaited", lang, done=done, all=done + 5) in text
    assert texts.say("incomplete.text", lang) not in text


@pytest.mark.parametrize("lang", LANGS)
def test_a_page_from_a_third_of_the_seeds_says_so(found: Comparison, lang: str) -> None:
    text = page.render(replace(found, complete=False, awaited=5, preliminary=True), lang)
    seeds = found.design.seeds
    assert texts.say("preliminary", lang, done=first_part(seeds), all=seeds) in text
    assert texts.say("awaited.text", lang) not in text


def test_a_method_of_which_no_run_trained_has_no_place(found: Comparison) -> None:
    broken = tuple(replace(c, runs=tuple(replace(r, state="untrained") for r in c.runs)) for c in found.cells)
    lost = replace(found, cells=broken, standings=tuple(verdict.Standing(s, None) for s in made_up.SIZES), pairs=())
    parsed = Page(page.render(lost))
    results = [str(e["text"]) for e in parsed.all("div", **{"class": "result"})]
    assert all("did not train" in text and "not measured" not in text for text in results)
    assert all("did not train" in row for row in lost.rows())
    assert lost.answer.startswith("No method trained at batch sizes 2 and 32.")


def test_the_decision_names_every_method_and_its_evidence(found: Comparison) -> None:
    parsed = Page(page.render(found))
    ids = {str(e["id"]): e for e in parsed.elements if e.get("id")}
    for standing, made in zip(found.standings, decision.decisions(found), strict=True):
        assert {c.method for c in made.take} == set(standing.front)
        assert {c.method for c in made.avoid} == set(standing.behind)
        assert made.take[0].method == standing.leader
        for choice in made.avoid:
            # What is to be avoided is worse than some method by the test, and that comparison is shown.
            assert choice.pair is not None
            assert choice.pair.p_corrected < found.design.alpha
            other = {choice.pair.first, choice.pair.second} - {choice.method}
            assert verdict.relations(choice.method, standing.batch_size, found.pairs)[other.pop()] == "worse"
            assert formatting.probability(choice.pair.p_corrected) in decision.why(found, made, choice, "en")
            row = ids[f"pair-{standing.batch_size}-{choice.pair.first}-{choice.pair.second}"]
            assert formatting.inline(choice.method) in str(row["text"])
    section = next(e for e in parsed.all("section", id="decision"))
    assert all(formatting.title(m) in str(section["text"]) for m in made_up.METHODS)


def test_what_experiments_found_better_has_the_lower_values(found: Comparison) -> None:
    shown = page_decision.elsewhere(found, "en")
    assert shown
    for row in shown:
        e = next(e for e in found.evidence if str(e.question) == row["question"])
        assert e.finding == "supported"
        means = {str(v.label): np.mean(v.values) for v in e.variants}
        assert means[row["better"]] < means[row["worse"]]
    # What was not resolved recommends nothing.
    doubtful = replace(found, evidence=tuple(replace(e, finding="not resolved") for e in found.evidence))
    assert page_decision.elsewhere(doubtful, "en") == []


def test_a_metric_of_which_more_is_better(regression: Comparison) -> None:
    """The same values with the opposite direction: the order, the words and the band are turned."""
    metric = replace(regression.metric, higher_is_better=True)
    pairs = tuple(
        replace(
            p,
            difference=formatting.turned(p.difference, -1),
            wide=formatting.turned(p.wide, -1),
            relation={"better": "worse", "worse": "better"}.get(p.relation, p.relation),
        )
        for p in regression.pairs
    )
    most = max(regression.cells, key=lambda c: c.error.value if c.error else 0).method
    standing = verdict.Standing(4, most, behind=tuple(c.method for c in regression.cells if c.method != most))
    turned = replace(regression, metric=metric, pairs=pairs, standings=(standing,))
    assert most == "none"
    assert "no norm has the highest mean squared" in turned.answer
    assert "mean squared 最高" in turned.answer.zh
    assert turned.rows()[0][1] == "No norm"
    assert turned.rows()[-1][1] == formatting.title(min(regression.cells, key=lambda c: c.error.value).method)  # type: ignore[union-attr]
    (made,) = decision.decisions(turned)
    # The others are below it: their differences are negative in the metric.
    assert all("−" in decision.why(turned, made, choice, "en") for choice in made.avoid)
    assert all("+" in decision.why(regression, d, c, "en") for d in decision.decisions(regression) for c in d.avoid)
    low, high = panels.bounds(turned, 4, 0.04)
    best = turned.cell("none", 4).error
    assert best is not None
    assert panels.zone(turned, 4, low, high) == (max(low, best.value - 0.5), best.value)
    Page(page.render(turned, "zh"))


def test_the_page_exists_in_two_languages(found: Comparison) -> None:
    with pytest.raises(ArgumentError, match="the page exists in en and zh, got 'fr': use one of these"):
        page.render(found, "fr")
    with pytest.raises(ArgumentError, match="the page exists in en and zh, got 'fr'"):
        normkit.compare(lang="fr")


def test_every_method_has_its_place_on_the_page(regression: Comparison) -> None:
    """Methods that the built-in task does not have, for a model of a user."""
    (first, *_) = regression.cells
    assert set(variants.KNOWN) <= set(plot.MARKERS)
    known = {method.name for method in catalog.METHODS}
    others = ["unchanged", *(name for name in plot.MARKERS if name in known)]
    cells = (first, *(replace(first, method=name) for name in others))
    standing = replace(regression.standings[0], leader="unchanged", behind=tuple(others[1:]), unresolved=("none",))
    plan = replace(regression.design, methods=("none", *others))
    every = replace(regression, cells=cells, design=plan, standings=(standing,), pairs=())
    for lang in LANGS:
        parsed = Page(page.render(every, lang))
        assert {str(e["data-m"]) for e in parsed.all("tr") if e.get("data-m")} == {"none", *others}
    assert "the model as it is has the lowest mean squared" in every.answer


# Colours


def test_a_metric_that_is_no_share(regression: Comparison) -> None:
    lowest = min((c for c in regression.cells), key=lambda c: c.error.value if c.error else math.inf)
    mean = np.mean([run.test_error for run in lowest.runs])
    assert regression.answer.startswith(
        "Use batch norm or layer norm at batch size 4. On my curve at batch size 4, batch norm has the lowest mean "
        f"squared ({mean:.2f})"
    )
    assert "errors" not in regression.answer
    assert f"批归一化的 mean squared 最低（{mean:.2f}）" in regression.answer.zh
    assert dict(regression.rules)["The answer"].count("±0.5") == 1
    for lang in LANGS:
        text = page.render(regression, lang)
        parsed = Page(text)
        row = next(e for e in parsed.all("tr") if e.get("data-batch") and e["data-m"] == "batch_norm")
        assert f"{mean:.2f}" in str(row["text"])
        assert "%" not in str(row["text"])
        assert "momentum=0.5" in str(row["text"])
        # An interval of something above 1 is not cut at 1.
        assert lowest.error is not None
        assert formatting.error(lowest.error, regression.metric, lang)[1] in str(row["text"])
        figure = text[text.index('class="head"') : text.index('id="methods"')]
        assert "%</text>" not in figure
        assert "fewest" not in text
