"""Runs the explorer's scripts without a browser, in the V8 of mini-racer: what needs no document."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from py_mini_racer import MiniRacer

FOLDER = Path(__file__).parents[2] / "docs" / "site" / "static" / "explorer"
_SCRIPTS = ("pattern", "plan", "catalog", "texts", "colours", "model", "code")


@cache
def _engine() -> MiniRacer:
    engine = MiniRacer()
    for name in _SCRIPTS:
        engine.eval((FOLDER / f"{name}.js").read_text(encoding="utf-8"))
    return engine


def answers(function: str, questions: list[Any]) -> list[Any]:
    """What a function of JavaScript returns for each question; both go as JSON.

    Args:
        function: source of a function of one argument; `nk` is what the explorer's scripts have defined.
    """
    call = f"JSON.stringify({json.dumps(questions)}.map((nk => {function})(globalThis.normkitExplorer)))"
    return list(json.loads(_engine().eval(call)))
