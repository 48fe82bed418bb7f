"""Modules and made-up comparisons that all tests of the study share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import made_up

from normkit.study import report
from normkit.study.comparison import Comparison


@pytest.fixture(scope="session")
def found() -> Comparison:
    return made_up.of_digits()


@pytest.fixture(scope="session")
def pages(found: Comparison) -> dict[str, str]:
    return {lang: report.render(found, lang) for lang in ("en", "zh")}


@pytest.fixture(scope="session")
def regression() -> Comparison:
    return made_up.of_regression()
