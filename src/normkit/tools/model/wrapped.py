"""Models in a wrapper: the model inside it, and which wrappers do not allow a change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import lazy
from torch.nn.parallel import DistributedDataParallel

from normkit.errors import DtypeError, StateError

REPLICATED = {"DistributedDataParallel", "DDP", "ReplicateModule"}
"""They exchange the gradients and buffers of the parameters that they found when they were made; by name, so that
apex's and Megatron's are known too, and nothing is imported to ask."""

SHARDED = {"FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "PipelineEngine"}
"""They hold pieces of the parameters themselves, and know the modules that they took them from."""


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        DtypeError: naming its class.
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(f"a model must be a torch.nn.Module, got {type(model).__name__}: pass the module itself")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without wrappers that hold a graph or exchange buffers, which needs all ranks at the same time."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def refuse_unready(model: nn.Module, tool: str) -> None:
    """Refuse a model with layers that do not know their size yet, or with a graph that would not see a change.

    Args:
        model: any module.
        tool: the name of the calling function, for the message.

    Raises:
        DtypeError: `model` is not a module.
        StateError: naming the module and the remedy.
    """
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise StateError(f"{tool} needs layers that know their size, {name!r} does not: call the model once")
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise StateError(
                f"a compiled graph would not see what {tool} changes, and {name or 'the model'!r} is compiled: "
                f"call {tool} first and compile the result"
            )


def refuse_wrapped(model: nn.Module, tool: str, *, same_tensors: bool = False) -> None:
    """Refuse a model that is, or holds, a wrapper for several processes.

    A wrapper does not see new parameters, so that replicas become different, and waits for ever for the gradients of
    removed ones.

    Args:
        model: any module.
        tool: the name of the calling function, for the message.
        same_tensors: whether the change leaves every parameter and buffer the same object, which replicas allow.

    Raises:
        DtypeError: `model` is not a module.
        StateError: naming the wrapper, its place and the remedy.

    Example:
        >>> refuse_wrapped(nn.Sequential(nn.Linear(2, 2)), "insert")
    """
    check_module(model)
    for name, module in model.named_modules():
        kinds = {cls.__name__ for cls in type(module).__mro__}
        if kinds & SHARDED:
            remedy = f"call {tool} before the model is sharded"
        elif kinds & REPLICATED and not same_tensors:
            remedy = f"call {tool} on the model itself (model.module, where it is wrapped already) and wrap the result"
        else:
            continue
        kind = min(kinds & (SHARDED | REPLICATED))
        where = f"{name!r} of the model" if name else "the model"
        raise StateError(
            f"{tool} needs a model whose parameters no wrapper for several processes keeps account of, "
            f"got {where} in {kind}: {remedy}"
        )
