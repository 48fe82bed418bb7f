"""The result of `compare`: everything measured and everything concluded, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from normkit import catalog
from normkit.catalog import Text
from normkit.study import verdict, words
from normkit.study.answer import answer_of
from normkit.study.claims.experiment import Experiment, judged
from normkit.study.conduct import Bench
from normkit.study.design import Design
from normkit.study.evidence import Evidence
from normkit.study.metric import Metric
from normkit.study.run import Run
from normkit.study.stats import Interval
from normkit.study.train import weigh_step
from normkit.study.verdict import Cell, Pair, Standing

FORMAT = 2
"""The layout of `results.json`; a file of another one is not read."""
HEADINGS = tuple(
    Text(*pair)
    for pair in (
        ("batch", "批量"),
        ("method", "方法"),
        ("{metric}", "{metric}"),
        ("95 %", "95 %"),
        ("standing", "位次"),
        ("steps", "步数"),
        ("time", "时间"),
        ("gap", "差距"),
        ("untrained", "未训练成功"),
    )
)
NOTE = Text(
    "batch: samples per step; {metric}: on the test data, with its 95 % interval; steps: until the training loss is "
    "{target:g}; time: of a training step, relative to no norm; gap: loss in evaluation minus loss in training mode; "
    "untrained: runs that did not train.",
    "批量：每步的样本数；{metric}：在测试数据上，附 95 % 区间；步数：训练损失降到 {target:g} 所需；时间：每个训练步，"
    "相对于不归一化；差距：推理模式的损失减训练模式的损失；未训练成功：未能训练的运行数。",
)
CUT = Text(
    "Interrupted: this rests on the runs that were finished; repeat to go on. ",
    "研究中断：以下依据已完成的运行；重复同一命令即可继续。",
)
FAILED = Text(
    "{count} runs failed, first {method} at batch size {size} ({message}); the report has all. ",
    "{count} 次运行失败，首先是批量为 {size} 时的{method}（{message}）；报告中列有全部。",
)
STANDINGS = {
    "leads": Text("leads", "领先"),
    "equal": Text("equal", "相当"),
    "not resolved": Text("not resolved", "未定"),
    "behind": Text("behind", "落后"),
    "not measured": Text("not measured", "未测量"),
}
"""What the leader of a batch size can be to a method."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        design, rules: the experiment, as data and in words.
        task: name of what was trained.
        metric: what its results are measured in.
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
    path: Path | None = None

    def cell(self, method: str, batch_size: int) -> Cell:
        """What was measured of one method at one batch size."""
        return next(c for c in self.cells if (c.method, c.batch_size) == (method, batch_size))

    def standing(self, batch_size: int) -> Standing:
        """The order at one batch size."""
        return next(s for s in self.standings if s.batch_size == batch_size)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """The comparison that was written to a folder, or to its `results.json`; nothing is run.

        Raises:
            ArgumentError: there is no such file, or it is none of normkit's.
            StateError: it was written by a version with another layout.
        """
        from normkit.study.reading import load

        return load(Path(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` was made from; errors as in `load`."""
        from normkit.study.reading import comparison_of

        return comparison_of(data)

    @property
    def answer(self) -> Text:
        """Which normalization to use here, in one sentence, by the rule of the design; in both languages."""
        return answer_of(self)

    @property
    def safe(self) -> tuple[str, ...]:
        """The methods that no measured difference speaks against, at any of several batch sizes."""
        fronts = [set(standing.front) for standing in self.standings]
        if len(fronts) < 2 or not all(fronts):
            return ()
        return tuple(method for method in self.design.methods if all(method in front for front in fronts))

    @property
    def not_measured(self) -> tuple[tuple[str, Text], ...]:
        """Claims of the catalog that these runs say nothing about: (id, text)."""
        measured = {evidence.claim for evidence in self.evidence}
        return tuple((claim, text) for claim, text in catalog.CLAIMS.items() if claim not in measured)

    @property
    def on_edge(self) -> tuple[Cell, ...]:
        """Where the best learning rate was the first or last one tried, so that a better one may lie outside."""
        return tuple(cell for cell in self.cells if cell.rate_on_edge)

    @property
    def note(self) -> Text:
        """What the headings mean; first of all, whether the study is whole and what failed."""
        en, zh = (
            ("" if self.complete else CUT.to(lang))
            + self._failed(lang)
            + NOTE.to(lang).format(target=self.design.target_loss, metric=self.metric.name.to(lang))
            for lang in catalog.LANGUAGES
        )
        return Text(en, zh)

    def _failed(self, lang: str) -> str:
        if not self.failures:
            return ""
        job, lines = self.failures[0].job, self.failures[0].message.splitlines()
        return FAILED.to(lang).format(
            count=len(self.failures),
            method=words.inline(job.method, lang),
            size=job.batch_size,
            message=lines[0] if lines else "",
        )

    def headings(self, lang: str = "en") -> tuple[str, ...]:
        """What stands above the columns of `rows`."""
        return tuple(heading.to(lang).format(metric=self.metric.name.to(lang)) for heading in HEADINGS)

    def rows(self, lang: str = "en") -> list[tuple[str, ...]]:
        """The table under `headings`, as text; within a batch size the lowest error first."""
        found: list[tuple[str, ...]] = []
        for standing in self.standings:
            size = standing.batch_size
            row = [cell for cell in self.cells if cell.batch_size == size]
            for cell in sorted(row, key=lambda cell: cell.error.value if cell.error else math.inf):
                value, interval = words.error(cell.error, self.metric, lang)
                found.append(
                    (
                        str(size),
                        words.title(cell.method, lang),
                        value,
                        interval,
                        STANDINGS[self.place(cell)].to(lang),
                        words.steps(cell.median_steps),
                        words.times(cell.time_ratio)[0],
                        words.signed(cell.gap)[0],
                        f"{cell.untrained}/{len(cell.runs)}"
                        if lang == "zh"
                        else f"{cell.untrained} of {len(cell.runs)}",
                    )
                )
        return found

    def place(self, cell: Cell) -> str:
        """What the leader at the batch size of a cell is to its method: a key of `STANDINGS`."""
        return place_of(cell.method, self.standing(cell.batch_size)) if cell.error else "not measured"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; a number that is not finite becomes None."""
        data = {
            "format": FORMAT,
            "answer": str(self.answer),
            "safe": self.safe,
            "complete": self.complete,
            "task": self.task,
            "metric": asdict(self.metric),
            "design": self.design.to_dict(),
            "rules": [{"heading": heading, "text": text} for heading, text in self.rules],
            "cells": [_cell_dict(cell) for cell in self.cells],
            "pairs": [asdict(pair) for pair in self.pairs],
            "standings": [asdict(s) | {"front": s.front} for s in self.standings],
            "evidence": [asdict(evidence) for evidence in self.evidence],
            "not_measured": [claim for claim, _ in self.not_measured],
            "failures": [{"job": asdict(run.job), "message": run.message, "trace": run.trace} for run in self.failures],
            "machine": dict(self.machine),
            "command": self.command,
            "seconds": round(self.seconds, 1),
        }
        plain: dict[str, Any] = _plain(data)
        return plain

    def to_pandas(self, level: str = "cells") -> Any:
        """A data frame of one row for each cell, run, pair or experiment.

        Args:
            level: "cells", "runs", "pairs" or "evidence".

        Raises:
            ArgumentError: another level.
            StateError: pandas is not installed (`pip install "normkit[export]"`).
        """
        from normkit.study.export import frame

        return frame(self, level)

    def _repr_html_(self) -> str:
        from normkit.study.report.notebook import render

        return render(self)

    def __rich__(self) -> Any:
        from normkit.study.terminal import table

        return table(self)

    def __str__(self) -> str:
        lines = [self.headings(), *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.answer, "", *text, "", self.note])


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
        task=bench.task.name if isinstance(bench.task.name, Text) else Text(bench.task.name, bench.task.name),
        metric=bench.task.reported,
        cells=tuple(_weighed(bench, cell) for cell in table.values()),
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


def _weighed(bench: Bench, cell: Cell) -> Cell:
    """The cell with what a step keeps in memory; of what never ran there is nothing to weigh."""
    if not cell.runs or not bench.timed:
        return cell
    return replace(cell, saved_bytes=weigh_step(bench.task, bench.design, cell.method, cell.batch_size))


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
        "saved_bytes": cell.saved_bytes,
        "untrained": cell.untrained,
        "tuning": [asdict(replace(run, losses=())) for run in cell.tuning],
        "runs": [asdict(run) for run in cell.runs],
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return asdict(interval) if interval else None


def _plain(value: Any) -> Any:
    if isinstance(value, Text):
        return {lang: value.to(lang) for lang in catalog.LANGUAGES}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
