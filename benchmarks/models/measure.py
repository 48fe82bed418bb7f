"""Measures one cell: checks that the contestants compute the same, then times them in turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import normkit
from benchmarks.models.subjects import LAYOUTS, SUBJECTS, Cell, loss, output
from benchmarks.speed.measure import Call, quiet

NORMS = re.compile(r"aten::(batch|group|layer|rms)_norm|autograd::engine::evaluate_function: \w*Norm\w*Backward\d")
"""The names under which torch's profiler counts norms, forward and backward."""
BOUND = 2.0
"""How many times as far from float64 as torch's model a contestant may be: both only round, at other places."""
FLOOR = {"float32": 5e-3, "bfloat16": 1e-2}
"""Relative errors below which nothing is compared: the gradients change by 1e-3 where rounding puts the input of a
single ReLU on the other side of 0."""

CONTESTANTS: Mapping[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "torch": lambda model, x: model,
    "normkit": lambda model, x: normkit.convert(model)[0],
    "folded": lambda model, x: folded(normkit.convert(model)[0], x),
}
"""What is timed, made of the model and its input."""


class UnchangedError(Exception):
    """A contestant that would be the same as another."""


class WrongError(Exception):
    """A contestant computes something else than torch's model."""


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A model after `normkit.fold`.

    Raises:
        UnchangedError: nothing can be folded, as where an activation follows each norm.
    """
    model, report = normkit.fold(model, (x,))
    if not report.folds:
        raise UnchangedError
    return model


def names(training: bool, compiled: bool) -> list[str]:
    """The contestants of a cell: folding is for inference, and compiling takes most of the time of the benchmark."""
    return [name for name in CONTESTANTS if name != "folded" or not (training or compiled)]


def prepared(cell: Cell) -> tuple[nn.Module, Tensor, Tensor]:
    """The model in float32 with random scales, shifts and statistics, its input and its target."""
    torch.manual_seed(0)
    subject = SUBJECTS[cell.model]
    model, (x, target) = subject.make(), subject.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, statistic in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                statistic.add_(torch.rand_like(statistic), alpha=0.1)
    if x.dim() == 4:
        layout = LAYOUTS[cell.layout]
        model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)  # type: ignore[call-overload]
    return model.train(cell.training), x, target


def _autocast(cell: Cell) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=cell.precision == "bfloat16")


def call(cell: Cell, model: nn.Module, x: Tensor, target: Tensor) -> Call:
    """A training step (forward, loss, backward, optimizer) or a forward pass; bfloat16 is autocast's."""
    # The rate changes no time, and with this one the model without norms stays finite.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(cell):
            y = output(model, x)
        loss(y, target).backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad(), _autocast(cell):
            output(model, x)

    return step if cell.training else infer


def numbers(cell: Cell, model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    """What a contestant computes, in float64: the output; in training also all gradients, and all statistics."""
    if not cell.training:
        with torch.no_grad(), _autocast(cell):
            return [output(model, x).double()]
    with _autocast(cell):
        y = output(model, x)
    loss(y, target).backward()
    gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    statistics = [b.double().flatten() for name, b in model.named_buffers() if "running" in name]
    return [y.detach().double(), torch.cat(gradients), *([torch.cat(statistics)] if statistics else [])]


def oracle(cell: Cell) -> list[Tensor]:
    """What torch's model computes in float64."""
    model, x, target = prepared(cell)
    exact = Cell(cell.model, cell.layout, "float64", compiled=False, training=cell.training)
    return numbers(exact, model.double(), x.double() if x.is_floating_point() else x, target)


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest distance between two such lists, relative to the size of what is compared; nan if one is."""
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]).max())


def check(cell: Cell, name: str, errors: Mapping[str, float]) -> None:
    """A contestant is about as near to float64 as torch's model.

    Raises:
        WrongError: it is not, and must not be timed.
    """
    allowed = max(BOUND * errors.get("torch", 0.0), FLOOR[cell.precision])
    if not errors[name] <= allowed:  # nan is wrong, too
        raise WrongError(f"relative error {errors[name]:.2g}, and {allowed:.2g} is allowed")


def share(run: Call, repeats: int = 3) -> float:
    """The part of the time of an eager model that its norms take, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            with record_function("all"):
                run()
    times = {event.key: event.cpu_time_total for event in found.key_averages()}
    return float(sum(time for name, time in times.items() if NORMS.fullmatch(name)) / times["all"])


def measure(cell: Cell, seconds: float, warm: bool = False) -> dict[str, Any]:
    """A row: facts of the norms, errors, and milliseconds of each contestant, or None and the reason of its failure.

    With `warm` each contestant is called, and nothing is timed.
    """
    torch.compiler.reset()
    model, x, target = prepared(cell)
    models: dict[str, nn.Module] = {}
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    expected = oracle(cell)
    count = len(normkit.convert(model)[1].changes)
    # All are made before the first is called, which changes the statistics of torch's model.
    for name in names(cell.training, cell.compiled):
        try:
            models[name] = CONTESTANTS[name](model, x)
        except UnchangedError:
            continue
        except Exception as reason:  # a contestant that fails is an entry, not the end
            failed[name] = _text(reason)
    for name, contestant in models.items():
        run = torch.compile(contestant, dynamic=False) if cell.compiled else contestant
        try:
            errors[name] = error(numbers(cell, run, x, target), expected)
            check(cell, name, errors)
            calls[name] = call(cell, run, x, target)
            calls[name]()
        except Exception as reason:
            calls.pop(name, None)
            failed[name] = _text(reason)
    part = None if cell.compiled or "torch" not in calls else share(calls["torch"])
    times, was_quiet = ({}, True) if warm else quiet(calls, seconds)
    facts = {**asdict(cell), "name": cell.name, "norms": count, "share": part, "quiet": was_quiet}
    return {**facts, "milliseconds": {**times, **dict.fromkeys(failed)}, "failed": failed, "error": errors}


def _text(reason: Exception) -> str:
    return f"{type(reason).__name__}: {reason}".splitlines()[0]
