"""Writes the report: `results.json`, and `index.html`, which needs no other file."""

from __future__ import annotations

import json
from pathlib import Path

from normkit.errors import ArgumentError, StateError
from normkit.study.analysis.results import Results
from normkit.study.report import export, results_file
from normkit.study.report.figures import files
from normkit.study.report.page.page import check, render

__all__ = ["again", "check", "render", "write", "write_figures", "write_page"]


def write(comparison: Results, folder: Path, lang: str = "en") -> Path:
    """Write both files into a folder; each replaces the old one only when it is complete.

    Args:
        comparison: the comparison to write.
        folder: the folder for the files.
        lang: language of the page, "en" or "zh"; `results.json` holds both.

    Returns:
        The path of the page.

    Raises:
        StateError: they cannot be written, for example because the disk is full.
    """
    try:
        replace_file(
            folder / "results.json", json.dumps(results_file.to_dict(comparison), indent=1, allow_nan=False) + "\n"
        )
        return write_page(comparison, folder / "index.html", lang)
    except OSError as error:
        raise StateError(
            f"the report needs a writable folder with free space, got {str(folder)!r} ({error.strerror}): correct "
            "this, and the same call writes the report from the finished runs, which are kept"
        ) from error


def write_page(comparison: Results, page: Path, lang: str = "en") -> Path:
    """Write the page alone."""
    replace_file(page, render(comparison, lang))
    return page


def write_figures(comparison: Results, folder: Path, lang: str = "en") -> list[Path]:
    """Write every figure as SVG and its data as CSV into a folder, which is made if it does not exist.

    Returns:
        The paths of the files, two for each figure.

    Raises:
        ArgumentError: an unknown language, or a folder that cannot be written.
    """
    check(lang)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in files.figures(comparison, lang):
            for suffix, text in (("svg", figure.svg), ("csv", figure.csv)):
                written.append(folder / f"{figure.name}.{suffix}")
                replace_file(written[-1], text)
    except OSError as error:
        raise ArgumentError(
            f"figures need a folder that can be written, got {str(folder)!r} ({error.strerror}): name another"
        ) from error
    return written


def again(
    comparison: Results,
    source: Path,
    lang: str = "en",
    page: Path | None = None,
    *,
    parquet: bool = False,
    tensorboard: bool = False,
    figures: Path | None = None,
) -> list[str]:
    """Write the page of a stored comparison again, and other formats of it into the same folder.

    Args:
        comparison: the comparison.
        source: the folder or the file from which it was read.
        lang: language of the page.
        page: the path of the page; by default index.html next to the results.
        parquet, tensorboard: further formats to write.
        figures: a folder for every figure as SVG and CSV.

    Returns:
        A line for each file or folder written.

    Raises:
        StateError: a package for one of the formats is missing; then nothing is written.
    """
    folder = source if source.is_dir() else source.parent
    lines = []
    if parquet:
        lines += [f"Parquet: {path}" for path in export.parquet(comparison, folder)]
    if tensorboard:
        lines.append(f"TensorBoard: tensorboard --logdir {export.tensorboard(comparison, folder)}")
    if figures is not None:
        lines.append(f"Figures: {len(write_figures(comparison, figures, lang))} files in {figures}")
    target = page or folder / "index.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return [f"Report: {write_page(comparison, target, lang)}", *lines]
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written, got {str(target)!r} ({error.strerror}): name another"
        ) from error


def replace_file(path: Path, text: str) -> None:
    """Replace the content of a file in one step."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        # An incomplete file would only take up space.
        part.unlink(missing_ok=True)
