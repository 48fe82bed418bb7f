"""The norms of a model as its blocks call them, new ones, and what is left where one was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import HOOKS, module_places, norms

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

ADDED = "normkit_added"
"""The attribute of a module that holds the names of the norms that were added to it."""


class EmptyPlace(nn.Identity):
    """Takes the place of a norm at the end of a stack that post-norm does without.

    No name with "norm" in it: by that the tools recognise the norms of other libraries.
    """


def norm_units(model: nn.Module) -> Iterator[tuple[nn.Module, NormInfo]]:
    """The norms of a model; for a norm in a module that has no other parameters, that module."""
    places = {place.module: place for place in module_places(model)}
    for place, info in norms(model):
        unit = place.module
        own = {id(parameter) for parameter in unit.parameters()}
        while own and len(places[unit].parents) == 1:
            (holder, _), *_ = places[unit].parents
            same = own == {id(parameter) for parameter in holder.parameters()}
            if not same or holder is model or isinstance(holder, CONTAINERS):
                break
            unit = holder
        yield unit, info


def like_this(norm: nn.Module, info: NormInfo) -> nn.Module:
    """A new norm of the same class and size, with initial parameters and without hooks."""
    new = copy.deepcopy(norm)
    for module in new.modules():
        for hooks in HOOKS:
            if isinstance(vars(module).get(hooks), dict):
                vars(module)[hooks].clear()
    reset(new, info)
    return new


@torch.no_grad()
def reset(norm: nn.Module, info: NormInfo | None) -> None:
    """Give the parameters and statistics of a norm their initial values: weight 1, or what counts as 1, and bias 0."""
    for module in norm.modules():
        if hasattr(module, "reset_parameters"):
            cast(Any, module).reset_parameters()
        elif module._parameters and info is not None:
            for name, value in module._parameters.items():
                if value is not None:
                    value.fill_(1 - info.offset if name == "weight" else 0.0)
