"""Writes what `compare` found: `results.json`, and `index.html` that needs nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

from normkit.study.comparison import Comparison
from normkit.study.report.page import render


def write(comparison: Comparison, folder: Path, lang: str = "en") -> Path:
    """Write both files into a folder; each takes the place of the old one only when it is whole.

    Args:
        comparison: what to write.
        folder: where to.
        lang: of the page, "en" or "zh"; `results.json` holds both.

    Returns:
        The path of the page.
    """
    replace_file(folder / "results.json", json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n")
    return write_page(comparison, folder / "index.html", lang)


def write_page(comparison: Comparison, page: Path, lang: str = "en") -> Path:
    """Write the page alone."""
    replace_file(page, render(comparison, lang))
    return page


def replace_file(path: Path, text: str) -> None:
    """Put a text in the place of a file, at once."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
