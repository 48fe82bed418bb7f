"""The modes of a model's modules, noted and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """What ``train()`` or ``eval()`` last asked of each module; a frozen norm itself always answers False."""
    return {module: vars(module).get("training", module.training) for module in model.modules()}


def put_back(modes: Mapping[nn.Module, bool]) -> None:
    """Give each module its mode again."""
    for module, training in modes.items():
        # A train() of its own may do more than set a flag: exchange graphs, or take merged weights apart.
        if module.training != training and type(module).train is not nn.Module.train:
            module.train(training)
    for module, training in modes.items():
        module.training = training


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """The modes of all modules, which they have again at the end; modules that the caller adds get theirs then."""
    modes = modes_of(model)
    try:
        yield modes
    finally:
        put_back(modes)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; the modes of all modules are put back."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield
