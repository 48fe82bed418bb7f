"""Writes what `compare` found: `results.json`, and `index.html` that needs nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

from normkit.study.comparison import Comparison
from normkit.study.report.page import render


def write(comparison: Comparison, folder: Path) -> Path:
    """Write both files into a folder; each takes the place of the old one only when it is whole.

    Returns:
        The path of the page.
    """
    page = folder / "index.html"
    _replace(folder / "results.json", json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n")
    _replace(page, render(comparison))
    return page


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
