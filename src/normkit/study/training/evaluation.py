"""Makes runs from trained copies: losses and errors on each part of the data, and whether training succeeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normkit.study.task import Part, Task
from normkit.study.task.own import measure
from normkit.study.task.scoring.scheme import Scheme
from normkit.study.task.scoring.scores import WholeScore, number, of_metric, samples
from normkit.study.training.copies.replicas import Replicas
from normkit.study.training.design import Design
from normkit.study.training.diverged import is_finite, tolerant
from normkit.study.training.placement import to_device
from normkit.study.training.trial import GUESSING, Run, Trial

PartName = Literal["train", "validation", "test"]
CHUNK = 512
"""Samples in one evaluation batch, if they fit into memory."""
KEPT = 1 << 29
"""Bytes of outputs that are kept at most until a metric of the whole set is computed from them."""


@torch.no_grad()
def evaluate(
    task: Task, design: Design, trials: Sequence[Trial], copies: Replicas, losses: Tensor, chunk: int = CHUNK
) -> list[Run]:
    """Evaluate trained copies.

    Args:
        task, design, trials: as in the training.
        copies: the copies, one for each trial.
        losses: training losses, with a row for each step and a column for each trial.
        chunk: samples in one evaluation batch.
    """
    copies.train(False)
    # A model whose loss was not finite at some step is not evaluated, even if the loss became finite again.
    alive = [bool(losses[:, i].isfinite().all()) for i in range(len(trials))]
    validation = _scores(task, design, copies, task.validation, "validation", chunk) if any(alive) else []
    measured = any(alive) and trials[0].kind == "measure"
    test = _scores(task, design, copies, task.test, "test", chunk, task.metrics) if measured else []
    probes = [task.probe(m) for m in copies.unstacked()] if measured and task.probe else [{} for _ in trials]
    training = _gap(task, design, copies, trials[0].batch_size, chunk) if measured else None
    runs = []
    for i, trial in enumerate(trials):
        curve = losses[:, i].tolist()
        if not alive[i]:
            runs.append(_diverged(task, trial, curve))
            continue
        state, message = _state(task, validation[i], test[i] if measured else None)
        further = probes[i] | (test[i].further if measured else {})
        runs.append(
            Run(
                trial,
                state,
                message,
                _rounded(curve),
                train_error=_finite(training.errors[i]) if training else None,
                validation_error=_finite(validation[i].metric),
                validation_loss=_finite(validation[i].loss),
                test_error=test[i].metric if measured else None,
                recalibrated_error=training.recalibrated[i] if training and training.recalibrated else None,
                gap=_finite(training.gaps[i]) if training else None,
                probes={name: value for name, value in further.items() if math.isfinite(value)},
            )
        )
    return runs


def _rounded(curve: Sequence[float]) -> tuple[float, ...]:
    """Losses as they are stored: with four digits, which is more than any conclusion needs."""
    return tuple(float(f"{loss:.4g}") for loss in curve)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _diverged(task: Task, trial: Trial, curve: list[float]) -> Run:
    """The run of a loss that was not finite: it is scored as guessing, not dropped."""
    end = next(i for i, loss in enumerate(curve) if not math.isfinite(loss))
    return Run(
        trial,
        "untrained",
        f"the loss was {curve[end]} at step {end + 1}",
        _rounded(curve[:end]),
        validation_error=task.scheme.guess("validation"),
        train_error=task.scheme.guess("train") if trial.kind == "measure" else None,
        test_error=task.scheme.guess("test") if trial.kind == "measure" else None,
    )


class _Scored(NamedTuple):
    """Scores of a copy on a part of the data; `further` are the further metrics of the task.

    The loss is None if the task's own functions do not measure it.
    """

    loss: float | None
    metric: float
    further: dict[str, float]


def _state(task: Task, validation: _Scored, test: _Scored | None) -> tuple[Literal["trained", "untrained"], str]:
    """A run trained if its metric is better than guessing by its interval, on the test data if they were used."""
    last, name = (validation, "validation") if test is None else (test, "test")
    for part in (validation, test):
        if part is not None and part.loss is not None and not math.isfinite(part.loss):
            return "untrained", f"the loss in evaluation was {part.loss}"
    if task.scheme.beats_guess(name, last.metric):
        return "trained", ""
    return "untrained", GUESSING


def _scores(
    task: Task,
    design: Design,
    copies: Replicas,
    part: Part,
    name: PartName,
    chunk: int,
    metrics: Mapping[str, Any] | None = None,
) -> list[_Scored]:
    """The scores of each copy on a part; if the loss is not finite, the metric is that of guessing.

    Args:
        task, design, copies: as in `evaluate`.
        part: the data, or some of them.
        name: what they are from.
        chunk: samples in one evaluation batch.
        metrics: further metrics.
    """
    if task.own:
        return [_own_scores(task, design, model, part, name, chunk) for model in copies.unstacked()]
    found: list[_Scored] = []
    while len(found) < len(copies):
        found += _some_scores(task, design, copies, part, slice(len(found), len(copies)), metrics or {}, name, chunk)
    return found


def _some_scores(
    task: Task,
    design: Design,
    copies: Replicas,
    part: Part,
    some: slice,
    metrics: Mapping[str, Any],
    name: PartName,
    chunk: int,
) -> list[_Scored]:
    """The scores of the first copies in the slice, as many as can be scored with little memory."""
    scores: list[_Running] = []
    for inputs, targets in part.chunks(chunk):
        inputs, targets = to_device(design, inputs), to_device(design, targets)
        outputs = copies.outputs(inputs, some)
        if not scores:
            scores = [_Running(task, metrics) for _ in outputs]
            if scores[0].keeps:
                size = _bytes(outputs[0]) * len(part) // samples(targets)
                scores = scores[: max(1, KEPT // max(1, size))]
                some = slice(some.start, some.start + len(scores))
        for each, own in zip(scores, outputs, strict=False):
            each.update(own, targets)
    return [each.result(name, len(part)) for each in scores]


class _Running:
    """The scores of one copy, from chunk to chunk."""

    def __init__(self, task: Task, metrics: Mapping[str, Any]) -> None:
        self.task = task
        assert isinstance(task.scheme, Scheme)
        self.loss = task.scheme.loss_score()
        self.metric = task.scheme.score()
        self.further = {name: of_metric(metric) for name, metric in metrics.items()}
        self.is_finite = True

    @property
    def keeps(self) -> bool:
        """Whether outputs are kept until the end."""
        return any(isinstance(score, WholeScore) for score in (self.metric, *self.further.values()))

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a chunk; after a loss that is not finite no metric is computed, because many would raise an error."""
        try:
            self.loss.update(outputs, targets)
        except Exception:
            if is_finite(outputs):
                raise
            self.loss.total = math.nan
        self.is_finite = self.is_finite and not math.isinf(self.loss.total) and not math.isnan(self.loss.total)
        if self.is_finite:
            for score in (self.metric, *self.further.values()):
                score.update(outputs, targets)

    def result(self, name: PartName, count: int) -> _Scored:
        """The scores after the last chunk."""
        if not self.is_finite:
            return _Scored(self.loss.total, self.task.scheme.guess(name), {})
        try:
            metric = number("metric", self.metric.compute(), count)
        except Exception:
            # Some training samples may have one class only, and no AUC.
            if name != "train":
                raise
            metric = math.nan
        further = {key: number(key, score.compute()) for key, score in self.further.items()}
        return _Scored(self.loss.compute(), metric, further)


