"""results.json: everything comes back from it, and other files are refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from parsed import Page

from normkit.errors import ArgumentError, StateError
from normkit.study.analysis.stats import Interval
from normkit.study.comparison import Comparison
from normkit.study.report import results_file, write
from normkit.study.report.page import page


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


def test_a_file_that_cannot_be_read_is_an_error(found: Comparison, tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"read from the results.json that compare has written, .* No such file|No such"
    ):
        Comparison.load(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        ArgumentError, match=r"is not JSON .*: give the command of that study again with the same --out"
    ):
        Comparison.load(tmp_path)
    with pytest.raises(ArgumentError, match=r"from the data of to_dict, got keys a: use the results.json of compare"):
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


def test_every_field_of_the_file_is_documented(found: Comparison) -> None:
    text = (Path(__file__).parents[3] / "docs" / "en" / "compare" / "compare.md").read_text("utf-8")
    rows = [re.findall(r"^\| (`.*?) \|", part, flags=re.M) for part in text.split("\n## ")]
    tables = [set(re.findall(r"\w+", " ".join(names))) for names in rows]
    data = found.to_dict()
    for part in (data, data["cells"][0], data["cells"][0]["runs"][0], data["evidence"][0]):
        assert set(part) in tables


# Drawing


def test_reading_needs_no_optional_package() -> None:
    assert "pandas" not in Path(results_file.__file__).read_text("utf-8")
