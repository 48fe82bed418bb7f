"""Trains what a list of jobs asks for: jobs that differ in rate and seed alone are trained at once."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from normkit.study.design import Design
from normkit.study.memory import saved_bytes
from normkit.study.replicas import Known, Replicas, can_be_stacked, replicas
from normkit.study.run import Job, Run, batches, smooth
from normkit.study.task import Part, Task

GUESSING = 0.95
"""A final training loss above this part of that of guessing is no better than guessing."""

CHUNK = 512
"""Samples that are evaluated at once."""
WORTH = 60
"""From so many steps on it pays to write one down, which takes as long as some tens of them."""

_stacks: dict[tuple[str, str, str], bool] = {}
"""What was found out about the models of this process: whether copies can be stacked."""
_steps: dict[tuple[Any, ...], Known] = {}


def execute(task: Task, design: Design, jobs: Sequence[Job]) -> list[Run]:
    """Train the model of each job from its seed and evaluate it at the end.

    Whatever training raises becomes a failed run with the message, so that the study goes on.

    Args:
        task: what to train.
        design: how.
        jobs: of one method and one batch size.
    """
    start = time.perf_counter()
    runs = _execute(task, design, jobs)
    share = (time.perf_counter() - start) / len(jobs)
    return [replace(run, seconds=float(f"{share:.3g}")) for run in runs]


def _execute(task: Task, design: Design, jobs: Sequence[Job]) -> list[Run]:
    if len(jobs) > 1 and design.stack > 1 and _is_stackable(task, jobs[0]):
        try:
            return _train(task, design, jobs, stacked=True)
        except Exception:
            # One by one each job has its own error, or none.
            pass
    return [_alone(task, design, job) for job in jobs]


def _alone(task: Task, design: Design, job: Job) -> Run:
    try:
        return _train(task, design, [job], stacked=False)[0]
    except Exception as error:
        return Run(job, "failed", f"{type(error).__name__}: {error}", trace=traceback.format_exc())


def _is_stackable(task: Task, job: Job) -> bool:
    key = (task.fingerprint(), job.method, str(job.batch_size))
    if key not in _stacks:
        inputs, targets = task.train.take(torch.arange(min(job.batch_size, len(task.train))))
        with torch.random.fork_rng(devices=[]):
            _stacks[key] = can_be_stacked(lambda seed: task.build(job.method, seed), task.loss, inputs, targets)
    return _stacks[key]


def _known_steps(task: Task, design: Design, job: Job) -> Known | None:
    """Training steps written down in this process, of which one may serve many runs."""
    if design.steps < WORTH:
        return None
    return _steps.setdefault((task.fingerprint(), job.method, job.batch_size, design.device, design.dtype), {})


def _train(task: Task, design: Design, jobs: Sequence[Job], stacked: bool) -> list[Run]:
    order = torch.stack([batches(len(task.train), job.batch_size, design.steps, job.seed) for job in jobs], dim=1)
    with torch.random.fork_rng(devices=[]), _precision(design):
        # What a model draws while it trains, for dropout say, follows its seed.
        torch.manual_seed(jobs[0].seed)
        models = [task.build(job.method, job.seed).to(design.device, _held(design)) for job in jobs]
        copies = replicas(models, stacked, _known_steps(task, design, jobs[0]) if stacked else None)
        copies.optimize(task.optimizer, [job.setting for job in jobs])
        losses: list[Tensor] = []
        for step, index in enumerate(order):
            # Half a cosine, from the whole rate down to nothing.
            copies.scale_rates(0.5 * (1 + math.cos(math.pi * step / design.steps)))
            inputs, targets = _on(design, task.train.take(index))
            losses.append(copies.step(task.loss, inputs, targets))
            if step % 20 == 19 and not losses[-1].isfinite().any():
                break
        return _evaluate(task, design, jobs, copies, torch.stack(losses).cpu())


def _on(design: Design, tree: Any) -> Any:
    """Tensors where and as what the design computes; whole numbers keep their type."""
    if (design.device, design.dtype) == ("cpu", "float32"):
        return tree

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(design.device, _held(design) if leaf.is_floating_point() else None)

    return torch.utils._pytree.tree_map(move, tree)


def _placed(task: Task, design: Design, method: str, seed: int) -> nn.Module:
    return task.build(method, seed).to(design.device, _held(design))


def _held(design: Design) -> torch.dtype:
    """What weights are held as."""
    return torch.float64 if design.dtype == "float64" else torch.float32


def _precision(design: Design) -> torch.autocast:
    """Where operations run in lower precision than weights are held in."""
    kind = torch.device(design.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=design.dtype == "bfloat16")


@torch.no_grad()
def _evaluate(task: Task, design: Design, jobs: Sequence[Job], copies: Replicas, losses: Tensor) -> list[Run]:
    copies.train(False)
    # A loss that left the finite numbers once is not trusted again.
    alive = [bool(losses[:, i].isfinite().all()) for i in range(len(jobs))]
    validation = _judge(task, design, copies, task.validation) if any(alive) else []
    measured = any(alive) and jobs[0].kind == "measure"
    test = _judge(task, design, copies, task.test) if measured else []
    probes = [task.probe(m) for m in copies.unstacked()] if measured and task.probe else [{} for _ in jobs]
    training = _gap(task, design, copies, jobs[0].batch_size) if measured else None
    runs = []
    for i, job in enumerate(jobs):
        curve = losses[:, i].tolist()
        if not alive[i]:
            runs.append(_broken(task, job, curve))
            continue
        state, message = _state(task, design, curve)
        ends = [part[i][0] for part in (validation, test) if part]
        if not all(map(math.isfinite, ends)):
            state, message = "untrained", f"the loss in evaluation was {ends[-1]}"
        runs.append(
            Run(
                job,
                state,
                message,
                _short(curve),
                train_error=training.errors[i] if training else None,
                validation_error=_finite(validation[i][1]),
                validation_loss=_finite(validation[i][0]),
                test_error=test[i][1] if measured else None,
                recalibrated_error=training.recalibrated[i] if training and training.recalibrated else None,
                gap=_finite(training.gaps[i]) if training else None,
                probes={name: value for name, value in probes[i].items() if math.isfinite(value)},
            )
        )
    return runs


def _short(curve: Sequence[float]) -> tuple[float, ...]:
    """Losses as they are stored; four digits are more than any statement rests on."""
    return tuple(float(f"{loss:.4g}") for loss in curve)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _broken(task: Task, job: Job, curve: list[float]) -> Run:
    """A run whose loss left the finite numbers is charged with guessing, not dropped."""
    end = next(i for i, loss in enumerate(curve) if not math.isfinite(loss))
    return Run(
        job,
        "untrained",
        f"the loss was {curve[end]} at step {end + 1}",
        _short(curve[:end]),
        validation_error=task.chance,
        train_error=task.chance if job.kind == "measure" else None,
        test_error=task.chance if job.kind == "measure" else None,
    )


def _state(task: Task, design: Design, curve: list[float]) -> tuple[Literal["trained", "untrained"], str]:
    smoothed = smooth(curve, min(design.window, len(curve)))
    guess = smoothed[0] if task.guess_loss is None else task.guess_loss
    # Of an unknown loss all that can be asked is that it has not risen.
    bound = GUESSING * guess if task.guess_loss is not None else guess
    learned = smoothed[-1] < bound or len(smoothed) == 1
    return ("trained", "") if learned else ("untrained", "at the end no better than guessing")


def _judge(task: Task, design: Design, copies: Replicas, part: Part) -> list[tuple[float, float]]:
    """Mean loss and metric of each copy on a part; where the loss is not finite, the metric is that of guessing."""
    sums = [[0.0, 0.0] for _ in range(len(copies))]
    for inputs, targets in part.chunks(CHUNK):
        inputs, targets = _on(design, inputs), _on(design, targets)
        share = len(torch.utils._pytree.tree_leaves(targets)[0]) / len(part)
        for total, outputs in zip(sums, copies.outputs(inputs), strict=True):
            loss = float(task.loss(outputs, targets))
            total[0] += share * loss
            total[1] += share * (task.measured(outputs, targets) if math.isfinite(loss) else task.chance)
    return [(loss, metric) for loss, metric in sums]


class _Training(NamedTuple):
    """What some training samples say of each copy."""

    errors: list[float]
    gaps: list[float]
    recalibrated: list[float]


def _gap(task: Task, design: Design, copies: Replicas, batch_size: int) -> _Training:
    """Error in evaluation mode; evaluation minus training loss; the test metric with statistics computed anew.

    One pass in training mode serves the last two: averaged over its batches, the running statistics are recalibrated.
    """
    count = max(batch_size, min(design.gap_images, len(task.train)) // batch_size * batch_size)
    part = task.train.cut(torch.arange(count))
    evaluation = _judge(task, design, copies, part)
    training = [0.0] * len(copies)
    with copies.averaging() as numbered:
        copies.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for number, (inputs, targets) in enumerate(part.chunks(batch_size), start=1):
                numbered(number)
                inputs, targets = _on(design, inputs), _on(design, targets)
                for i, outputs in enumerate(copies.outputs(inputs)):
                    training[i] += float(task.loss(outputs, targets)) * batch_size / count
        copies.train(False)
        again = [metric for _, metric in _judge(task, design, copies, task.test)] if copies.keepers() else []
    gaps = [loss - other for (loss, _), other in zip(evaluation, training, strict=True)]
    return _Training([metric for _, metric in evaluation], gaps, again)


@dataclass(frozen=True)
class Timing:
    """Methods whose steps are timed side by side."""

    batch_size: int
    methods: tuple[str, ...]


def time_steps(task: Task, design: Design, timing: Timing) -> dict[str, list[float]]:
    """Seconds per training step of each method, taken in turns so that a slow moment hits all alike.

    The rate is 0: the arithmetic is that of training, and no method drifts into other numbers meanwhile.
    """
    seed = design.tuning_seeds[0]
    models = {method: replicas([_placed(task, design, method, seed)], False) for method in timing.methods}
    for copies in models.values():
        copies.optimize(task.optimizer, [(1.0, ())])
        copies.scale_rates(0.0)
    warm_up = 5
    seconds: dict[str, list[float]] = {method: [] for method in models}
    order = batches(len(task.train), timing.batch_size, design.time_rounds + warm_up, seed)
    for count, index in enumerate(order):
        inputs, targets = _on(design, task.train.take(index.unsqueeze(0)))
        for method, copies in models.items():
            start = time.perf_counter()
            with _precision(design):
                copies.step(task.loss, inputs, targets).item()
            if count >= warm_up:
                seconds[method].append(time.perf_counter() - start)
    return seconds


def weigh_step(task: Task, design: Design, method: str, batch_size: int) -> int | None:
    """Bytes that one training step keeps for its backward pass; None where it fails, as its runs will have said."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # What there is to warn of has been said in training.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model = task.build(method, design.tuning_seeds[0]).to(design.device, _held(design)).train()
            inputs, targets = _on(design, task.train.take(torch.arange(batch_size)))
            with _precision(design):
                return saved_bytes(model, task.loss, inputs, targets)
        except Exception:
            return None