def _bytes(tree: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


@torch.no_grad()
def validation_metrics(task: Task, design: Design, copies: Replicas, chunk: int) -> list[float]:
    """The metric of each copy on the validation data, during training."""
    return [scored.metric for scored in _scores(task, design, copies, task.validation, "validation", chunk)]


def _own_scores(task: Task, design: Design, model: nn.Module, part: Part, name: PartName, chunk: int) -> _Scored:
    """The measurements of a model by the user's own functions."""
    found = measure(task, model, part, chunk, partial(to_device, design))
    if not math.isfinite(found.metric):
        return _Scored(math.nan, task.scheme.guess(name), {})
    return _Scored(found.loss, found.metric, found.others)


class _Training(NamedTuple):
    """Measurements of each copy on some training samples."""

    errors: list[float]
    gaps: list[float]
    recalibrated: list[float]


def _gap(task: Task, design: Design, copies: Replicas, batch_size: int, chunk: int) -> _Training:
    """Error in evaluation mode; evaluation minus training loss; the test metric with recalibrated statistics.

    The last two come from one pass in training mode, which also averages the running statistics over its batches.
    """
    count = max(batch_size, min(design.gap_images, len(task.train)) // batch_size * batch_size)
    # Random samples, the same for every run: the data may be sorted.
    index = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:count]
    part = task.train.cut(index)
    evaluation = _scores(task, design, copies, part, "train", chunk)
    if task.own:
        return _Training([scored.metric for scored in evaluation], [math.nan] * len(copies), [])
    assert task.loss is not None
    training = [0.0] * len(copies)
    with copies.averaging() as numbered:
        copies.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for number, (inputs, targets) in enumerate(part.chunks(batch_size), start=1):
                numbered(number)
                inputs, targets = to_device(design, inputs), to_device(design, targets)
                for i, outputs in enumerate(copies.outputs(inputs)):
                    training[i] += float(tolerant(task.loss)(outputs, targets)) * batch_size / count
        copies.train(False)
        test = _scores(task, design, copies, task.test, "test", chunk) if copies.statistics_modules() else []
    losses = [math.nan if scored.loss is None else scored.loss for scored in evaluation]
    gaps = [loss - other for loss, other in zip(losses, training, strict=True)]
    return _Training([scored.metric for scored in evaluation], gaps, [scored.metric for scored in test])
