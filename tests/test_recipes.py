"""The recipes of CONTRIBUTING.md name files that exist and hold the example that the recipe points at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \| [^|]+ \| `([^`]+)` \|$", re.MULTILINE)
RECIPES: dict[str, str] = dict(re.findall(r"^## (Add [^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
STEPS = [(recipe, file, example) for recipe, body in RECIPES.items() for file, example in ROW.findall(body)]


def test_there_are_the_four_recipes():
    assert list(RECIPES) == ["Add a method", "Add a claim", "Add an audit rule", "Add an environment variable"]
    for recipe, body in RECIPES.items():
        # Every line of a table is a step, but for its head.
        lines = [line for line in body.splitlines() if line.startswith("|")]
        assert len(lines) - 2 * body.count("|---|---|---|") == sum(step[0] == recipe for step in STEPS) > 3


@pytest.mark.parametrize(("recipe", "file", "example"), STEPS)
def test_a_step_names_a_file_that_has_its_example(recipe: str, file: str, example: str):
    assert example in (ROOT / file).read_text(encoding="utf-8"), f"{recipe}: {file} does not mention {example}"


def test_a_method_takes_at_most_eight_files():
    first = RECIPES["Add a method"].split("Only some methods need more", maxsplit=1)[0]
    assert len(ROW.findall(first)) <= 8
