"""The pages on folding show the last run of the benchmark, in both languages."""

from __future__ import annotations

import json
import re

import pytest
from benchmarks.folded import __main__ as folded
from benchmarks.speed.measure import RESULTS


def last_run() -> dict:
    return json.loads((RESULTS / "folded.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_shows_the_last_run(lang: str):
    page = folded.page_of(lang).read_text(encoding="utf-8")
    assert folded.filled(page, folded.section(last_run(), lang)) == page


def test_no_word_of_the_table_stays_english():
    content = last_run()
    content["cells"][0]["quiet"] = False
    _, table = folded.section(content, "zh").split("：\n\n")
    assert "（受到干扰）" in table
    assert set(re.findall("[A-Za-z]+", table)) == {"GPT", "RMS", "ms", "x"}


def test_only_what_is_between_the_marks_changes():
    first, last = folded.MARKS
    assert folded.filled(f"a\n{first}old\n{last}b\n", "new\n") == f"a\n{first}new\n{last}b\n"
