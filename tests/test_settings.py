"""Settings are read in one place, and the page of settings has them all."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import normkit
from normkit import settings
from normkit.settings import SETTINGS

SOURCE = Path(normkit.__file__).parent
ROOT = Path(__file__).parents[1]
NAMES = {setting.name for setting in SETTINGS}
VARIABLE = re.compile(r"\bNORMKIT_[A-Z]+\b")


def named_in(source: str) -> list[str]:
    """The variables that are whole strings of a source: what it could read, not what its texts mention."""
    if not VARIABLE.search(source):
        return []
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and VARIABLE.fullmatch(text)]


def test_no_other_module_reads_a_variable_of_normkit():
    assert named_in('os.environ["NORMKIT_ISA"]  # not "set NORMKIT_ISA to"') == ["NORMKIT_ISA"]
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "settings.py"]
    found = {str(path.relative_to(SOURCE)): named_in(path.read_text("utf-8")) for path in paths}
    assert not {path: names for path, names in found.items() if names}


def test_every_variable_named_anywhere_is_a_setting():
    files = [*SOURCE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("decisions/*.md"), ROOT / "setup.py"]
    named = {name for path in files for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
    read = re.findall(r'getenv\("(\w+)"\)', "".join(path.read_text() for path in ROOT.glob("csrc/**/*.*")))
    assert named == NAMES
    assert read == [settings.ISA.name]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_is_up_to_date(lang: str):
    page = (ROOT / "docs" / lang / "engine" / "settings.md").read_text(encoding="utf-8")
    assert page == settings.markdown(lang), (
        f"python -c 'from normkit import settings; print(settings.markdown(\"{lang}\"), end=str())'"
    )


def test_values_are_read_when_asked(monkeypatch: pytest.MonkeyPatch):
    for value, on, off in (("1", True, ""), ("0", False, "turned off by NORMKIT_TRITON=0"), ("", False, "")):
        monkeypatch.setenv("NORMKIT_TRITON", value)
        assert (settings.TRITON.is_on, settings.TRITON.turned_off) == (on, off)
    monkeypatch.delenv("NORMKIT_TRITON")
    assert (settings.TRITON.value, settings.TRITON.turned_off) == ("", "")
