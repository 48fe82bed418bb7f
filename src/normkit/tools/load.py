"""Finds what the command line names: ``pkg.module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch
from torch import nn

from normkit.errors import ArgumentError, DtypeError, nearest


def load(target: str) -> tuple[nn.Module, Any]:
    """Import a factory and call it.

    Args:
        target: ``"pkg.module:factory"``; the current directory is searched, too. The factory returns a model, or
            a model and an example of its input.

    Returns:
        The model, and the example or None.

    Raises:
        ArgumentError: the text, the module or the name in it cannot be used.
        DtypeError: the factory returns something else.

    Example:
        >>> load("torch.nn:Identity")
        (Identity(), None)
    """
    factory = named(target)
    made = factory if isinstance(factory, nn.Module) or not callable(factory) else factory()
    if isinstance(made, tuple) and len(made) == 2:
        model, example = made
    else:
        model, example = made, None
    if not isinstance(model, nn.Module):
        raise DtypeError(
            f"{target} must give a torch.nn.Module or a pair (model, example), got {type(made).__name__}: "
            "return the model from the factory"
        )
    return model, example


def named(target: str) -> Any:
    """What ``"pkg.module:name"`` means; the current directory is searched, too.

    Raises:
        ArgumentError: the text, the module or the name in it cannot be used.

    >>> named("math:pi")
    3.141592653589793
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ArgumentError(f"a target is named as pkg.module:name, got {target!r}: write for instance nets:make")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ArgumentError(
            f"the module of {target!r} must be importable, got {type(error).__name__}: {error}: "
            "run the command where python -c 'import ...' works"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ArgumentError(f"{module_name} has no {name!r}: {nearest(name, dir(module))}")
    return found


def example_of(shape: str) -> torch.Tensor:
    """An example of random numbers from a text such as ``"2,3,64,64"``.

    >>> example_of("2,3").shape
    torch.Size([2, 3])
    """
    sizes = shape.replace("x", ",").split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ArgumentError(f"a shape is whole numbers with commas between, got {shape!r}: write 2,3,64,64")
    return torch.randn([int(size) for size in sizes])
