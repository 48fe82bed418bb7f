"""`compare` from end to end on a small design: the page, results.json, the terminal, and that they agree."""

import doctest
import importlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import normkit
from normkit import catalog, study
from normkit.errors import ArgumentError, StateError
from normkit.study import comparison, terminal, words
from normkit.study.report import figures, page, write
from normkit.study.stats import Interval

VOID = {"meta", "br", "link", "img", "input", "hr"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    """One small study, in two processes as by default."""
    return normkit.compare(
        methods=["BN"],
        batch_sizes=[16, 4],
        seeds=2,
        trials=3,
        steps=60,
        workers=2,
        claims=False,
        out=tmp_path_factory.mktemp("report"),
        progress=False,
    )


class Page(HTMLParser):
    """Checks that what opens closes, and collects the measured cells and the badges of unmeasured claims."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[tuple[str, str, str], str] = {}
        self.unmeasured: dict[str, str] = {}
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.extend([found["id"]] if found.get("id") else [])
        if tag not in VOID:
            self.open.append((tag, found))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.extend([found["id"]] if found.get("id") else [])

    def handle_endtag(self, tag: str) -> None:
        name, _ = self.open.pop()
        assert name == tag, f"<{name}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        around = {key: value for _, attrs in self.open for key, value in attrs.items() if value is not None}
        if "data-key" in around:
            key = (around["data-method"], around["data-batch"], around["data-key"])
            self.cells[key] = self.cells.get(key, "") + data
        if "data-claim" in around:
            self.unmeasured[around["data-claim"]] = self.unmeasured.get(around["data-claim"], "") + data


@pytest.fixture(scope="module")
def html(found: comparison.Comparison) -> str:
    assert found.path is not None
    return found.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(found: comparison.Comparison) -> dict[str, object]:
    assert found.path is not None
    return json.loads((found.path.parent / "results.json").read_text(encoding="utf-8"))


def test_everything_was_run(found: comparison.Comparison) -> None:
    assert found.complete
    assert found.failures == ()
    assert [(c.method, c.batch_size) for c in found.cells] == [
        ("none", 4), ("batch_norm", 4), ("none", 16), ("batch_norm", 16),
    ]  # fmt: skip
    for cell in found.cells:
        assert len(cell.runs) == 2
        assert len(cell.tuning) >= 3 * 2
        assert cell.time_ratio is not None
    assert found.cell("none", 4).time_ratio == Interval(1.0, 1.0, 1.0, 60)


def test_the_page_parses_and_needs_nothing_else(html: str) -> None:
    parsed = Page(html)
    assert len(parsed.ids) == len(set(parsed.ids))
    for outside in (r"https?:", r"//[a-z]", r"@import", r"<script", r"<link", r"\ssrc=", r"url\((?!#)"):
        assert not re.search(outside, html), outside
    assert not re.search(r"href=\"(?!#)", html)


def test_plots_refer_to_their_own_marks(html: str) -> None:
    used = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(Page(html).ids)
    assert len(used) > 10


def test_colours_follow_the_page(html: str) -> None:
    assert "var(--batch-norm)" in html
    plots = html[html.index("</header>") :]
    for colour in (figures.INK, figures.MUTED, figures.LINE, figures.COLOURS["none"]):
        assert colour not in plots
    for variable in figures._VARIABLES.values():
        # Once for light, once for dark.
        assert len(re.findall(rf"^\s+{variable}: #", html, flags=re.M)) == 2, variable


def test_numbers_on_the_page_are_those_of_the_file(html: str, results: dict) -> None:
    shown = Page(html).cells
    assert len(shown) >= 4 * 7
    for cell in results["cells"]:
        at = (cell["method"], str(cell["batch_size"]))
        errors = [run["test_error"] for run in cell["runs"]]
        mean = sum(errors) / len(errors)
        assert shown[*at, "error"] == f"{100 * mean:.1f}\xa0%"
        low, high = max(0.0, cell["error"]["low"]), min(1.0, cell["error"]["high"])
        assert shown[*at, "error-interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
        median, bound = cell["median_steps"]
        assert shown[*at, "steps"] == f"{'≥ ' * bound}{median:.0f}"
        assert shown[*at, "time"] == f"{cell['time_ratio']['value']:.2f}×"
        assert shown[*at, "rate"] == f"{cell['rate']:.2g}"
        assert ("untrained" in [key for *place, key in shown if tuple(place) == at]) == (cell["untrained"] > 0)
    assert results["answer"] in html


def test_the_file_holds_every_run(results: dict, found: comparison.Comparison) -> None:
    assert results == json.loads(json.dumps(found.to_dict()))
    for cell in results["cells"]:
        assert [run["job"]["seed"] for run in cell["runs"]] == [100, 101]
        assert all(len(run["losses"]) == 60 for run in cell["runs"] if run["state"] == "trained")
    assert results["design"]["rates"] == [0.001, 0.03162, 1.0]


def test_what_is_not_measured_says_so(html: str, results: dict) -> None:
    shown = Page(html).unmeasured
    assert results["evidence"] == []
    assert set(shown) == set(catalog.CLAIMS)
    assert all("not measured yet" in text for text in shown.values())


def test_every_claim_is_reached_from_its_method(html: str) -> None:
    assert set(re.findall(r'<a href="#([^"]+)"', html)) == set(catalog.find("BN").claims)
    assert set(catalog.CLAIMS) <= set(Page(html).ids)


def test_an_unfinished_study_is_called_so(found: comparison.Comparison, tmp_path: Path, html: str) -> None:
    assert "was interrupted" not in html
    cut = replace(found, complete=False, cells=tuple(replace(c, runs=(), seconds=()) for c in found.cells))
    cut = replace(cut, standings=tuple(replace(s, leader=None) for s in cut.standings), pairs=())
    text = write(cut, tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "The study was interrupted." in text
    assert "Interrupted: this rests on" in str(cut)
    assert "Interrupted" not in str(found)
    assert "nothing has been measured yet" in text


def test_a_rate_on_the_edge_is_on_the_page(found: comparison.Comparison) -> None:
    cell = found.cells[0]
    lowest = replace(cell, tuning=tuple(run for run in cell.tuning if run.job.rate == 0.001))
    text = page.render(replace(found, cells=(lowest, *found.cells[1:])))
    assert "The best rate was the first or last one tried for" in text
    assert "no norm with 4 images per step (0.001)" in text


def test_the_terminal_says_the_same(found: comparison.Comparison) -> None:
    from rich.console import Console

    console = Console(width=100, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(terminal.table(found))
    printed = console.export_text()
    for row in found.rows():
        line = next(line for line in printed.splitlines() if row[1] in line and row[2] in line)
        assert all(text in line for text in row[2:8])
        assert all(text in str(found) for text in row)
    assert found.answer in str(found)


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    normkit.compare(
        methods=["none"],
        batch_sizes=[4],
        seeds=2,
        trials=3,
        steps=40,
        workers=1,
        claims=False,
        out=tmp_path,
        progress=lambda *now: told.append(now),
    )
    done = [count for count, *_ in told]
    assert done == sorted(done)
    done, total, _ = told[-1]
    # Three rates on two tuning seeds, two seeds behind the result, and the timing; more where the range grew.
    assert done == total >= 6 + 2 + 1
    assert [what for *_, what in told[-1:]] == ["timing"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "find_spec", lambda name: None if name in ("optuna", "jinja2") else object())
    with pytest.raises(
        StateError, match=r'missing: optuna, jinja2. Install them with: pip install "normkit\[compare\]"'
    ):
        normkit.compare()


def test_workers_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="workers must be at least 1, got 0"):
        normkit.compare(workers=0, out=tmp_path)


def test_a_batch_is_no_larger_than_the_data(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match="batch sizes must be at most 600, the number of samples to train on, got 601"
    ):
        normkit.compare(batch_sizes=[2, 601], out=tmp_path)


def test_every_field_of_the_file_is_documented(results: dict) -> None:
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    rows = [re.findall(r"^\| (`.*?) \|", part, flags=re.M) for part in text.split("\n## ")]
    tables = [set(re.findall(r"\w+", " ".join(names))) for names in rows]
    assert set(results) in tables
    assert all(set(cell) in tables for cell in results["cells"])
    assert set(results["cells"][0]["runs"][0]) in tables


@pytest.mark.parametrize(
    "name", ["", ".task", ".design", ".run", ".stats", ".words", ".machine", ".verdict", ".comparison", ".conduct"]
)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"normkit.study{name}")
    outcome = doctest.testmod(module)
    assert outcome.failed == 0


def test_words_of_bounds_and_signs() -> None:
    assert words.steps((400.0, True)) == "≥ 400"
    assert words.error(Interval(0.02, -0.01, 0.05, 3))[1] == "0.0 to 5.0"
    assert words.plus(-0.004) == "0.00"
