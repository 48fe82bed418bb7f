"""The cost of a training step: its time, and the memory that it saves for its backward pass."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from normkit.study.task import Task
from normkit.study.task.part import call
from normkit.study.training.copies.replicas import Separate
from normkit.study.training.design import Design
from normkit.study.training.placement import autocast, model_of, to_device
from normkit.study.training.steps import batch_of, example
from normkit.study.training.trial import batches


@dataclass(frozen=True)
class Timing:
    """Methods whose steps are timed alternately."""

    batch_size: int
    methods: tuple[str, ...]


def time_steps(task: Task, design: Design, timing: Timing) -> dict[str, list[float]]:
    """Seconds per training step of each method, timed alternately so that a slow moment affects all of them.

    The rate is 0: the arithmetic is that of training, but no weights change.
    """
    seed = design.tuning_seeds[0]
    models = {
        method: Separate([model_of(task, design, method, seed)], task.training_step, task.manual)
        for method in timing.methods
    }
    for copies in models.values():
        copies.optimize(task.optimizer, [(1.0, ())], task.parameters)
        copies.clip = task.clip
        # A scheduler of the task's own would change the rates.
        copies.schedulers = []
        copies.scale_rates(0.0)
    warm_up = 5
    seconds: dict[str, list[float]] = {method: [] for method in models}
    order = batches(len(task.train), timing.batch_size, design.time_rounds + warm_up, seed)
    for count, index in enumerate(order):
        inputs, targets = batch_of(task, design, index.unsqueeze(0), stacked=False)
        for method, copies in models.items():
            start = time.perf_counter()
            with autocast(design):
                copies.step(task.loss, inputs, targets).item()  # type: ignore[arg-type]
            if count >= warm_up:
                seconds[method].append(time.perf_counter() - start)
    return seconds


def step_memory(task: Task, design: Design, method: str, batch_size: int) -> int | None:
    """Bytes that one training step saves for its backward pass; None if the step fails, as in the runs before."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Training has given the same warnings already.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model = model_of(task, design, method, design.tuning_seeds[0]).train()
            if task.manual:
                return None
            with autocast(design):
                if task.training_step is not None:
                    step = task.training_step
                    batch = to_device(design, task.train.batch(task.train.first(batch_size)))
                    return _saved(model, lambda: step(model, batch))
                inputs, targets = example(task, design, batch_size)
                return saved_bytes(model, task.loss, inputs, targets)
        except Exception:
            return None


def saved_bytes(model: nn.Module, loss: Any, inputs: Any, targets: Any) -> int:
    """Bytes of the tensors that autograd saves between forward and backward.

    A storage counts once, even if several operations save it or views of it. Parameters and buffers exist anyway and
    do not count. Allocations during the backward pass are not included.

    Args:
        model: the model, in the mode to measure; its buffers may change.
        loss: (outputs, targets) -> a number.
        inputs, targets: one batch.

    >>> import torch
    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sigmoid())
    >>> x = torch.zeros(2, 4)
    >>> saved_bytes(layer, lambda y, _: y.sum(), x, None)  # x, and the output of the sigmoid
    96
    """
    return _saved(model, lambda: loss(call(model, inputs), targets))


def _saved(model: nn.Module, forward: Callable[[], Any]) -> int:
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    # Kept until the end, because another tensor could get the address of a freed storage.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept.setdefault(place, tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
