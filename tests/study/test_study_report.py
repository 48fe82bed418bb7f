"""The report: the page in both languages, reading results back, other programs' forms. Nothing is trained."""

from __future__ import annotations

import errno
import importlib
import json
import math
import re
import string
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import normkit
from normkit import catalog, cli
from normkit.errors import ArgumentError, StateError
from normkit.study import arms, claims, design, export, memory, metric, reading, train, words
from normkit.study.comparison import Comparison
from normkit.study.report import again, curves, page, plot, said, texts, write
from normkit.study.stats import Interval

VOID = {"meta", "br", "link", "img", "input", "hr"}
LANGS = ("en", "zh")


class Page(HTMLParser):
    """The elements of a page in order, with the text inside each; fails where what opens does not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict[str, object]] = []
        self.elements: list[dict[str, object]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: dict[str, object] = {"tag": tag, "text": "", "path": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "text": "", "path": [e["tag"] for e in self.open], **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, object]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag and all(e.get(name) == value for name, value in attributes.items())
        ]


@pytest.fixture(scope="module")
def found() -> Comparison:
    return made_up.of_digits()


@pytest.fixture(scope="module")
def pages(found: Comparison) -> dict[str, str]:
    return {lang: page.render(found, lang) for lang in LANGS}


@pytest.fixture(scope="module")
def regression() -> Comparison:
    return made_up.of_regression()


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
    assert str(answer["text"]).replace(";at", "; at") == found.answer.to(lang)
    order = [
        e.get("id") for e in parsed.elements if e.get("id") in ("answer", "methods", "claims", "figures", "origin")
    ]
    assert order == ["answer", "methods", "claims", "figures", "origin"]


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
    for element in leaves:
        inside = {
            str(e["text"])
            for e in parsed.elements
            if e["path"][-1:] == [element["tag"]] and e["tag"] in ("code", "pre")
        }
        text = str(element["text"])
        for part in inside:
            text = text.replace(part, " ")
        if element["tag"] in ("p", "li", "dt", "dd", "th", "td", "h1", "h2", "h3", "h4", "summary", "text", "title",
                              "figcaption", "button", "caption", "small", "a", "span", "b"):  # fmt: skip
            shown.append(text)
    code = {str(e["text"]) for tag in ("code", "pre") for e in parsed.all(tag)}
    assert len(shown) > 500
    for text in shown:
        for part in sorted(given | code, key=len, reverse=True):
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
    folder = Path(texts.__file__).parent
    code = "".join(
        p.read_text("utf-8") for p in folder.iterdir() if p.suffix in (".py", ".html") and p.name != "texts.py"
    )
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
        assert words.rate(cell.rate) in text
    # No run is hidden: as many dots as seeds in the figure of the answer.
    first = pages["en"][pages["en"].index('class="head"') : pages["en"].index('id="methods"')]
    dots = re.findall(r'class="dots"[^>]*d="([^"]*)"', first)
    assert sum(path.count("M") for path in dots) == len(found.cells) * made_up.SEEDS


def test_what_is_said_leads_to_its_experiments(pages: dict[str, str], found: Comparison) -> None:
    parsed = Page(pages["en"])
    experiments = {str(e["id"]): e for e in parsed.all("details") if e.get("data-claim")}
    assert len(experiments) == len(found.evidence) > 5
    assert len(parsed.all("a", **{"class": "verdict"})) >= 5
    for evidence in found.evidence:
        (shown,) = (e for e in experiments.values() if str(evidence.question) in str(e["text"]))
        for text in (evidence.design, evidence.measure, evidence.rule, words.effect(evidence)[0], evidence.repeat):
            assert str(text) in str(shown["text"])
        assert evidence.finding in str(shown["text"])
        for arm in evidence.arms:
            assert str(arm.label) in str(shown["text"])
    assert all(f'id="{claim}"' in pages["en"] for claim in catalog.CLAIMS)


def test_what_is_said_is_in_the_catalog() -> None:
    for (method, text), (claim, start) in said.BEHIND.items():
        known = catalog.find(method)
        assert text in (*known.strengths, *known.weaknesses)
        assert claim in known.claims
        assert any(e.claim == claim and e.name.startswith(start) for e in claims.SUITE), (claim, start)


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
    assert str(cut).count("Interrupted: this rests on") == 1


def test_the_page_exists_in_two_languages(found: Comparison) -> None:
    with pytest.raises(ArgumentError, match="the page exists in en and zh, got 'fr': use one of these"):
        page.render(found, "fr")
    with pytest.raises(ArgumentError, match="the page exists in en and zh, got 'fr'"):
        normkit.compare(lang="fr")


def test_every_method_has_its_place_on_the_page(regression: Comparison) -> None:
    """Methods that the embedded task is not built under, for a model of the user's."""
    (first, *_) = regression.cells
    assert set(arms.KNOWN) <= set(plot.MARKERS)
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


