"""The result of `compare`: everything measured and everything concluded, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from normkit import catalog
from normkit.study import verdict, words
from normkit.study.claims.experiment import Experiment, judged
from normkit.study.conduct import Bench
from normkit.study.design import Design
from normkit.study.evidence import Evidence
from normkit.study.run import Run
from normkit.study.stats import Interval
from normkit.study.verdict import Cell, Pair, Standing

HEADINGS = ("batch", "method", "error", "95 %", "standing", "steps", "time", "gap", "untrained")
NOTE = (
    "batch: images per step; error: on the test images, with its 95 % interval; steps: until the training loss is "
    "{target:g}; time: of a training step, relative to no norm; gap: loss in evaluation minus loss in training mode; "
    "untrained: runs that did not train."
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        design, rules: the experiment, as data and in words.
        task: name of what was trained.
        cells: what was measured, one for each method and batch size.
        pairs, standings: what follows, by the rules.
        evidence: what the experiments say of the claims of the catalog, in its order; none for a task of one's own.
        failures: runs that raised, with their messages.
        complete: False if the study was interrupted; then everything rests on the runs that were finished.
        machine: processor, versions, kernels.
        command: repeats the study.
        seconds: wall time of this call.
        path: the page, once it is written.
    """

    design: Design
    rules: tuple[tuple[str, str], ...]
    task: str
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    standings: tuple[Standing, ...]
    evidence: tuple[Evidence, ...]
    failures: tuple[Run, ...]
    complete: bool
    machine: Mapping[str, Any]
    command: str
    seconds: float = 0.0
    path: Path | None = None

    def cell(self, method: str, batch_size: int) -> Cell:
        """What was measured of one method at one batch size."""
        return next(c for c in self.cells if (c.method, c.batch_size) == (method, batch_size))

    def standing(self, batch_size: int) -> Standing:
        """The order at one batch size."""
        return next(s for s in self.standings if s.batch_size == batch_size)

    @property
    def answer(self) -> str:
        """Which normalization to use here, in one sentence, by the rule of the design."""
        clauses = [self._clause(standing) for standing in self.standings]
        return f"On {self.task}, {'; '.join(clauses)}."

    @property
    def safe(self) -> tuple[str, ...]:
        """The methods that no measured difference speaks against, at any of several batch sizes."""
        fronts = [set(standing.front) for standing in self.standings]
        if len(fronts) < 2 or not all(fronts):
            return ()
        return tuple(method for method in self.design.methods if all(method in front for front in fronts))

    @property
    def not_measured(self) -> tuple[tuple[str, str], ...]:
        """Claims of the catalog that these runs say nothing about: (id, text)."""
        measured = {evidence.claim for evidence in self.evidence}
        return tuple((claim, text) for claim, text in catalog.CLAIMS.items() if claim not in measured)

    @property
    def on_edge(self) -> tuple[Cell, ...]:
        """Where the best learning rate was the first or last one tried, so that a better one may lie outside."""
        return tuple(cell for cell in self.cells if cell.rate_on_edge)

    @property
    def note(self) -> str:
        """What the headings mean; first of all, whether the study is whole."""
        cut = "" if self.complete else "Interrupted: this rests on the runs that were finished; repeat to go on. "
        return cut + NOTE.format(target=self.design.target_loss)

    def rows(self) -> list[tuple[str, ...]]:
        """The table under `HEADINGS`, as text; within a batch size the lowest error first."""
        found: list[tuple[str, ...]] = []
        for standing in self.standings:
            size = standing.batch_size
            row = [cell for cell in self.cells if cell.batch_size == size]
            for cell in sorted(row, key=lambda cell: cell.error.value if cell.error else math.inf):
                value, interval = words.error(cell.error)
                place = place_of(cell.method, standing) if cell.error else "not measured"
                found.append(
                    (
                        str(size),
                        words.title(cell.method),
                        value,
                        interval,
                        place,
                        words.steps(cell.median_steps),
                        words.times(cell.time_ratio)[0],
                        words.signed(cell.gap)[0],
                        f"{cell.untrained} of {len(cell.runs)}",
                    )
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; a number that is not finite becomes None."""
        data = {
            "answer": self.answer,
            "safe": self.safe,
            "complete": self.complete,
            "task": self.task,
            "design": self.design.to_dict(),
            "rules": dict(self.rules),
            "cells": [_cell_dict(cell) for cell in self.cells],
            "pairs": [asdict(pair) for pair in self.pairs],
            "standings": [asdict(s) | {"front": s.front} for s in self.standings],
            "evidence": [_evidence_dict(evidence) for evidence in self.evidence],
            "not_measured": dict(self.not_measured),
            "failures": [{"job": asdict(run.job), "message": run.message, "trace": run.trace} for run in self.failures],
            "machine": dict(self.machine),
            "command": self.command,
            "seconds": round(self.seconds, 1),
        }
        plain: dict[str, Any] = _plain(data)
        return plain

    def __str__(self) -> str:
        lines = [HEADINGS, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.answer, "", *text, "", self.note])

    def _clause(self, standing: Standing) -> str:
        size = standing.batch_size
        where = f"with {size} image{'s' * (size > 1)} per step"
        if standing.leader is None:
            measured = any(cell.error for cell in self.cells if cell.batch_size == size)
            return f"{where} {'no method trained' if measured else 'nothing has been measured yet'}"
        leader = self.cell(standing.leader, size)
        assert leader.error is not None
        text = f"{where} {words.inline(leader.method)} makes the fewest errors ({words.percent(leader.error.value)})"
        behind, equal, unresolved = (
            [words.inline(method) for method in group]
            for group in (standing.behind, standing.equal_to, standing.unresolved)
        )
        if equal:
            text += f", {words.listing(equal)} being equal to it"
        if not unresolved:
            return text if equal or not behind else f"{text}, and every other method is behind"
        seeds = f"{leader.error.n} seeds"
        if not behind and not equal:
            return f"{text}, but {seeds} cannot tell any other method from it"
        # The shorter list says as much.
        if behind and not equal and len(behind) < len(unresolved):
            verb = "is" if len(behind) == 1 else "are"
            return f"{text}, only {words.listing(behind)} {verb} behind, and {seeds} cannot tell the others from it"
        return f"{text}, but {seeds} cannot tell {words.listing(unresolved)} from it"


def conclude(
    bench: Bench,
    others: Sequence[Bench] = (),
    experiments: Sequence[Experiment] = (),
    *,
    complete: bool,
    machine: Mapping[str, Any],
    command: str,
    seconds: float,
) -> Comparison:
    """Apply the rules to the runs that are there.

    Args:
        bench: what the answer is about.
        others: further benches that experiments read from.
        experiments: what is asked of them.
        complete, machine, command, seconds: as in `Comparison`.
    """
    design, table = bench.design, bench.table
    judgements = verdict.pairs(design, table)
    shown = [run for each in (bench, *others) for run in each.runs.values()]
    return Comparison(
        design=design,
        rules=design.rules(bench.task),
        task=bench.task.name,
        cells=tuple(table.values()),
        pairs=judgements,
        standings=tuple(verdict.standing(size, table, judgements) for size in design.batch_sizes),
        evidence=judged(
            experiments, {each.name: each.table for each in (bench, *others)}, design.alpha, "normkit compare"
        ),
        failures=tuple(run for run in shown if run.state == "failed"),
        complete=complete,
        machine=machine,
        command=command,
        seconds=seconds,
    )


def place_of(method: str, standing: Standing) -> str:
    """What the leader of a batch size is to a method, in a word or two."""
    if method == standing.leader:
        return "leads"
    if method in standing.behind:
        return "behind"
    return "equal" if method in standing.equal_to else "not resolved"


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.method,
        "batch_size": cell.batch_size,
        "rate": cell.rate,
        "rate_on_edge": cell.rate_on_edge,
        "error": _interval(cell.error),
        "train_error": _interval(cell.train_error),
        "recalibrated_error": _interval(cell.recalibrated_error),
        "gap": _interval(cell.gap),
        "median_steps": cell.median_steps,
        "steps": cell.steps,
        "time_ratio": _interval(cell.time_ratio),
        "seconds": cell.seconds,
        "untrained": cell.untrained,
        "tuning": [asdict(replace(run, losses=())) for run in cell.tuning],
        "runs": [asdict(run) for run in cell.runs],
    }


def _evidence_dict(evidence: Evidence) -> dict[str, Any]:
    """Texts in both languages, so that the page can be written again in either."""
    plain = asdict(evidence)
    for name in ("question", "design", "measure", "rule"):
        text = getattr(evidence, name)
        plain[name] = {lang: text.to(lang) for lang in catalog.LANGUAGES}
    for arm, row in zip(evidence.arms, plain["arms"], strict=True):
        row["label"] = {lang: arm.label.to(lang) for lang in catalog.LANGUAGES}
    return plain


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return asdict(interval) if interval else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
