"""Checks all arguments of `compare` before a task is imported or anything is built, and names all mistakes at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from normkit.errors import ArgumentError, NormkitError, nearest
from normkit.study.claims import chosen
from normkit.study.execution import machine
from normkit.study.execution.workers import check_executor, ranks
from normkit.study.report import check as check_language
from normkit.study.task.variants import method_name
from normkit.study.training.design import DTYPES, mistakes


# Longer than ten parameters, because it has those of `compare`.
def check(
    *,
    given: bool,
    methods: Sequence[str] | None,
    batch_sizes: Sequence[int],
    seeds: int,
    trials: int | None,
    steps: int | None,
    claims: Sequence[str] | bool | None,
    minutes: float | None,
    device: str,
    dtype: str,
    workers: int | None,
    seed: int,
    executor: str,
    address: str | None,
    time_limit: float | None,
    lang: str,
) -> None:
    """Raise one error with every mistake in the arguments; `given` says whether there is a task, the rest is that of
    `compare`.

    Raises:
        ArgumentError: at least one argument is not allowed.

    >>> from normkit.study import DEFAULTS
    >>> check(given=False, **{name: DEFAULTS[name] for name in NAMES} | {"seeds": 1, "minutes": -1})
    Traceback (most recent call last):
        ...
    normkit.errors.ArgumentError: 2 arguments must be corrected:
    - seeds must be at least 2, got 1: an interval needs two
    - minutes must be at least 0, got -1: leave it out for no limit
    """
    checks: list[Callable[[], object]] = [
        *(partial(method_name, name) for name in methods or ()),
        partial(_claims, claims, given),
        partial(_minutes, minutes),
        partial(check_place, device, dtype),
        partial(_workers, workers, executor, time_limit),
        partial(check_executor, executor, address),
        partial(check_language, lang),
    ]
    numbers = mistakes(tuple(batch_sizes), seeds, 3 if trials is None else trials, 40 if steps is None else steps, seed)
    found = [*numbers, *(message for each in checks for message in _messages(each))]
    if len(found) == 1:
        raise ArgumentError(found[0])
    if found:
        raise ArgumentError("\n- ".join([f"{len(found)} arguments must be corrected:", *found]))


NAMES = tuple(name for name in check.__annotations__ if name not in ("given", "return"))
"""The arguments of `compare` that are checked here."""


def _messages(check: Callable[[], object]) -> Iterable[str]:
    try:
        check()
    except NormkitError as error:
        yield str(error)


def check_place(device: str, dtype: str) -> None:
    """Refuse a device that torch cannot use here, and an unknown dtype."""
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}: {nearest(dtype, DTYPES)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ArgumentError(
            f"device must be one that torch can use here, got {device!r} ({why}): leave it out"
        ) from error


def _claims(claims: Sequence[str] | bool | None, given: bool) -> None:
    if given and claims:
        named = "all" if isinstance(claims, bool) else ",".join(claims)
        raise ArgumentError(
            f"claims have tasks of their own and are measured without another, got claims {named} with a task: "
            "leave one of them out"
        )
    if claims and not isinstance(claims, bool):
        chosen(claims)


def _minutes(minutes: float | None) -> None:
    if minutes is not None and not minutes >= 0:
        raise ArgumentError(f"minutes must be at least 0, got {minutes}: leave it out for no limit")


def _workers(asked: int | None, executor: str, limit: float | None) -> None:
    if asked is not None and asked < 1:
        raise ArgumentError(f"workers must be at least 1, got {asked}: leave it out for one per core")
    if limit is not None and not limit > 0:
        raise ArgumentError(f"time_limit must be more than 0 seconds, got {limit}: leave it out for none")
    alone = (asked or (machine.cores() if ranks.world() == 1 else 1)) == 1
    if limit is not None and math.isfinite(limit) and executor == "processes" and alone:
        raise ArgumentError(
            f"time_limit needs runs in separate processes, which can be stopped, got {limit:g} with workers=1: "
            "give workers=2 or more"
        )