def colours(css: str) -> dict[str, dict[str, str]]:
    """The variables of each theme."""
    found = re.findall(r":root([^{,]*)\{([^}]*--paper[^}]*)\}", css.partition("@media print")[0])
    return {theme.strip(): dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body)) for theme, body in found}


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_every_colour_can_be_seen_in_both_themes() -> None:
    css = (Path(texts.__file__).parent / "style.css").read_text("utf-8")
    themes = colours(css)
    assert len(themes) == 3
    assert contrast(themes[""]["paper"], "#ffffff") < 1.1
    # Chosen by the system or by the button, the dark theme is the same.
    assert themes[':not([data-theme="light"])'] == themes['[data-theme="dark"]']
    for theme in themes.values():
        assert set(theme) == set(themes[""])
        for text, grounds in {
            "ink": ("paper", "card", "wash"),
            "muted": ("paper", "card", "wash"),
            "link": ("paper", "card", "wash"),
            "good": ("good-wash", "paper", "card"),
            "bad": ("bad-wash", "paper", "card"),
            "open": ("open-wash", "paper", "card"),
        }.items():
            for ground in grounds:
                # AA for text.
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["ink"], theme["bad-wash"]) >= 4.5
        for method in plot.MARKERS:
            for ground in ("paper", "card"):
                # AA for what is no text.
                assert contrast(theme[method.replace("_", "-")], theme[ground]) >= 3, method


# Reading back


def test_results_come_back_whole(found: Comparison, regression: Comparison, tmp_path: Path) -> None:
    for number, each in enumerate((found, regression)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(each, folder)
        data = json.loads((folder / "results.json").read_text("utf-8"))
        assert json.loads(json.dumps(each.to_dict(), allow_nan=False)) == data
        for source in (folder, folder / "results.json"):
            back = Comparison.load(source)
            assert json.loads(json.dumps(back.to_dict())) == data
            assert back.design == each.design
            assert back.cells == each.cells
            assert back.answer.zh == each.answer.zh
            assert page.render(back, "zh") == page.render(each, "zh")


def test_what_is_not_finite_comes_back(found: Comparison) -> None:
    wide = Interval(1.0, -math.inf, math.inf, 3)
    first = replace(found.evidence[0], wide=wide, p_corrected=None)
    cut = replace(found, evidence=(first,))
    data = json.loads(json.dumps(cut.to_dict(), allow_nan=False))
    assert Comparison.from_dict(data).evidence[0].wide == wide
    assert Comparison.from_dict(data).evidence[0].p_corrected is None
    Page(page.render(Comparison.from_dict(data)))


def test_what_cannot_be_read_is_said(found: Comparison, tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"read from the results.json that compare has written, .* No such file|No such"
    ):
        Comparison.load(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        ArgumentError, match=r"is not JSON .*: give the command of that study again with the same --out"
    ):
        Comparison.load(tmp_path)
    with pytest.raises(
        ArgumentError, match=r"from what its to_dict gives, got keys a: use the results.json of compare"
    ):
        Comparison.from_dict({"a": 1})
    data = found.to_dict()
    for other, said_ in ((999, "got 999"), (None, "got none, of an older version")):
        changed = {key: value for key, value in data.items() if key != "format"} | ({"format": other} if other else {})
        with pytest.raises(
            StateError, match=rf"must have format \d+, .* {said_}: give the command of that study again"
        ):
            Comparison.from_dict(changed)
    with pytest.raises(ArgumentError, match=r"a part of these is missing .*KeyError: 'design'"):
        Comparison.from_dict({key: value for key, value in data.items() if key != "design"})


# Another metric


def test_a_metric_that_is_no_share(regression: Comparison) -> None:
    lowest = min((c for c in regression.cells), key=lambda c: c.error.value if c.error else math.inf)
    mean = np.mean([run.test_error for run in lowest.runs])
    assert regression.answer.startswith(
        f"On my curve, at batch size 4 batch norm has the lowest mean squared ({mean:.2f})"
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
        assert words.error(lowest.error, regression.metric, lang)[1] in str(row["text"])
        figure = text[text.index('class="head"') : text.index('id="methods"')]
        assert "%</text>" not in figure
        assert "fewest" not in text


def test_the_name_of_a_metric() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))

    def reported(targets: torch.Tensor = y, **given: object) -> metric.Metric:
        return made_up.Task(lambda: nn.Linear(3, 2), (x, targets), (x, targets), **given).reported  # type: ignore[arg-type]

    assert reported() == metric.ERROR
    assert reported(y.double(), loss=made_up.mean_squared) == metric.LOSS
    assert reported(metric=lambda a, b: a.mean()).name == "metric"
    assert reported(metric=made_up.mean_squared) == metric.Metric(catalog.Text("mean squared", "mean squared"), False)
    given = reported(metric=made_up.mean_squared, metric_name="1 - dice", share=True)
    assert (given.name, given.value(0.25)) == ("1 - dice", "25.0\xa0%")
    assert given.label("test").to("zh") == "测试 1 - dice"


