"""Finds the object that the command line names: ``pkg.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from normkit.errors import ArgumentError, DtypeError, nearest, whole_number


def load(target: str) -> tuple[nn.Module, Any]:
    """Import a factory and call it.

    Args:
        target: ``"pkg.module:factory"`` or ``"file.py:factory"``; the current directory is searched, too. The factory
            returns a model, or a model and an example of its input.

    Returns:
        The model, and the example or None.

    Raises:
        ArgumentError: the text, the module or the name in it cannot be used, or the factory raises.
        DtypeError: the factory returns something else.

    Example:
        >>> load("torch.nn:Identity")
        (Identity(), None)
    """
    made = call(target)
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


def call(target: str, *args: Any) -> Any:
    """The result of a named function for these arguments; a module, or another object, is returned itself.

    Raises:
        ArgumentError: the name cannot be used, or the function raises.

    >>> call("math:sqrt", 4)
    2.0
    """
    factory = named(target)
    if isinstance(factory, nn.Module) or not callable(factory):
        return factory
    try:
        return factory(*args)
    except Exception as error:  # whatever a foreign function raises
        given = f"with a {type(args[0]).__name__}" if args else "without arguments"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ArgumentError(
            f"{target} must return when it is called {given}, got {type(error).__name__}: {error}\n"
            f"    raised in {frame.filename}, line {frame.lineno}\nname a function that takes these arguments"
        ) from error


def named(target: str) -> Any:
    """The object that ``"pkg.module:name"`` or ``"folder/file.py:name"`` names; the current directory is searched, too.

    Raises:
        ArgumentError: the text, the module or the name in it cannot be used.

    >>> named("math:pi")
    3.141592653589793
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ArgumentError(
            f"a target is named as pkg.module:name, got {target!r}: write for instance nets:make or nets.py:make"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = _of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # a module may raise anything while it is imported
        raise ArgumentError(
            f"the module of {target!r} must be importable, got {type(error).__name__}: {error}: "
            "run the command where python -c 'import ...' works"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ArgumentError(f"{place} has no {name!r}: {nearest(name, dir(module))}")
    return found


def _of_file(path: Path) -> ModuleType:
    """Import a file under its own name, or another if that is taken; it can import the files next to it."""
    path = path.resolve(strict=True)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None else f"{path.stem}_of_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def example_of(shape: str, tokens: int | None = None) -> torch.Tensor:
    """An example of random numbers from a text such as ``"2,3,64,64"``.

    Args:
        shape: the sizes.
        tokens: for whole numbers from 0 to below this, as a model of a vocabulary of that size takes them.

    >>> example_of("2,3").shape, example_of("2,3", 10).dtype
    (torch.Size([2, 3]), torch.int64)
    """
    sizes = shape.replace("x", ",").split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ArgumentError(f"a shape is whole numbers with commas between, got {shape!r}: write 2,3,64,64")
    if tokens is not None and whole_number("tokens", tokens) < 1:
        raise ArgumentError(f"tokens must be at least 1, got {tokens}: give the size of the vocabulary")
    numbers = [int(size) for size in sizes]
    return torch.randn(numbers) if tokens is None else torch.randint(tokens, numbers)
