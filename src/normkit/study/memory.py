"""What one training step keeps in memory for its backward pass."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from normkit.study.task import Task


def saved_bytes(model: nn.Module, loss: Any, inputs: Any, targets: Any) -> int:
    """Bytes of the tensors that autograd saves between forward and backward.

    A storage counts once, however many operations save it or views of it; parameters and buffers are there anyway and
    do not count. What a backward pass allocates for itself is not seen.

    Args:
        model: in the mode in which it is to be measured; buffers may change.
        loss: (outputs, targets) -> a number.
        inputs, targets: one batch.

    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sigmoid())
    >>> x = torch.zeros(2, 4)
    >>> saved_bytes(layer, lambda y, _: y.sum(), x, None)  # x, and the output of the sigmoid
    96
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    # Held until the end: a storage that was freed could come again as another tensor's.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept.setdefault(place, tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model(inputs), targets)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def of_task(task: Task, method: str, batch_size: int, device: str) -> int | None:
    """Of one step of a task under a method; None where that step fails, as its runs will have said."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model = task.build(method, 0).to(device).train()
            # A batch may not be divisible into less than it was cut from: take it whole.
            index = torch.arange(batch_size) % len(task.train)
            inputs, targets = torch.utils._pytree.tree_map(
                lambda t: t.to(device) if isinstance(t, Tensor) else t, task.train.take(index)
            )
            return saved_bytes(model, task.loss, inputs, targets)
        except Exception:
            return None
