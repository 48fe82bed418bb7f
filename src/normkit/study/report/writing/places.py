"""The place of a method at its batch size, in words, and the order in which methods are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Place

Shown = Place | Literal["not trained"]

PLACES: Mapping[Shown, Text] = {
    "leads": Text("leads", "领先"),
    "equal": Text("equal", "相当"),
    "not resolved": Text("not resolved", "未能分辨"),
    "behind": Text("behind", "落后"),
    "not trained": Text("did not train", "未训练成功"),
    "not measured": Text("not measured", "未测量"),
}
"""The places of a method at a batch size, in this order when they are sorted."""
TONES: Mapping[Shown, str] = {
    "leads": "good",
    "equal": "good",
    "not resolved": "open",
    "behind": "bad",
    "not trained": "bad",
    "not measured": "open",
}
"""Good, bad or open: the colour of a place."""


def place(found: Results, cell: Cell) -> Shown:
    """The place of a cell; if no method trained at its batch size, there is no order."""
    if cell.error is None:
        return "not measured"
    return found.place(cell) if found.standing(cell.batch_size).leader else "not trained"


def merit(found: Results, cell: Cell) -> float:
    """The key by which cells are sorted, the best first; those without a result come last."""
    if cell.error is None or math.isnan(cell.error.value):
        return math.inf
    return -cell.error.value if found.metric.higher_is_better else cell.error.value


def ordered(found: Results, cells: Iterable[Cell]) -> list[Cell]:
    """Cells, the best first."""
    return sorted(cells, key=lambda cell: merit(found, cell))
