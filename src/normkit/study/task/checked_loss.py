"""The loss of a batch, tried before anything is trained: errors and wrong pairs are refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError, NormkitError
from normkit.study.task.batches import shown
from normkit.study.task.part import call

Loss = Callable[[Any, Any], Any]


def checked_loss(loss: Loss, model: nn.Module, batch: tuple[Any, Any], which: str = "") -> Any:
    """The loss of a batch of inputs and targets; `which` says in a message how its samples were chosen.

    Raises:
        ArgumentError: the loss raised an error, or compares each output with the targets of all samples.
    """
    inputs, targets = batch
    outputs = call(model, inputs)
    try:
        with warnings.catch_warnings():
            # Losses of torch repeat targets for outputs of another shape, and train on wrong pairs.
            warnings.filterwarnings("error", "Using a target size")
            found = loss(outputs, targets)
    except NormkitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise ArgumentError(
            f"loss must take outputs and targets of a batch{which}, but with outputs {shown(outputs)} and targets "
            f"{shown(targets)} it raised {why}. Cross entropy takes whole numbers from 0 and an output for each class; "
            "other losses of torch take targets of the shape of the outputs"
        ) from error
    if _repeats_targets(loss, outputs, targets, found):
        raise ArgumentError(
            f"loss must compare each output with its own target, but with outputs {shown(outputs)} and targets "
            f"{shown(targets)} it compares each one with all targets: give both one shape, as by targets.unsqueeze(1)"
        )
    return found


def _repeats_targets(loss: Loss, outputs: Any, targets: Any, value: Any) -> bool:
    """Whether a loss of numbers takes outputs (N, 1) and targets (N,), or the reverse, for N x N pairs."""
    if not all(isinstance(each, Tensor) and each.is_floating_point() for each in (outputs, targets, value)):
        return False
    if sorted((outputs.shape, targets.shape)) != [(len(targets),), (len(targets), 1)]:
        return False
    try:
        own = loss(outputs.reshape(targets.shape), targets)
    except Exception:
        # It indexes a dimension of the outputs, so it knows their shape.
        return False
    return not torch.allclose(own, value, rtol=1e-3)
