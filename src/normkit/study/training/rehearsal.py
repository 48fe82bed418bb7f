"""Tries a task before anything is trained, so that a mistake in it is found at once."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normkit.errors import ArgumentError, NormkitError
from normkit.study.task import Task
from normkit.study.task.masks import check_masks
from normkit.study.task.own import measure
from normkit.study.task.part import Part, call
from normkit.study.task.recipe import PerEpoch, factors, steps_of
from normkit.study.task.variants import OF_WEIGHTS
from normkit.study.training.copies.optimizers import Made, check_length, made, parameters_of
from normkit.study.training.copies.replicas import Separate
from normkit.study.training.design import Design
from normkit.study.training.placement import autocast, model_of, to_device
from normkit.study.training.steps import batch_of

SAMPLES = 64
"""Samples over all of the data from which a batch is tried."""


def rehearse(task: Task, design: Design) -> None:
    """Try the data, the model, the loss, the metric, the optimizer with its options, and one training step.

    Raises:
        ArgumentError, ShapeError: one of them cannot work; the message says which, and what to do.
    """
    for size in design.batch_sizes:
        factors(task.schedule, task.warmup, design.steps_at(size))
    for name in ("train", "validation", "test"):
        _try_data(name, getattr(task, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _try_model(task, design)
        task.rehearse()
        if any(p.requires_grad for p in task.build("none", 0).parameters()):
            _try_optimizer(task, design)
            _try_step(task, design)


def _try_data(name: str, part: Part) -> None:
    """A batch of samples of all of the data, because the first ones may be alike."""
    index = torch.linspace(0, len(part) - 1, min(SAMPLES, len(part))).long()
    try:
        part.take(index)
    except NormkitError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except Exception as error:
        raise ArgumentError(
            f"{name} must give batches, but making one of {len(index)} samples raised {type(error).__name__}: {error}"
        ) from error


def _try_model(task: Task, design: Design) -> None:
    """The model with a batch, and the mask that its norms get."""
    inputs, _ = to_device(design, task.train.take(task.train.first(2)))
    try:
        # To replace norms, the model is called to see the shapes there.
        model = model_of(task, design, "none", 0).eval()
        if not task.own or task.mask is not None:
            with torch.no_grad(), autocast(design):
                call(model, inputs)
    except NormkitError:
        raise
    except Exception as error:
        own = " A call shows the shapes at the places of norms, also if training_step and evaluate make none."
        raise ArgumentError(
            f"the model must take a batch of the data, but {_called(inputs)} raised {type(error).__name__}: {error}. A "
            "tuple is passed as model(*inputs), a dictionary as model(**inputs), anything else as model(inputs); "
            f"unpack=, batch -> (inputs, targets), says what the inputs are.{own if task.own else ''}"
        ) from error
    if task.mask is not None:
        # Norms of torch take no mask, so that an unchanged model may have no place for it. Methods that do not fit into
        # the model are left out, or refused, by the caller.
        for method in design.methods:
            if method.partition(":")[0] not in ("none", "unchanged", *OF_WEIGHTS):
                try:
                    masked = model_of(task, design, method, 0).eval()
                except ArgumentError:
                    continue
                with torch.no_grad(), autocast(design):
                    check_masks(masked, inputs, call)
                break


def _called(inputs: Any) -> str:
    """A call of the model, with the shapes of its inputs."""

    def shown(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    if isinstance(inputs, dict):
        return f"model({', '.join(f'{name}={shown(value)}' for name, value in inputs.items())})"
    several = isinstance(inputs, tuple | list) and type(inputs).__name__ != "PackedSequence"
    return f"model({', '.join(map(shown, inputs if several else [inputs]))})"


def _try_optimizer(task: Task, design: Design) -> None:
    """The optimizer with each setting that is tried, and its scheduler through a whole run."""
    model = model_of(task, design, "none", 0)
    for options in ((), *design.options):
        try:
            found = made(task.optimizer, parameters_of(model, task.parameters), task.rates[0], options)
        except NormkitError:
            raise
        except TypeError as error:
            named = ", ".join(name for name, _ in options)
            why = f"search names {named}: optimizer must take them by name" if named else "see normkit.Task"
            raise ArgumentError(f"optimizer must take (parameters, lr), but it raised {error}: {why}") from error
        except ValueError as error:
            raise ArgumentError(f"optimizer raised {error} with {dict(options)}: see search and parameters") from error
    _check_made(task, design, found)


def _check_made(task: Task, design: Design, found: Made) -> None:
    if len(found.optimizers) > 1 and not task.manual:
        raise ArgumentError(
            f"optimizer returned {len(found.optimizers)} optimizers, which need a training_step(model, batch, "
            "optimizers) that makes the step: give it, or return one"
        )
    if found.scheduler is None:
        return
    if task.schedule is not None or task.warmup:
        raise ArgumentError(
            f"the learning rate follows one schedule, got {type(found.scheduler).__name__} of optimizer and schedule= "
            "or warmup= too: leave one out"
        )
    for size in design.batch_sizes:
        steps = design.steps_at(size)
        if isinstance(found.scheduler, PerEpoch):
            epochs = steps * size * task.accumulate / len(task.train)
            check_length(found.scheduler.scheduler, math.ceil(epochs))
        else:
            check_length(found.scheduler, steps)


def _try_step(task: Task, design: Design) -> None:
    """One training step at the smallest batch size that has a variance."""
    size = min(max(2, design.batch_sizes[0]), design.batch_sizes[-1], len(task.train))
    copies = Separate([model_of(task, design, "none", 0)], task.training_step, task.manual)
    copies.train()
    copies.clip = task.clip
    copies.optimize(task.optimizer, [(task.rates[0], ())], task.parameters)
    batch = batch_of(task, design, task.train.first(size).unsqueeze(0), stacked=False)
    try:
        with autocast(design):
            (loss,) = copies.step_over(task.loss, [batch])  # type: ignore[arg-type]
    except NormkitError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"a training step must work on a batch of {size} samples, but it raised {type(error).__name__}: {error}"
        ) from error
    if not loss.isfinite():
        raise ArgumentError(
            f"loss must give one finite number as a tensor, got {float(loss)} in a training step: return the mean over "
            "samples"
        )
    if task.own:
        some = task.test.cut(task.test.first(8))
        measure(task, copy.deepcopy(copies.models[0]), some, task.evaluation_batch or 8, lambda b: to_device(design, b))


def with_epochs(task: Task, design: Design) -> Design:
    """The design with the steps of the task's epochs at each batch size; itself if the task counts steps.

    Raises:
        ArgumentError: fewer than 40 steps at a batch size.
    """
    if task.max_epochs is None:
        return design
    steps = {size: steps_of(len(task.train), size, task.max_epochs, task.accumulate) for size in design.batch_sizes}
    for size, count in steps.items():
        if count < 40:
            raise ArgumentError(
                f"max_epochs must give at least 40 steps, got {task.max_epochs:g} epochs of {len(task.train)} samples, "
                f"{count} steps at batch size {size}: a shorter run has no learning curve; choose more or smaller "
                "batches"
            )
    return replace(design, steps=max(steps.values()), steps_by_size=tuple(steps.items()))
