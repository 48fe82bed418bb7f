"""All measurements and conclusions of a study, as data. The report writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normkit import catalog
from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Evidence
from normkit.study.analysis.verdict import Look, Pair, Place, Standing
from normkit.study.task.metric import Metric
from normkit.study.training.design import Design
from normkit.study.training.trial import Run


@dataclass(frozen=True)
class Results:
    """The results of `compare`.

    Attributes:
        design, rules: the experiment, as data and as text.
        task: name of the task.
        metric: the metric of its results.
        cells: the measurements, one cell for each method and batch size.
        pairs, standings: the conclusions from them, by the rules.
        looks: the reports so far with these seeds or fewer, this one included; together they spend `alpha`.
        evidence: the results of the experiments on claims, in the order of the catalog; none for a user's task.
        failures: runs that failed, with their messages.
        complete: False if the study was interrupted; then everything is computed from the finished runs.
        machine: processor, versions, kernels.
        command: repeats the study.
        seconds: wall time of this call.
        trained: number of finished training runs, those of the experiments included.
        awaited: number of experiments that this call has still to measure; the report is written before that too.
        preliminary: True while only a third of the seeds are measured and no difference is confirmed.
        path: the page, once it is written.
    """

    design: Design
    rules: tuple[tuple[Text, Text], ...]
    task: Text
    metric: Metric
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    standings: tuple[Standing, ...]
    evidence: tuple[Evidence, ...]
    failures: tuple[Run, ...]
    complete: bool
    machine: Mapping[str, Any]
    command: str
    seconds: float = 0.0
    trained: int = 0
    awaited: int = 0
    preliminary: bool = False
    path: Path | None = None
    looks: tuple[Look, ...] = ()

    def cell(self, method: str, batch_size: int) -> Cell:
        """The measurements of one method at one batch size."""
        return next(c for c in self.cells if (c.method, c.batch_size) == (method, batch_size))

    def standing(self, batch_size: int) -> Standing:
        """The order at one batch size."""
        return next(s for s in self.standings if s.batch_size == batch_size)

    def place(self, cell: Cell) -> Place:
        """The relation of the method of a cell to the leader of its batch size."""
        return self.standing(cell.batch_size).place(cell.method) if cell.error else "not measured"

    @property
    def safe(self) -> tuple[str, ...]:
        """The methods that are behind the leader at none of several batch sizes."""
        fronts = [set(standing.front) for standing in self.standings]
        if len(fronts) < 2 or not all(fronts):
            return ()
        return tuple(method for method in self.design.methods if all(method in front for front in fronts))

    @property
    def not_measured(self) -> tuple[tuple[str, Text], ...]:
        """Claims of the catalog that no experiment of this study tests: (id, text)."""
        measured = {evidence.claim for evidence in self.evidence}
        return tuple((claim, text) for claim, text in catalog.CLAIMS.items() if claim not in measured)

    @property
    def on_edge(self) -> tuple[Cell, ...]:
        """Cells whose best learning rate was the lowest or highest one tried; a better one may be outside the range."""
        return tuple(cell for cell in self.cells if cell.rate_on_edge)
