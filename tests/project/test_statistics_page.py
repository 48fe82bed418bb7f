"""The pages on statistics show the last run of the simulation, in both languages."""

import json

import pytest
from benchmarks.speed.measure import RESULTS
from benchmarks.training import power


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_shows_the_last_run(lang: str) -> None:
    results = json.loads((RESULTS / "power.json").read_text(encoding="utf-8"))
    page = power.page_of(lang).read_text(encoding="utf-8")
    assert power.shown(page, results, lang) == page


def test_a_large_difference_is_found_the_right_way_round() -> None:
    found = power.studies(power.Case(3, 10, apart=4), 2, confirm=True)
    assert found["found"] == 1
    assert found["studies with a wrong difference"] == 0
