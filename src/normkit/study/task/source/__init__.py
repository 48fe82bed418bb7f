"""Digests of what a task computes with: the code and values of its functions, and its data."""

from __future__ import annotations

import os
import random
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch.utils.data import Subset

from normkit.study.task.source.walk import Walk

__all__ = ["digest_of_data", "digest_of_fields", "seeded"]


def digest_of_fields(fields: Mapping[str, Any]) -> str:
    """The digest of the functions and values of a task.

    If the state of an object cannot be read, a warning names it, and the digest is another one at every call.
    """
    walk = Walk()
    for name, value in fields.items():
        walk.add(name, value)
    if walk.unknown:
        (name, reason), more = next(iter(walk.unknown.items())), len(walk.unknown) - 1
        warnings.warn(
            f"a later call cannot reuse the results of this one, because they may depend on {name}, whose state cannot "
            f"be read ({reason}){f', and on {more} more objects' if more else ''}: make the object inside of the "
            "function that uses it, or give its class a __getstate__ that returns all that results depend on",
            RuntimeWarning,
            stacklevel=2,
        )
        walk.add("once", _once())
    return walk.hexdigest()


def _once() -> str:
    """A text that no other call has; under torchrun the ranks, which share the work, have the same."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    run = [os.environ.get(name, "") for name in names]
    return f"{run} {os.getppid()}" if run[-1] not in ("", "1") else uuid.uuid4().hex


def digest_of_data(data: Any, length: int, samples: Callable[[], Any]) -> str:
    """The digest of a data set whose samples must be loaded: of its code, its attributes, and some samples.

    Samples are drawn twice under the same seed, because augmentation is random. If they differ nevertheless, a warning
    says that they do not count.

    Args:
        data: the data set.
        length: number of samples.
        samples: loads some samples.
    """
    # Before the attributes, because some are set when the first sample is read.
    first, second = (_digest_of_samples(samples) for _ in range(2))
    walk = Walk(lenient=True)
    walk.add("length", length)
    walk.add("data", data)
    inner = data
    while isinstance(inner, Subset):
        inner = inner.dataset
    if first == second:
        walk.add("samples", first)
    else:
        warnings.warn(
            f"samples of {type(inner).__name__} are random even with fixed seeds of torch, numpy and random, so stored "
            "results are reused while its code, attributes and length are the same, whatever it loads: draw random "
            "numbers from one of these generators",
            RuntimeWarning,
            stacklevel=2,
        )
    return walk.hexdigest()


def _digest_of_samples(samples: Callable[[], Any]) -> str:
    walk = Walk(lenient=True)
    with seeded():
        walk.add("samples", samples())
    return walk.hexdigest()


@contextmanager
def seeded() -> Iterator[None]:
    """Seeds the generators of torch, numpy and `random`, and restores them."""
    # numpy loads this module when it is first used, which would be too late.
    numpy: Any = import_module("numpy.random") if "numpy" in sys.modules else None
    python, arrays = random.getstate(), numpy and numpy.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            random.seed(0)
            if numpy:
                numpy.seed(0)
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.set_state(arrays)
