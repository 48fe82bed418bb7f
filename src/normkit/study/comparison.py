"""The result of `compare`: the results of a study, with their written forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normkit.catalog import Text
from normkit.study.analysis import cells, verdict
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.results import Results
from normkit.study.analysis.verdict import Look
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.judging import judged
from normkit.study.execution.workload import Workload
from normkit.study.report import export, notebook, results_file, terminal, write_figures
from normkit.study.report.writing import experiments as written
from normkit.study.report.writing import table
from normkit.study.report.writing.answer import answer
from normkit.study.report.writing.rules import rules
from normkit.study.training.cost import step_memory


class Comparison(Results):
    """The results as text, as tables for the terminal and a notebook, as plain data and as data frames."""

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read the comparison from a folder, or from its `results.json`; nothing is run.

        Raises:
            ArgumentError: there is no such file, or `compare` has not written it.
            StateError: a version with another format has written it.
        """
        return results_file.load(Path(path), cls)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Make the comparison from the data of `to_dict`; errors as in `load`."""
        return results_file.from_dict(data, cls)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; a number that is not finite becomes None."""
        return results_file.to_dict(self)

    def to_pandas(self, level: str = "cells") -> Any:
        """A data frame with one row for each cell, run, pair or experiment.

        Args:
            level: "cells", "runs", "pairs" or "evidence".

        Raises:
            ArgumentError: another level.
            StateError: pandas is not installed (`pip install "normkit[export]"`).
        """
        return export.frame(self, level)

    def figures(self, folder: str | Path, lang: str = "en") -> list[Path]:
        """Write every figure of the page as SVG and its data as CSV into a folder; returns the paths.

        Raises:
            ArgumentError: another language than "en" and "zh", or a folder that cannot be written.
        """
        return write_figures(self, Path(folder), lang)

    @property
    def answer(self) -> Text:
        """Which normalization to use here, in one sentence, by the rule of the design; in both languages."""
        return answer(self)

    @property
    def note(self) -> Text:
        """The meaning of the headings; before it, whether the study is complete and which runs failed."""
        return table.note(self)

    def headings(self, lang: str = "en") -> tuple[str, ...]:
        """The headings of the columns of `rows`."""
        return table.headings(self, lang)

    def rows(self, lang: str = "en") -> list[tuple[str, ...]]:
        """The table as text; within a batch size the lowest error first."""
        return [row.texts for row in table.rows(self, lang)]

    def _repr_html_(self) -> str:
        return notebook.render(self)

    def __rich__(self) -> Any:
        return terminal.both(self)

    def __str__(self) -> str:
        return table.plain(self)


def conclude(
    workload: Workload,
    others: Sequence[Workload] = (),
    experiments: Sequence[Experiment] = (),
    *,
    looks: Sequence[Look] = (),
    complete: bool,
    machine: Mapping[str, Any],
    command: str,
    seconds: float,
    awaited: int = 0,
    preliminary: bool = False,
) -> Comparison:
    """Apply the rules to the finished runs.

    Args:
        workload: the workload of the comparison.
        others: further workloads that experiments use.
        experiments: the experiments on claims.
        looks: the looks at the results so far, the present one last; by default it is the only one.
        complete, machine, command, seconds, awaited, preliminary: as in `Results`.
    """
    task, design = workload.task, workload.design
    looks = tuple(looks) or verdict.looks_of(design)
    tables = {each.name: cells.cells(each.design, each.runs, each.times) for each in others}
    own = tables[workload.name] = cells.cells(design, workload.runs, workload.times, looks[-1].seeds)
    pairs = verdict.pairs(design, own, looks)
    runs = [run for each in (workload, *others) for run in each.own_runs]
    return Comparison(
        design=design,
        rules=(*rules(design, task), *workload.notes),
        task=task.name if isinstance(task.name, Text) else Text(task.name, task.name),
        metric=task.reported,
        cells=tuple(_with_memory(workload, cell) for cell in own.values()),
        pairs=pairs,
        standings=tuple(verdict.standing(size, own, pairs) for size in design.batch_sizes),
        evidence=written.evidence(judged(experiments, tables, design.alpha), "normkit compare"),
        failures=tuple(run for run in runs if run.state == "failed"),
        complete=complete,
        machine=machine,
        command=command,
        seconds=seconds,
        looks=looks,
        trained=sum(run.state != "failed" for run in runs),
        awaited=awaited,
        preliminary=preliminary,
    )


def _with_memory(workload: Workload, cell: Cell) -> Cell:
    """The cell with the memory of a training step, if the method was trained."""
    if not cell.runs or not workload.timed:
        return cell
    return replace(cell, saved_bytes=step_memory(workload.task, workload.design, cell.method, cell.batch_size))
