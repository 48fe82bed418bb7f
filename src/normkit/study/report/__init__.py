"""Writes the report: `results.json`, and `index.html`, which needs no other file."""

from __future__ import annotations

import json
from pathlib import Path

from normkit.errors import ArgumentError, StateError
from normkit.study.analysis.results import Results
from normkit.study.report import export, results_file
from normkit.study.report.page.page import check, render

__all__ = ["again", "check", "render", "write", "write_page"]


def write(comparison: Results, folder: Path, lang: str = "en") -> Path:
    """Write both files into a folder; each replaces the old one only when it is complete.

    Args:
        comparison: what to write.
        folder: where to.
        lang: of the page, "en" or "zh"; `results.json` holds both.

    Returns:
        The path of the page.

    Raises:
        StateError: they cannot be written, for instance because the disk is full.
    """
    try:
        replace_file(
            folder / "results.json", json.dumps(results_file.to_dict(comparison), indent=1, allow_nan=False) + "\n"
        )
        return write_page(comparison, folder / "index.html", lang)
    except OSError as error:
        raise StateError(
            f"the report needs a folder with room that may be written to, got {str(folder)!r} ({error.strerror}): set "
            "it right, and the same call writes the report from the finished runs, which are kept"
        ) from error


def write_page(comparison: Results, page: Path, lang: str = "en") -> Path:
    """Write the page alone."""
    replace_file(page, render(comparison, lang))
    return page


def again(
    comparison: Results,
    source: Path,
    lang: str = "en",
    page: Path | None = None,
    *,
    parquet: bool = False,
    tensorboard: bool = False,
) -> list[str]:
    """Write the page of a comparison that was read, and other forms of it into the same folder.

    Args:
        comparison: the comparison.
        source: the folder or the file that it was read from.
        lang: of the page.
        page: where to write it; by default index.html next to the results.
        parquet, tensorboard: further forms to write.

    Returns:
        A line for each thing written.

    Raises:
        StateError: a package for one of them is missing; then nothing is written.
    """
    folder = source if source.is_dir() else source.parent
    lines = []
    if parquet:
        lines += [f"Parquet: {path}" for path in export.parquet(comparison, folder)]
    if tensorboard:
        lines.append(f"TensorBoard: tensorboard --logdir {export.tensorboard(comparison, folder)}")
    target = page or folder / "index.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return [f"Report: {write_page(comparison, target, lang)}", *lines]
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written, got {str(target)!r} ({error.strerror}): name another"
        ) from error


def replace_file(path: Path, text: str) -> None:
    """Replace a file by a text, in one step."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        # Half a file would only take up space.
        part.unlink(missing_ok=True)