# Memory


def test_memory_counts_each_storage_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x @ self.weight).exp()
            return y * y.view(-1, 5)

    x = torch.ones(8, 5)
    # x for the weight's gradient, y for exp and for both factors; the weight is a parameter. Four bytes a number.
    assert memory.saved_bytes(Net(), lambda out, _: out.sum(), x, None) == 4 * (8 * 5 + 8 * 5)


def test_memory_of_a_comparison(found: Comparison) -> None:
    small, large = found.cell("none", 2), found.cell("none", 32)
    assert small.saved_bytes
    assert large.saved_bytes
    # Activations grow with the batch; what the convolution keeps besides is small.
    assert large.saved_bytes / small.saved_bytes == pytest.approx(16, rel=0.1)
    assert found.cell("batch_norm", 32).saved_bytes > 1.5 * large.saved_bytes  # type: ignore[operator]


def test_memory_of_a_model_that_fails_is_none() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))
    task = made_up.Task(lambda: nn.Linear(4, 2), (x, y), (x, y))
    assert train.weigh_step(task, design.design(("BN",), (4,), 2, 3, 40, 0), "none", 4) is None


def test_memory_follows_the_precision() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))
    task = made_up.Task(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), (x, y), (x, y))
    plan = design.design(("BN",), (4,), 2, 3, 40, 0)
    single, double = (train.weigh_step(task, replace(plan, dtype=dtype), "none", 4) for dtype in ("float32", "float64"))
    # Only the targets, eight bytes each, and the sum of weights of the loss are no larger.
    assert single is not None
    assert double is not None
    assert 1.6 * single < double < 2 * single


# Other forms


def test_data_frames(found: Comparison) -> None:
    pytest.importorskip("pandas")
    cells = found.to_pandas()
    assert len(cells) == len(found.cells)
    row = cells[(cells.method == "batch_norm") & (cells.batch_size == 32)].iloc[0]
    assert row.error == found.cell("batch_norm", 32).error.value  # type: ignore[union-attr]
    runs = found.to_pandas(level="runs")
    assert len(runs) == sum(len(c.tuning) + len(c.runs) for c in found.cells)
    again_ = runs[(runs.kind == "measure") & (runs.method == "batch_norm") & (runs.batch_size == 32)].test_error.mean()
    assert again_ == pytest.approx(row.error)
    assert list(found.to_pandas("evidence").finding) == [e.finding for e in found.evidence]
    assert len(found.to_pandas("pairs")) == len(found.pairs)
    with pytest.raises(
        ArgumentError, match="level must be one of cells, runs, pairs, evidence, got 'run': did you mean"
    ):
        found.to_pandas("run")


