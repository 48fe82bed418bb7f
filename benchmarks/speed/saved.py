"""The result file of a benchmark in cells: which cells a run measures, and what it keeps of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import typer

SAME = ("cpu", "threads", "isa", "torch")
"""Facts of the machine that all rows of a file share."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def matching(cells: Sequence[N], match: str) -> list[N]:
    """The cells whose name has a word that begins with each word of `match`."""
    return [cell for cell in cells if all(f" {word}" in f" {cell.name}" for word in match.split())]


def kept(save: Path, machine: dict[str, Any], chosen: Sequence[Named], *, resume: bool) -> list[dict[str, Any]]:
    """The rows of the file that stay: without `resume` none; else all but the disturbed ones that are chosen.

    Raises:
        BadParameter: the file was measured on another machine.
    """
    if not (resume and save.exists()):
        return []
    before = json.loads(save.read_text())
    if any(before["machine"][fact] != machine[fact] for fact in SAME):
        raise typer.BadParameter(f"{save.name} was measured on {before['machine']}: name another --save")
    again = {cell.name for cell in chosen}
    return [row for row in before["cells"] if row["quiet"] or row["name"] not in again]


def refuse_part(save: Path, folder: Path) -> None:
    """A part of the cells must not replace all those of a published file.

    Raises:
        BadParameter: the file is one of `folder`, and exists.
    """
    if save.exists() and save.resolve().parent == folder.resolve():
        raise typer.BadParameter(f"a part would replace all of {save.name}: name another --save, or --resume")


def store(save: Path, results: dict[str, Any]) -> None:
    """Write the file."""
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps(results, indent=1) + "\n")