def test_parquet_comes_back(found: Comparison, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    paths = export.parquet(found, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.parquet", "runs.parquet"]
    runs, expected = pandas.read_parquet(paths[0]), found.to_pandas("runs")
    assert list(runs.columns) == list(expected.columns)
    runs["losses"] = runs["losses"].map(list)
    pandas.testing.assert_frame_equal(runs, expected, check_dtype=False)


def test_tensorboard_holds_the_curves(found: Comparison, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = replace(found, cells=(found.cell("batch_norm", 2),))
    for _ in range(2):
        logs = export.tensorboard(one, tmp_path)
    run = one.cells[0].runs[0]
    events = accumulator.EventAccumulator(str(logs / "batch-2" / "batch_norm" / f"seed-{run.job.seed}"))
    events.Reload()
    values = [e.value for e in events.Scalars("training loss")]
    # Stored in single precision; written twice, they stand there once.
    assert values == pytest.approx(run.losses, rel=1e-6)
    assert events.Scalars("result/test_error")[0].value == pytest.approx(run.test_error, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "call"),
    [("pandas", lambda c, _: c.to_pandas()), ("pyarrow", export.parquet), ("tensorboard", export.tensorboard)],
)
def test_a_missing_package_is_named(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, call
) -> None:
    def missing(package: str) -> object:
        if package == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.import_module(package)

    monkeypatch.setattr(export, "import_module", missing)
    with pytest.raises(StateError, match=rf'not installed \({name}\): pip install "normkit\[export\]"'):
        call(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lang", LANGS)
def test_the_notebook_shows_the_table(found: Comparison, lang: str) -> None:
    from normkit.study.report.notebook import render

    text = render(found, lang)
    parsed = Page(text)
    assert "<script" not in text
    assert [str(e["text"]) for e in parsed.all("th")] == list(found.headings(lang))
    cells = [str(e["text"]) for e in parsed.all("td")]
    assert cells == [text for row in found.rows(lang) for text in row]
    assert found.answer.to(lang) in str(parsed.elements[0]["text"])
    assert found._repr_html_() == render(found)


def test_the_terminal_shows_the_table(found: Comparison) -> None:
    from rich.console import Console

    console = Console(width=130, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(found)
    printed = console.export_text()
    for row in found.rows():
        assert any(all(text in line for text in row[1:]) for line in printed.splitlines())


# The command


def test_the_report_command_writes_the_page_again(found: Comparison, tmp_path: Path, pages: dict[str, str]) -> None:
    write(found, tmp_path)
    (tmp_path / "index.html").unlink()
    before = (tmp_path / "results.json").read_bytes()
    runner = CliRunner()
    result = runner.invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index.html").read_text("utf-8") == pages["en"]
    other = tmp_path / "new" / "zh.html"
    result = runner.invoke(cli.app, ["report", str(tmp_path / "results.json"), "--lang", "zh", "--out", str(other)])
    assert result.exit_code == 0, result.output
    assert other.read_text("utf-8") == pages["zh"]
    assert (tmp_path / "results.json").read_bytes() == before
    result = runner.invoke(cli.app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "give the folder that was its --out" in result.output


def test_a_page_that_cannot_be_written_is_said(found: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"out must be a file that can be written, got .*: name another"):
        again(found, tmp_path, page=tmp_path / "file" / "index.html")


def test_every_field_of_the_file_is_documented(found: Comparison) -> None:
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text("utf-8")
    rows = [re.findall(r"^\| (`.*?) \|", part, flags=re.M) for part in text.split("\n## ")]
    tables = [set(re.findall(r"\w+", " ".join(names))) for names in rows]
    data = found.to_dict()
    for part in (data, data["cells"][0], data["cells"][0]["runs"][0], data["evidence"][0]):
        assert set(part) in tables


# Drawing


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_lie_inside_their_scale(one: float, other: float, log: bool) -> None:
    low, high = plot.around([one, other], log=log)
    assert low < min(one, other)
    assert high > max(one, other)
    scale = plot.Scale(low, high, 0, 100, log)
    ticks = scale.ticks(5)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 11
    # A hair beyond an end is allowed, so that a round end has its tick.
    assert all(-0.5 <= scale(tick) <= 100.5 for tick in ticks)


@given(st.floats(0.01, 1), st.floats(1.7, 1e4))
def test_a_log_scale_has_ticks(low: float, ratio: float) -> None:
    assert len(plot.Scale(low, low * ratio, 0, 1, log=True).ticks(5)) >= 1


def test_a_curve_is_the_geometric_mean_of_smoothed_losses() -> None:
    losses = np.random.default_rng(0).uniform(0.1, 3, (5, 40))
    curve = curves.mean_curve(losses.tolist(), 10)
    smoothed = np.stack([np.convolve(run, np.ones(10) / 10, "valid") for run in losses])
    assert curve.steps == list(range(10, 41))
    # Sums of ten numbers in another order, in double precision.
    np.testing.assert_allclose(curve.value, np.exp(np.log(smoothed).mean(0)), rtol=1e-12)
    from scipy import stats

    low, high = stats.t.interval(0.95, 4, np.log(smoothed).mean(0), stats.sem(np.log(smoothed), axis=0))
    np.testing.assert_allclose(curve.low, np.exp(low), rtol=1e-9)
    np.testing.assert_allclose(curve.high, np.exp(high), rtol=1e-9)


def test_a_curve_goes_as_far_as_two_runs_do() -> None:
    curve = curves.mean_curve([[1.0] * 50, [2.0] * 30, [3.0] * 10], 5)
    assert curve.steps[-1] == 30
    assert curve.value[-1] == pytest.approx(math.sqrt(2))
    assert curves.mean_curve([], 5).steps == []
    assert min(curves.mean_curve([[-1.0, 2.0]] * 2, 1).value) == -1.0


@pytest.mark.parametrize("name", ["metric", "memory", "words", "report.texts", "report.said", "report.curves"])
def test_examples(name: str) -> None:
    import doctest

    outcome = doctest.testmod(importlib.import_module(f"normkit.study.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_reading_needs_no_optional_package() -> None:
    assert "pandas" not in Path(reading.__file__).read_text("utf-8")


def test_a_report_without_room_says_so_and_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("the old one", encoding="utf-8")

    def fill(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[:10].encode(encoding))
        if "html" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return path.write_bytes(text.encode(encoding))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fill)
        with pytest.raises(StateError, match=r"needs a folder with room .*No space left.*: set it right, and the same"):
            write(made_up.of_digits(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "index.html"}
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "the old one"
